// SPDX-License-Identifier: LGPL-2.1-or-later
// The log lines about jobs that do not go well, for whoever was not at a monitor. Control loop.
#pragma once

#include "jobs/job.h"

// `disk`: that is busy with the job; NULL: none.
void job_log_happened(const Job *job, const JobEvent *event, const char *disk);
