// SPDX-License-Identifier: LGPL-2.1-or-later
// From the start of a job to its end. Control loop: each job has a fiber here that waits for the
// end of the work. The last one of a group to come back ends them all:
//
//     all well → pending → finalized → each prepared → each committed, cleaned, concluded
//     one failed, or was cancelled, at any step → each aborted, cleaned, concluded
#include <errno.h>

#include "chain-core/remote-call.h"
#include "job-private.h"

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
        if (r < 0) {
            note_failure(job, r, error);
            job_group_fail(group, job);
        }
    }
}

static void end_one(Fiber *self, Job *job)
{
    JobTable *table = job->table;
    const JobKind *kind = job->kind;
    if (job->group->has_failed && job->result == 0)
        note_failure(job, -ECANCELED, NULL);
    void (*how)(Fiber *, void *) = job->result < 0 ? kind->abort : kind->commit;
    if (how)
        how(self, job->work);
    if (kind->clean)
        kind->clean(self, job->work);
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
    while (group->jobs->len)
        end_one(self, group->jobs->pdata[0]);
    group->is_over = true;
    fiber_queue_wake_all(&group->changed);
    job_group_unref(group);
}

void job_group_wait(Fiber *self, JobGroup *group)
{
    group->n_refs++;
    while (!group->is_over)
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

void job_start(Fiber *self, Job *job, Loop *loop)
{
    job->loop = loop;
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
