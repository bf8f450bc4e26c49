// SPDX-License-Identifier: LGPL-2.1-or-later
// The start of a job by its own command, or as an action of a transaction: it is made with all that
// it needs to its end, which may fail; then it is started, or dropped as if it had never been.
//
//     static int prepare_x(…)                  makes the job, in state `created`
//     the command:  return qmp_start_job(self, call, args, prepare_x, error);
//     the action:   {"x", &args_type, "…", prepare_x_action, QMP_JOB_ACTION}, with, in it,
//                   return qmp_prepare_job_action(self, call, data, prepare_x, ret_state, error);
//
// With the graph lock held, but for qmp_start_job(), which takes it.
#pragma once

#include "daemon/qmp/command.h"
#include "jobs/job.h"

typedef struct QmpJobStart {
    Job *job;
    Loop *loop; // of its work
    void *work; // of a job that is not started this frees it
    void (*free_work)(Fiber *self, void *work);
} QmpJobStart;

// Makes the job, as one of `call->group` if there is one, and sets all members. What fails has
// dropped it (job_drop()), with whatever it took.
typedef int QmpPrepareJobFn(Fiber *self, const QmpCall *call, const json_t *args,
                            QmpJobStart *ret_start, GError **error);

int qmp_start_job(Fiber *self, const QmpCall *call, const json_t *args, QmpPrepareJobFn *prepare,
                  GError **error);

int qmp_prepare_job_action(Fiber *self, const QmpCall *call, const json_t *data,
                           QmpPrepareJobFn *prepare, void **ret_state, GError **error);
void qmp_abort_job_action(Fiber *self, void *state);
void qmp_start_job_action(Fiber *self, void *state);
void qmp_clean_job_action(Fiber *self, void *state);
#define QMP_JOB_ACTION                                                                             \
    .is_job = true, .abort = qmp_abort_job_action, .start = qmp_start_job_action,                  \
    .clean = qmp_clean_job_action
