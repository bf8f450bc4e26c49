// SPDX-License-Identifier: LGPL-2.1-or-later
// Users see the jobs of a transaction `created` one after the other, then all `running`; or each go
// by `aborting` when the transaction fails. Control loop.
#include "job-start.h"

#include "daemon/daemon.h"

int qmp_start_job(Fiber *self, const QmpCall *call, const json_t *args, QmpPrepareJobFn *prepare,
                  GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    QmpJobStart start;
    fiber_mutex_lock(self, lock);
    int r = prepare(self, call, args, &start, error);
    if (r == 0)
        job_start(self, start.job, start.loop);
    fiber_mutex_unlock(self, lock);
    return r;
}

int qmp_prepare_job_action(Fiber *self, const QmpCall *call, const json_t *data,
                           QmpPrepareJobFn *prepare, void **ret_state, GError **error)
{
    QmpJobStart start;
    int r = prepare(self, call, data, &start, error);
    if (r < 0)
        return r;
    if (call->follower)
        job_follow(start.job, call->follower, call->follower_arg);
    *ret_state = g_memdup2(&start, sizeof start);
    return 0;
}

void qmp_abort_job_action(Fiber *self, void *state)
{
    const QmpJobStart *start = state;
    job_drop_cancelled(start->job);
    start->free_work(self, start->work);
}

void qmp_start_job_action(Fiber *self, void *state)
{
    const QmpJobStart *start = state;
    job_start(self, start->job, start->loop);
}

void qmp_clean_job_action(Fiber *self, void *state)
{
    g_free(state);
}
