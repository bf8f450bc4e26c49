// SPDX-License-Identifier: LGPL-2.1-or-later
// What users ask of jobs, and the words in which it is refused. Control loop.
#include <errno.h>

#include "job-private.h"

int job_check_verb(const Job *job, JobVerb verb, GError **error)
{
    bool is_too_late = job->group->is_ending && verb != JOB_DISMISS;
    if (job->is_clearing_up && (verb == JOB_CANCEL || verb == JOB_SET_SPEED))
        return 0;
    if (job_status_allows(job->status, verb) && !is_too_late)
        return 0;
    g_set_error(error, JOB_ERROR, EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'",
                job->id, job_status_name(job->status), job_verb_name(verb));
    return -EPERM;
}

static int refuse(GError **error, const char *text)
{
    g_set_error_literal(error, JOB_ERROR, EPERM, text);
    return -EPERM;
}

// Whether it has to be waited for: the work is over, and the end follows at once.
static bool cancel(Job *job)
{
    job_cancel_work(job);
    if (job->is_clearing_up || (job->status != JOB_WAITING && job->status != JOB_PENDING))
        return false;
    job_group_fail(job->group, job);
    return true;
}

int job_cancel(Fiber *self, Job *job, bool force, GError **error)
{
    if (!force && job_control_pauses(job->control)) {
        g_set_error(error, JOB_ERROR, EPERM, "The block job for device '%s' is currently paused",
                    job->id);
        return -EPERM;
    }
    int r = job_check_verb(job, JOB_CANCEL, error);
    if (r < 0)
        return r;
    if (!force && (job->status == JOB_READY || job->status == JOB_STANDBY))
        job_control_ask_end(job->control, JOB_END_CANCEL);
    else if (cancel(job))
        job_group_wait(self, job->group);
    return 0;
}

int job_pause(Job *job, GError **error)
{
    int r = job_check_verb(job, JOB_PAUSE, error);
    if (r < 0)
        return r;
    if (job_control_pauses(job->control))
        return refuse(error, "Job is already paused");
    job_control_pause(job->control);
    return 0;
}

int job_resume(Job *job, GError **error)
{
    if (!job_control_pauses(job->control))
        return refuse(error, "Can't resume a job that was not paused");
    int r = job_check_verb(job, JOB_RESUME, error);
    if (r == 0)
        job_control_resume(job->control);
    return r;
}

int job_set_speed(Job *job, int64_t speed, GError **error)
{
    int r = job_check_verb(job, JOB_SET_SPEED, error);
    if (r < 0)
        return r;
    if (speed < 0)
        return refuse(error, "Parameter 'speed' expects a non-negative value");
    job_control_set_speed(job->control, (uint64_t)speed);
    return 0;
}

int job_change_copy_mode(Job *job, CopyMode mode, GError **error)
{
    int r = job_check_verb(job, JOB_CHANGE, error);
    if (r < 0)
        return r;
    if (job_control_copy_mode(job->control) == COPY_MODE_AUTOMATIC)
        return refuse(error, "Job type does not support change");
    job_control_ask_copy_mode(job->control, mode);
    return 0;
}

int job_complete(Job *job, GError **error)
{
    int r = job_check_verb(job, JOB_COMPLETE, error);
    if (r < 0)
        return r;
    if (job_is_cancelled(job->control) || job_asked_end(job->control) == JOB_END_CANCEL) {
        g_set_error(error, JOB_ERROR, EPERM, "The active block job '%s' cannot be completed",
                    job->id);
        return -EPERM;
    }
    job_control_ask_end(job->control, JOB_END_COMPLETE);
    return 0;
}

int job_finalize(Fiber *self, Job *job, GError **error)
{
    int r = job_check_verb(job, JOB_FINALIZE, error);
    if (r < 0)
        return r;
    job->group->is_finalized = true;
    fiber_queue_wake_all(&job->group->changed);
    job_group_wait(self, job->group);
    return 0;
}

int job_dismiss(Job *job, GError **error)
{
    int r = job_check_verb(job, JOB_DISMISS, error);
    if (r < 0)
        return r;
    job_set_status(job, JOB_NULL);
    job_forget(job);
    return 0;
}

void job_table_end(Fiber *self, JobTable *table)
{
    const GPtrArray *jobs = job_table_all(table);
    for (guint i = 0; i < jobs->len; i++) {
        Job *job = jobs->pdata[i];
        if (job_check_verb(job, JOB_CANCEL, NULL) == 0)
            cancel(job);
        else if (job->group->is_ending)
            job_control_cancel(job->control); // what it is yet to clear up is cut short
    }
    job_table_wait(self, table);
    while (jobs->len)
        job_dismiss(jobs->pdata[0], NULL);
}
