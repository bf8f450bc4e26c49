// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands of remembered disks: they come, are listed, and go.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disks_family;
