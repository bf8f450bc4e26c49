// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and events of jobs.
#pragma once

#include "daemon/qmp/command.h"
#include "jobs/job.h"

extern const QmpFamily qmp_jobs_family;
extern const QmpType qmp_job_status, qmp_job_type;

// A JobEventFn of the daemon (`arg`): tells the monitors of each new state.
JobEventFn qmp_jobs_happened;
// Why it failed, if it did.
void qmp_jobs_add_error(json_t *info, const Job *job);
