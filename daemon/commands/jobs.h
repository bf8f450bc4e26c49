// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and events of jobs.
#pragma once

#include "daemon/qmp/command.h"
#include "jobs/job.h"

extern const QmpFamily qmp_jobs_family;

// A JobEventFn of the daemon (`arg`): tells the monitors.
JobEventFn qmp_jobs_happened;
