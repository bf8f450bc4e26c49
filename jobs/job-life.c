// SPDX-License-Identifier: LGPL-2.1-or-later
// From the start of a job to its end. Control loop: each job has a fiber here that waits for the
// end of the work. The last one of a group to come back ends them all:
//
//     all well → pending → finalized → each prepared → each committed, cleaned, concluded
//     one failed, or was cancelled, at any step → each aborted, cleaned, concluded
#include <errno.h>
#include <stddef.h>

#include "chain-core/remote-call.h"
#include "job-private.h"

// Longer than what a busy server takes for a request, shorter than what a guest waits for its disk
// (30 s): its writes may wait for the same server.
#define GIVE_UP_NS (5 * UINT64_C(1000000000))

// -- the work -------------------------------------------------------------------------------------

static void hear(void *arg, const JobNews *news)
{
    Job *job = arg;
    bool was_ready = job->status == JOB_READY || job->status == JOB_STANDBY;
    switch (news->kind) {
    case JOB_NEWS_PAUSED:
        job_set_status(job, was_ready ? JOB_STANDBY : JOB_PAUSED);
        break;
    case JOB_NEWS_RESUMED:
        job_set_status(job, was_ready ? JOB_READY : JOB_RUNNING);
        break;
    case JOB_NEWS_READY:
        job_set_status(job, JOB_READY);
        job_tell(job, (JobEvent){JOB_EVENT_READY});
        break;
    case JOB_NEWS_COPY_MODE:
        job_tell(job, (JobEvent){JOB_EVENT_COPY_MODE});
        break;
    case JOB_NEWS_ERROR:
        job_tell(job, (JobEvent){JOB_EVENT_ERROR, news->is_read, news->action});
        break;
    }
}

// On the work's loop.
static void run(Fiber *self, void *arg)
{
    Job *job = arg;
    job->result = job_pause_point(self, job->control);
    if (job->result == 0)
        job->result = job->kind->run(self, job->control, job->work, &job->run_error);
}

static void give_up(LoopTimer *timer)
{
    Job *job = (Job *)((char *)timer - offsetof(Job, give_up));
    job->kind->give_up(job->work);
}

// To be called off once it has ended.
static void give_up_later(Job *job)
{
    if (job->kind->give_up && job->control_loop)
        loop_timer_start(job->control_loop, &job->give_up, GIVE_UP_NS);
}

void job_cancel_work(Job *job)
{
    job_control_cancel(job->control);
    if (job->status < JOB_WAITING)
        give_up_later(job);
}

// Users see the first reason.
static void note_failure(Job *job, int result, const GError *error)
{
    job->result = result;
    if (!job->error)
        job->error = g_strdup(error ? error->message : g_strerror(-result));
    if (job->status != JOB_ABORTING)
        job_set_status(job, JOB_ABORTING);
}

// -- the end of a group ---------------------------------------------------------------------------

static void make_pending(JobGroup *group)
{
    group->is_finalized = true;
    for (guint i = 0; i < group->jobs->len; i++) {
        Job *job = group->jobs->pdata[i];
        job_set_status(job, JOB_PENDING);
        if (!job->waits_pending)
            continue;
        group->is_finalized = false;
        job_tell(job, (JobEvent){JOB_EVENT_PENDING});
    }
}

static void prepare_all(Fiber *self, JobGroup *group)
{
    for (guint i = 0; i < group->jobs->len && !group->has_failed; i++) {
        Job *job = group->jobs->pdata[i];
        g_autoptr(GError) error = NULL;
        int r = job->kind->prepare ? job->kind->prepare(self, job->work, &error) : 0;
        if (r == 0 && job->follower)
            r = job->follower->prepared(self, job->follower_arg, &error);
        if (r < 0) {
            note_failure(job, r, error);
            job_group_fail(group, job);
        }
    }
}

static bool clears_up(const Job *job)
{
    return job->result >= 0 && job->kind->clears_up && job->kind->clears_up(job->work);
}

static void commit(Fiber *self, Job *job)
{
    job->is_clearing_up = clears_up(job);
    job->group->n_clearing_up += job->is_clearing_up;
    if (job->is_clearing_up)
        fiber_queue_wake_all(&job->group->changed);
    if (job->kind->commit)
        job->kind->commit(self, job->work);
    job->group->n_clearing_up -= job->is_clearing_up;
    job->is_clearing_up = false;
}

