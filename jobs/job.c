// SPDX-License-Identifier: LGPL-2.1-or-later
// The lifecycle of jobs. Who makes each transition:
//
//     created ─ job_start ─→ running ⇄ paused
//                              │ ↘ ready ⇄ standby
//                              ↓      ↓
//              job_conclude: waiting → pending → concluded ─ job_dismiss ─→ null
//              or, with an error: aborting ────→ concluded
//
// A job that was never started can be concluded with an error.
#include "jobs/job.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "chain-core/fiber-sync.h"

struct Job {
    JobTable *table;
    char *id, *error;
    const char *type;
    JobStatus status;
    JobProgress progress;
};

struct JobTable {
    JobStatusFn *changed;
    void *arg;
    GPtrArray *jobs;
    FiberQueue ended; // a job has
};

static const char *const status_names[JOB_N_STATUSES] = {
    "created", "running", "paused",   "ready",     "standby",
    "waiting", "pending", "aborting", "concluded", "null",
};

static const char *const verb_names[JOB_N_VERBS] = {
    "cancel", "pause", "resume", "set-speed", "complete", "finalize", "dismiss", "change",
};

// Which state may follow which.
static const bool transitions[JOB_N_STATUSES][JOB_N_STATUSES] = {
    [JOB_CREATED] = {[JOB_RUNNING] = true, [JOB_ABORTING] = true},
    [JOB_RUNNING] =
        {[JOB_PAUSED] = true, [JOB_READY] = true, [JOB_WAITING] = true, [JOB_ABORTING] = true},
    [JOB_PAUSED] = {[JOB_RUNNING] = true, [JOB_ABORTING] = true},
    [JOB_READY] = {[JOB_STANDBY] = true, [JOB_WAITING] = true, [JOB_ABORTING] = true},
    [JOB_STANDBY] = {[JOB_READY] = true, [JOB_ABORTING] = true},
    [JOB_WAITING] = {[JOB_PENDING] = true, [JOB_ABORTING] = true},
    [JOB_PENDING] = {[JOB_ABORTING] = true, [JOB_CONCLUDED] = true},
    [JOB_ABORTING] = {[JOB_CONCLUDED] = true},
    [JOB_CONCLUDED] = {[JOB_NULL] = true},
};

// Which verb is allowed in which state.
static const bool allowed[JOB_N_VERBS][JOB_N_STATUSES] = {
    [JOB_CANCEL] = {[JOB_CREATED] = true,
                    [JOB_RUNNING] = true,
                    [JOB_PAUSED] = true,
                    [JOB_READY] = true,
                    [JOB_STANDBY] = true,
                    [JOB_WAITING] = true,
                    [JOB_PENDING] = true},
    [JOB_PAUSE] = {[JOB_CREATED] = true,
                   [JOB_RUNNING] = true,
                   [JOB_PAUSED] = true,
                   [JOB_READY] = true,
                   [JOB_STANDBY] = true},
    [JOB_RESUME] = {[JOB_CREATED] = true,
                    [JOB_RUNNING] = true,
                    [JOB_PAUSED] = true,
                    [JOB_READY] = true,
                    [JOB_STANDBY] = true},
    [JOB_SET_SPEED] = {[JOB_CREATED] = true,
                       [JOB_RUNNING] = true,
                       [JOB_PAUSED] = true,
                       [JOB_READY] = true,
                       [JOB_STANDBY] = true},
    [JOB_COMPLETE] = {[JOB_READY] = true},
    [JOB_FINALIZE] = {[JOB_PENDING] = true},
    [JOB_DISMISS] = {[JOB_CONCLUDED] = true},
    [JOB_CHANGE] = {[JOB_CREATED] = true,
                    [JOB_RUNNING] = true,
                    [JOB_PAUSED] = true,
                    [JOB_READY] = true,
                    [JOB_STANDBY] = true},
};

static void set_status(Job *job, JobStatus status)
{
    g_assert(transitions[job->status][status]);
    job->status = status;
    job->table->changed(job->table->arg, job);
}

