// SPDX-License-Identifier: LGPL-2.1-or-later
// All jobs: what is asked of them by id, and told of them. A query tells the table and atomics of
// the work: it waits for nobody. Control loop.
#include "jobs.h"

#include <errno.h>

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"

const QmpType qmp_job_status = {
    .name = "JobStatus",
    .kind = QMP_ENUM,
    .doc = "States of a job; see [Jobs](#jobs).",
    .values = (const char *const[]){"undefined", "created", "running", "paused", "ready", "standby",
                                    "waiting", "pending", "aborting", "concluded", "null", NULL},
};
const QmpType qmp_job_type = {
    .name = "JobType",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"commit", "stream", "mirror", "backup", "create", NULL},
};
static const QmpType info_type = {
    .name = "JobInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"id", &qmp_str, .doc = "its id"},
            {"type", &qmp_job_type, .doc = "what it does"},
            {"status", &qmp_job_status, .doc = "where it is"},
            {"current-progress", &qmp_int, .doc = "how much is done, in a unit of its own"},
            {"total-progress", &qmp_int, .doc = "how much there is, as far as is known"},
            {"error", &qmp_str, true, "why it failed"},
            {0}},
};
static const QmpType infos_type = {.kind = QMP_ARRAY, .element = &info_type};

static const QmpType id_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "of the job"}, {0}},
};

static json_t *describe(Fiber *self, const Job *job)
{
    JobInfo of = job_info(job, loop_now_ns(fiber_loop(self)));
    json_t *info =
        json_pack("{s:s, s:s, s:s, s:I, s:I}", "id", job_id(job), "type", job_kind(job)->type,
                  "status", job_status_name(job_status(job)), "current-progress",
                  (json_int_t)of.current, "total-progress", (json_int_t)of.total);
    qmp_jobs_add_error(info, job);
    return info;
}

void qmp_jobs_add_error(json_t *info, const Job *job)
{
    if (!job_error(job))
        return;
    g_autofree char *error = g_utf8_make_valid(job_error(job), -1);
    json_object_set_new(info, "error", json_string(error));
}

// -- commands -------------------------------------------------------------------------------------

static int query_jobs(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    const GPtrArray *jobs = job_table_all(call->daemon->jobs);
    json_t *infos = json_array();
    for (guint i = 0; i < jobs->len; i++)
        json_array_append_new(infos, describe(self, jobs->pdata[i]));
    *ret_reply = infos;
    return 0;
}

static Job *find(const QmpCall *call, const json_t *args, GError **error)
{
    return job_table_get(call->daemon->jobs, qmp_args_str(args, "id"), error);
}

static int cancel(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                  GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_cancel(self, job, true, error) : -ENOENT;
}

static int pause_job(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                     GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_pause(job, error) : -ENOENT;
}

static int resume(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                  GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_resume(job, error) : -ENOENT;
}

static int complete(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                    GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_complete(job, error) : -ENOENT;
}

static int finalize(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                    GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_finalize(self, job, error) : -ENOENT;
}

static int dismiss(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                   GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_dismiss(job, error) : -ENOENT;
}

// -- events ---------------------------------------------------------------------------------------

void qmp_jobs_happened(void *arg, const Job *job, const JobEvent *event)
{
    if (event->kind == JOB_EVENT_STATUS)
        qmp_emit(
            arg, "JOB_STATUS_CHANGE",
            json_pack("{s:s, s:s}", "status", job_status_name(job_status(job)), "id", job_id(job)));
}

static const QmpType status_change = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "of the job"},
                                   {"status", &qmp_job_status, .doc = "the new one"},
                                   {0}},
};

static const QmpEvent events[] = {
    {"JOB_STATUS_CHANGE", &status_change, "A job is in another state."},
    {0},
};

static const QmpCommand commands[] = {
    {"query-jobs", NULL, &infos_type,
     "All jobs, also those that have ended and were not dismissed.", query_jobs, .is_query = true},
    {"job-pause", &id_args, NULL,
     "Pauses a job: it finishes what is in flight, and is `paused` then.", pause_job},
    {"job-resume", &id_args, NULL,
     "Lets a job go on that was paused, by a user or for an error; what failed is tried again.",
     resume},
    {"job-cancel", &id_args, NULL,
     "Ends a job before its time. Every image is valid then, and shows what it did before. A "
     "server with the target of a mirror or backup that has not answered 5 seconds later is given "
     "up: what is asked of it fails from then on, until its node is deleted and added again.",
     cancel},
    {"job-complete", &id_args, NULL, "Has a job that is ready do what it was made ready for.",
     complete},
    {"job-finalize", &id_args, NULL,
     "Lets a job that is pending, and all of its group, take effect. They have concluded on "
     "return.",
     finalize},
    {"job-dismiss", &id_args, NULL,
     "Forgets a job that has ended. Until then its result stays known, and its id taken.", dismiss},
    {0},
};

static char *text(void)
{
    g_autofree char *states = job_states_text();
    return g_strdup_printf(
        "A job works beside all other requests. Its states, which may follow, and what may be "
        "asked of it there; anything else is refused with an error:\n\n%s\n"
        "A job that is well goes from `running` (by `ready`, if it has to be completed) to "
        "`waiting`, for the other jobs of its group, to `pending`, for `job-finalize` unless it "
        "finalizes by itself, and to `concluded`; one that failed or was cancelled goes by "
        "`aborting`. Then it is dismissed, by itself or by `job-dismiss`. Its result stays known "
        "until then.\n",
        states);
}

const QmpFamily qmp_jobs_family = {
    .title = "Jobs",
    .text = text,
    .commands = commands,
    .events = events,
};
