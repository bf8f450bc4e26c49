// SPDX-License-Identifier: LGPL-2.1-or-later
// Looks at jobs and dismisses them. What a query tells are the table and the progress, which the
// work counts in atomics: it waits for nobody. Control loop.
#include "jobs.h"

#include <errno.h>

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"

static const QmpType status_type = {
    .name = "JobStatus",
    .kind = QMP_ENUM,
    .doc = "States of a job: created, running ⇄ paused, ready ⇄ standby, waiting, pending, "
           "concluded, and null when it is gone; aborting, when it failed or was cancelled.",
    .values = (const char *const[]){"undefined", "created", "running", "paused", "ready", "standby",
                                    "waiting", "pending", "aborting", "concluded", "null", NULL},
};
static const QmpType type_type = {
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
            {"type", &type_type, .doc = "what it does"},
            {"status", &status_type, .doc = "where it is"},
            {"current-progress", &qmp_int, .doc = "how much is done, in a unit of its own"},
            {"total-progress", &qmp_int, .doc = "how much there is, as far as is known"},
            {"error", &qmp_str, true, "why it failed"},
            {0}},
};
static const QmpType job_infos = {.kind = QMP_ARRAY, .element = &info_type};

static const QmpType job_id_args = {
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
    if (job_error(job)) {
        g_autofree char *error = g_utf8_make_valid(job_error(job), -1);
        json_object_set_new(info, "error", json_string(error));
    }
    return info;
}

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

static int dismiss(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                   GError **error)
{
    Job *job = job_table_get(call->daemon->jobs, qmp_args_str(args, "id"), error);
    return job ? job_dismiss(job, error) : -ENOENT;
}

static const QmpType io_status = {
    .name = "BlockDeviceIoStatus",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"ok", "failed", "nospace", NULL},
};
static const QmpType block_job_info = {
    .name = "BlockJobInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"type", &type_type, .doc = "what it does"},
            {"device", &qmp_str, .doc = "its id"},
            {"len", &qmp_int, .doc = "how much there is, in bytes"},
            {"offset", &qmp_int, .doc = "how much of it is done"},
            {"busy", &qmp_bool, .doc = "whether it is at work right now"},
            {"paused", &qmp_bool, .doc = "whether somebody paused it"},
            {"speed", &qmp_int, .doc = "its limit, in bytes a second; 0: none"},
            {"io-status", &io_status, .doc = "of its last request"},
            {"ready", &qmp_bool, .doc = "whether it can be completed"},
            {"status", &status_type, .doc = "where it is"},
            {"auto-finalize", &qmp_bool, .doc = "whether it goes on from pending by itself"},
            {"auto-dismiss", &qmp_bool, .doc = "whether it is forgotten when it has ended"},
            {"error", &qmp_str, true, "why it failed"},
            {0}},
};
static const QmpType block_job_infos = {.kind = QMP_ARRAY, .element = &block_job_info};

// The jobs that there are so far make files; they are jobs, and no block jobs.
static int query_block_jobs(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    *ret_reply = json_array();
    return 0;
}

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
                                   {"status", &status_type, .doc = "the new one"},
                                   {0}},
};

static const QmpEvent events[] = {
    {"JOB_STATUS_CHANGE", &status_change, "A job is in another state."},
    {0},
};

static const QmpCommand commands[] = {
    {"query-jobs", NULL, &job_infos, "All jobs, also those that have ended and were not dismissed.",
     query_jobs},
    {"query-block-jobs", NULL, &block_job_infos,
     "The jobs that copy from node to node. There are none yet: jobs of type create are told by "
     "query-jobs alone.",
     query_block_jobs},
    {"job-dismiss", &job_id_args, NULL,
     "Forgets a job that has ended. Until then its result stays known, and its id taken.", dismiss},
    {0},
};

const QmpFamily qmp_jobs_family = {.title = "Jobs", .commands = commands, .events = events};
