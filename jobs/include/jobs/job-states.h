// SPDX-License-Identifier: LGPL-2.1-or-later
// The states of a job, what users may ask of it, and which goes with which: one table, from which
// the code, its refusals and docs/qmp.md come. Pure.
#pragma once

#include <stdbool.h>

typedef enum JobStatus {
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY,
    JOB_WAITING,
    JOB_PENDING,
    JOB_ABORTING,
    JOB_CONCLUDED,
    JOB_NULL, // gone, or about to be
    JOB_N_STATUSES,
} JobStatus;

// What users may ask of a job.
typedef enum JobVerb {
    JOB_CANCEL,
    JOB_PAUSE,
    JOB_RESUME,
    JOB_SET_SPEED,
    JOB_COMPLETE,
    JOB_FINALIZE,
    JOB_DISMISS,
    JOB_CHANGE,
    JOB_N_VERBS,
} JobVerb;

const char *job_status_name(JobStatus status);
const char *job_verb_name(JobVerb verb);

bool job_status_may_follow(JobStatus from, JobStatus to);
bool job_status_allows(JobStatus status, JobVerb verb);

// Both tables as Markdown, owned.
char *job_states_text(void);
