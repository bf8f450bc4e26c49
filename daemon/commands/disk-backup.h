// SPDX-License-Identifier: LGPL-2.1-or-later
// Backups of remembered disks, full and of what has changed since another.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_backup_family;