static void end_one(Fiber *self, Job *job)
{
    JobTable *table = job->table;
    const JobKind *kind = job->kind;
    if (job->group->has_failed && job->result == 0)
        note_failure(job, -ECANCELED, NULL);
    if (job_is_cancelled(job->control))
        give_up_later(job);
    if (job->result >= 0)
        commit(self, job);
    else if (kind->abort)
        kind->abort(self, job->work);
    if (kind->clean)
        kind->clean(self, job->work);
    loop_timer_stop(job->control_loop, &job->give_up);
    if (job->follower)
        job->follower->ended(self, job->follower_arg, job->result < 0 ? job->error : NULL);
    bool is_cancelled = job->result < 0 && job_is_cancelled(job->control);
    job_tell(job, (JobEvent){is_cancelled ? JOB_EVENT_CANCELLED : JOB_EVENT_COMPLETED});
    g_ptr_array_remove(job->group->jobs, job);
    job_set_status(job, JOB_CONCLUDED);
    if (!job->waits_concluded) {
        job_set_status(job, JOB_NULL);
        job_forget(job);
    }
    job_table_wake(table);
}

typedef struct LateEnd {
    Job *job;
    FiberWaitGroup *all;
} LateEnd;

static void end_late(Fiber *self, void *arg)
{
    LateEnd *end = arg;
    end_one(self, end->job);
    fiber_wait_group_done(end->all);
}

// Those that clear up end beside each other, once nobody waits for them.
static void end_jobs(Fiber *self, JobGroup *group)
{
    FiberWaitGroup all = {0};
    for (guint i = 0; i < group->jobs->len;) {
        if (clears_up(group->jobs->pdata[i]) && !group->has_failed)
            i++;
        else
            end_one(self, group->jobs->pdata[i]);
    }
    guint n = group->jobs->len;
    g_autofree LateEnd *ends = g_new(LateEnd, n);
    for (guint i = 0; i < n; i++)
        ends[i] = (LateEnd){group->jobs->pdata[i], &all};
    fiber_wait_group_add(&all, n);
    for (guint i = 0; i < n; i++)
        if (i + 1 == n || fiber_spawn_reserve(fiber_loop(self), "job end", end_late, &ends[i]) < 0)
            end_late(self, &ends[i]);
    fiber_wait_group_wait(self, &all);
}

static void end_group(Fiber *self, JobGroup *group)
{
    group->n_refs++;
    if (!group->has_failed)
        make_pending(group);
    while (!group->is_finalized && !group->has_failed)
        fiber_queue_wait(self, &group->changed, false, "job: pending");
    group->is_ending = true;
    if (!group->has_failed)
        prepare_all(self, group);
    end_jobs(self, group);
    group->is_over = true;
    fiber_queue_wake_all(&group->changed);
    job_group_unref(group);
}

void job_group_wait(Fiber *self, JobGroup *group)
{
    group->n_refs++;
    while (!group->is_over && !group->n_clearing_up)
        fiber_queue_wait(self, &group->changed, false, "job: its end");
    job_group_unref(group);
}

// -- the start ------------------------------------------------------------------------------------

static void live(Fiber *self, void *arg)
{
    Job *job = arg;
    JobGroup *group = job->group;
    int r = 0;
    if (job->loop == fiber_loop(self))
        run(self, job); // what fails at once has done so when the command returns, as in QEMU
    else
        r = remote_call_fiber_reserve(self, job->loop, run, job);
    job_control_end(job->control);
    loop_timer_stop(job->control_loop, &job->give_up);
    if (r == 0)
        r = job->result;
    if (r >= 0 && job_is_cancelled(job->control))
        r = -ECANCELED;
    job->result = MIN(r, 0);
    if (r < 0) {
        note_failure(job, r, job->run_error);
        job_group_fail(group, job);
    } else {
        job_set_status(job, JOB_WAITING);
    }
    if (--group->n_left == 0)
        end_group(self, group);
}

void job_follow(Job *job, const JobFollower *follower, void *arg)
{
    g_assert(job->status == JOB_CREATED);
    job->follower = follower;
    job->follower_arg = arg;
}

void job_start(Fiber *self, Job *job, Loop *loop)
{
    job->loop = loop;
    job->control_loop = fiber_loop(self);
    job->give_up.fn = give_up;
    job_control_begin(job->control, loop, fiber_loop(self), hear, job);
    job_set_status(job, JOB_RUNNING);
    if (fiber_spawn_reserve(fiber_loop(self), "job", live, job) < 0)
        live(self, job);
}

static void leave_group(Job *job)
{
    g_assert(job->status == JOB_CREATED);
    job->group->n_left--;
}

void job_drop(Job *job)
{
    leave_group(job);
    job_set_status(job, JOB_NULL);
    job_forget(job);
}

void job_drop_cancelled(Job *job)
{
    leave_group(job);
    job_set_status(job, JOB_ABORTING);
    job_set_status(job, JOB_CONCLUDED);
    job_set_status(job, JOB_NULL);
    job_forget(job);
}
