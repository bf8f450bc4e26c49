// SPDX-License-Identifier: LGPL-2.1-or-later
// How much the daemon says in its log.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_log_level_family;
