// SPDX-License-Identifier: LGPL-2.1-or-later
// drive-mirror and drive-backup: blockdev-mirror and blockdev-backup to a file that is opened, and
// made if need be, for the job.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_drive_jobs_family;
