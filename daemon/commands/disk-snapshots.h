// SPDX-License-Identifier: LGPL-2.1-or-later
// Points in time of remembered disks are made: of one, or of several at one moment.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_snapshots_family;
