// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs as their users see them: an id, a state, a result that stays known until the job is
// dismissed. Knows no kind of job. Everything here is for one loop (the daemon's control loop),
// except the progress.
#pragma once

#include <glib.h>
#include <stdatomic.h>
#include <stdint.h>

#include "chain-core/fiber.h"

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

// Of any unit; written by whoever does the work, on any thread.
typedef struct JobProgress {
    _Atomic uint64_t current, total;
} JobProgress;

#define JOB_ERROR (job_error_quark())
GQuark job_error_quark(void); // codes are errno

typedef struct Job Job;
typedef struct JobTable JobTable;

// Told of each change of a status, when it has happened; must not suspend.
typedef void JobStatusFn(void *arg, const Job *job);

JobTable *job_table_new(JobStatusFn *changed, void *arg);
// No job may run. Accepts NULL.
void job_table_free(JobTable *table);
// NULL with "Job not found".
Job *job_table_get(const JobTable *table, const char *id, GError **error);
// Job, in the order in which they were made. Borrowed until the table changes.
const GPtrArray *job_table_all(const JobTable *table);
// Waits until no job runs, and dismisses those that are concluded.
void job_table_end(Fiber *self, JobTable *table);

// A job in state `created`. NULL with QEMU's words when the id is none, or taken. `type` is a
// literal, such as "create".
Job *job_new(JobTable *table, const char *id, const char *type, GError **error);
const char *job_id(const Job *job);
const char *job_type(const Job *job);
JobStatus job_status(const Job *job);
const char *job_status_name(JobStatus status);
// Why it failed; NULL: it did not, or not yet.
const char *job_error(const Job *job);
// To be written by the job's work; stays until the job is dismissed.
JobProgress *job_progress(Job *job);

// created → running.
void job_start(Job *job);
// It has ended, well (NULL) or with `error`: by the steps that users see, to `concluded`.
void job_conclude(Job *job, const char *error);

// Does the job's state allow `verb`? -EPERM with QEMU's words if not.
int job_check_verb(const Job *job, JobVerb verb, GError **error);
// concluded → null; frees the job. -EPERM when it is not concluded.
int job_dismiss(Job *job, GError **error);
