// SPDX-License-Identifier: LGPL-2.1-or-later
// How the last jobs ended, whoever started them, longer than jobs are known by their ids; where
// there is a state directory, also after a restart. Control loop.
#pragma once

#include "daemon/state/catalogue.h"
#include "jobs/job.h"

typedef struct JobHistory JobHistory;

// `catalogue` (borrowed) may be NULL.
JobHistory *job_history_new(Catalogue *catalogue);
void job_history_free(JobHistory *history); // accepts NULL
// A JobEventFn of whoever gets the events; `loop` is the control loop.
void job_history_happened(JobHistory *history, Loop *loop, const Job *job, const JobEvent *event);
// The disk that was busy with a job when it began; NULL: none, or the job is over. Borrowed.
const char *job_history_disk(const JobHistory *history, const Job *job);
// An array, the last one first; a new reference.
json_t *job_history_entries(const JobHistory *history);
