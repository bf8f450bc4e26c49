// SPDX-License-Identifier: LGPL-2.1-or-later
// Reading the configuration again, as SIGHUP does.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_reload_family;
