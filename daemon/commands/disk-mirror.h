// SPDX-License-Identifier: LGPL-2.1-or-later
// Remembered disks that move to another image, while clients go on.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_mirror_family;
