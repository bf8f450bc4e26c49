// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs by id, and what is known of one. Control loop. Who makes each transition:
//
//     created ─ job_start ─→ running ⇄ paused           the work's news (hear)
//        │                     │ ↘ ready ⇄ standby
//     job_drop                 ↓     ↓
//        ↓              the work's end: waiting ─ all of the group ─→ pending
//      null                    │           │                             │ prepared
//                              ↓           ↓                             ↓
//                  it failed: aborting ────┴───────────────────────→ concluded ─ job_dismiss → null
#include "jobs/job.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "job-private.h"

struct JobTable {
    JobEventFn *happened;
    void *arg;
    GPtrArray *jobs;
    FiberQueue ended; // a job has
};

GQuark job_error_quark(void)
{
    return g_quark_from_static_string("job-error");
}

// -- the table ------------------------------------------------------------------------------------

JobTable *job_table_new(JobEventFn *happened, void *arg)
{
    JobTable *table = g_new0(JobTable, 1);
    table->happened = happened;
    table->arg = arg;
    table->jobs = g_ptr_array_new();
    return table;
}

void job_table_free(JobTable *table)
{
    if (!table)
        return;
    while (table->jobs->len) {
        Job *job = table->jobs->pdata[0];
        g_assert(job->status == JOB_CONCLUDED);
        job_forget(job);
    }
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

static bool any_runs(const JobTable *table)
{
    for (guint i = 0; i < table->jobs->len; i++)
        if (((Job *)table->jobs->pdata[i])->status != JOB_CONCLUDED)
            return true;
    return false;
}

void job_table_wait(Fiber *self, JobTable *table)
{
    while (any_runs(table))
        fiber_queue_wait(self, &table->ended, false, "jobs: one still runs");
}

void job_table_wake(JobTable *table)
{
    fiber_queue_wake_all(&table->ended);
}

// -- jobs -----------------------------------------------------------------------------------------

// A letter, then letters, digits and - . _
static bool is_well_formed(const char *id)
{
    if (!g_ascii_isalpha(*id))
        return false;
    return !id[strspn(id, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-._")];
}

Job *job_new(JobTable *table, const JobSpec *spec, GError **error)
{
    if (!is_well_formed(spec->id)) {
        g_set_error(error, JOB_ERROR, EINVAL, "Invalid job ID '%s'", spec->id);
        return NULL;
    }
    if (find(table, spec->id)) {
        g_set_error(error, JOB_ERROR, EEXIST, "Job ID '%s' already in use", spec->id);
        return NULL;
    }
    Job *job = g_new(Job, 1);
    *job = (Job){
        .table = table,
        .group = spec->group ?: job_group_new(),
        .control = job_control_new(spec->speed),
        .kind = spec->kind,
        .work = spec->work,
        .id = g_strdup(spec->id),
        .waits_pending = spec->waits_pending,
        .waits_concluded = spec->waits_concluded,
        .status = JOB_CREATED,
    };
    job_set_total(job->control, spec->total);
    job_control_begin_copy_mode(job->control, spec->copy_mode);
    if (spec->group)
        job->group->n_refs++;
    job->group->n_left++;
    g_ptr_array_insert(job->group->jobs, 0, job);
    g_ptr_array_add(table->jobs, job);
    job_tell(job, (JobEvent){JOB_EVENT_STATUS});
    return job;
}

void job_tell(const Job *job, JobEvent event)
{
    job->table->happened(job->table->arg, job, &event);
}

void job_set_status(Job *job, JobStatus status)
{
    g_assert(job_status_may_follow(job->status, status));
    job->status = status;
    job_tell(job, (JobEvent){JOB_EVENT_STATUS});
}

void job_forget(Job *job)
{
    g_ptr_array_remove(job->table->jobs, job);
    job_table_wake(job->table);
    g_ptr_array_remove(job->group->jobs, job);
    job_group_unref(job->group);
    job_control_drop(job->control);
    g_clear_error(&job->run_error);
    g_free(job->id);
    g_free(job->error);
    g_free(job);
}

JobGroup *job_group_new(void)
{
    JobGroup *group = g_new0(JobGroup, 1);
    group->n_refs = 1;
    group->jobs = g_ptr_array_new();
    return group;
}

void job_group_unref(JobGroup *group)
{
    if (!group || --group->n_refs > 0)
        return;
    g_ptr_array_unref(group->jobs);
    g_free(group);
}

void job_group_fail(JobGroup *group, const Job *job)
{
    if (group->has_failed)
        return;
    group->has_failed = true;
    for (guint i = 0; i < group->jobs->len; i++)
        if (group->jobs->pdata[i] != job)
            job_cancel_work(group->jobs->pdata[i]);
    fiber_queue_wake_all(&group->changed);
}

// -- what is known --------------------------------------------------------------------------------

const char *job_id(const Job *job)
{
    return job->id;
}

const JobKind *job_kind(const Job *job)
{
    return job->kind;
}

JobStatus job_status(const Job *job)
{
    return job->status;
}

const char *job_error(const Job *job)
{
    return job->error;
}

bool job_waits_pending(const Job *job)
{
    return job->waits_pending;
}

bool job_waits_concluded(const Job *job)
{
    return job->waits_concluded;
}

static JobIoStatus io_status_of(unsigned pauses)
{
    return pauses & JOB_PAUSED_BY_ENOSPC  ? JOB_IO_NOSPACE
           : pauses & JOB_PAUSED_BY_ERROR ? JOB_IO_FAILED
                                          : JOB_IO_OK;
}

JobInfo job_info(const Job *job, uint64_t now_ns)
{
    const JobControl *control = job->control;
    unsigned pauses = job_control_pauses(control);
    JobInfo info = {
        .total = job_control_total(control),
        .rate = job_control_rate(control, now_ns),
        .seconds_left = -1,
        .speed = job_speed(control),
        .is_busy = job_control_is_busy(control),
        .is_paused = pauses,
        .io_status = io_status_of(pauses),
        .copy_mode = job_control_copy_mode(control),
        .is_synced = job_control_is_synced(control),
    };
    for (JobBytes how = 0; how < JOB_N_BYTES; how++) {
        info.bytes[how] = job_control_count(control, how);
        info.current += info.bytes[how];
    }
    info.total = MAX(info.total, info.current);
    if (job_control_is_endless(control))
        return info;
    if (info.current == info.total)
        info.seconds_left = 0;
    else if (info.rate)
        info.seconds_left = (int64_t)((info.total - info.current + info.rate - 1) / info.rate);
    return info;
}
