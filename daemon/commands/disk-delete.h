// SPDX-License-Identifier: LGPL-2.1-or-later
// Points in time of remembered disks leave, and what that would cost is told.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_delete_family;
