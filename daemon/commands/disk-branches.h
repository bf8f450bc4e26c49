// SPDX-License-Identifier: LGPL-2.1-or-later
// New heads on points in time of remembered disks: of the same disk, or of another.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_branches_family;
