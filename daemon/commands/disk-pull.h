// SPDX-License-Identifier: LGPL-2.1-or-later
// Backups of remembered disks that a client reads by itself.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_pull_family;