static void job_free(gpointer p)
{
    Job *job = p;
    g_free(job->id);
    g_free(job->error);
    g_free(job);
}

GQuark job_error_quark(void)
{
    return g_quark_from_static_string("job-error");
}

// -- the table ------------------------------------------------------------------------------------

JobTable *job_table_new(JobStatusFn *changed, void *arg)
{
    JobTable *table = g_new0(JobTable, 1);
    table->changed = changed;
    table->arg = arg;
    table->jobs = g_ptr_array_new_with_free_func(job_free);
    return table;
}

static bool any_runs(const JobTable *table)
{
    for (guint i = 0; i < table->jobs->len; i++)
        if (((Job *)table->jobs->pdata[i])->status != JOB_CONCLUDED)
            return true;
    return false;
}

void job_table_free(JobTable *table)
{
    if (!table)
        return;
    g_assert(!any_runs(table));
    g_ptr_array_unref(table->jobs);
    g_free(table);
}

static Job *find(const JobTable *table, const char *id)
{
    for (guint i = 0; i < table->jobs->len; i++)
        if (g_str_equal(((Job *)table->jobs->pdata[i])->id, id))
            return table->jobs->pdata[i];
    return NULL;
}

Job *job_table_get(const JobTable *table, const char *id, GError **error)
{
    Job *job = find(table, id);
    if (!job)
        g_set_error(error, JOB_ERROR, ENOENT, "Job not found");
    return job;
}

const GPtrArray *job_table_all(const JobTable *table)
{
    return table->jobs;
}

void job_table_end(Fiber *self, JobTable *table)
{
    while (any_runs(table))
        fiber_queue_wait(self, &table->ended, false, "jobs: one still runs");
    while (table->jobs->len)
        job_dismiss(table->jobs->pdata[0], NULL);
}

// -- jobs -----------------------------------------------------------------------------------------

// A letter, then letters, digits and - . _
static bool is_well_formed(const char *id)
{
    if (!g_ascii_isalpha(*id))
        return false;
    return !id[strspn(id, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-._")];
}

Job *job_new(JobTable *table, const char *id, const char *type, GError **error)
{
    if (!is_well_formed(id)) {
        g_set_error(error, JOB_ERROR, EINVAL, "Invalid job ID '%s'", id);
        return NULL;
    }
    if (find(table, id)) {
        g_set_error(error, JOB_ERROR, EEXIST, "Job ID '%s' already in use", id);
        return NULL;
    }
    Job *job = g_new0(Job, 1);
    job->table = table;
    job->id = g_strdup(id);
    job->type = type;
    job->status = JOB_CREATED;
    g_ptr_array_add(table->jobs, job);
    table->changed(table->arg, job);
    return job;
}

const char *job_id(const Job *job)
{
    return job->id;
}

const char *job_type(const Job *job)
{
    return job->type;
}

JobStatus job_status(const Job *job)
{
    return job->status;
}

const char *job_status_name(JobStatus status)
{
    return status_names[status];
}

const char *job_error(const Job *job)
{
    return job->error;
}

JobProgress *job_progress(Job *job)
{
    return &job->progress;
}

void job_start(Job *job)
{
    set_status(job, JOB_RUNNING);
}

void job_conclude(Job *job, const char *error)
{
    job->error = g_strdup(error);
    if (error) {
        set_status(job, JOB_ABORTING);
    } else {
        set_status(job, JOB_WAITING);
        set_status(job, JOB_PENDING);
    }
    set_status(job, JOB_CONCLUDED);
    fiber_queue_wake_all(&job->table->ended);
}

int job_check_verb(const Job *job, JobVerb verb, GError **error)
{
    if (allowed[verb][job->status])
        return 0;
    g_set_error(error, JOB_ERROR, EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'",
                job->id, status_names[job->status], verb_names[verb]);
    return -EPERM;
}

int job_dismiss(Job *job, GError **error)
{
    int r = job_check_verb(job, JOB_DISMISS, error);
    if (r < 0)
        return r;
    set_status(job, JOB_NULL);
    g_ptr_array_remove(job->table->jobs, job);
    return 0;
}
