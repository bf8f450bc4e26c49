// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and events of the jobs that copy between nodes.
#pragma once

#include "daemon/qmp/command.h"
#include "jobs/job.h"

extern const QmpFamily qmp_block_jobs_family;

// A JobEventFn of the daemon (`arg`): tells the monitors what qmp_jobs_happened() does not.
JobEventFn qmp_block_jobs_happened;
