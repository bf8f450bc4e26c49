// SPDX-License-Identifier: LGPL-2.1-or-later
// Block jobs: the same verbs as for all jobs, under the names that are older, and what is told of
// them in bytes. Control loop.
#include "block-jobs.h"

#include <errno.h>

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "jobs.h"

// -- queries --------------------------------------------------------------------------------------

static const QmpType io_status = {
    .name = "BlockDeviceIoStatus",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"ok", "failed", "nospace", NULL},
};
static const QmpType progress_type = {
    .name = "BlockJobProgress",
    .kind = QMP_OBJECT,
    .doc = "An extension: what has become of the bytes up to `offset`, and how fast.",
    .members =
        (const QmpMember[]){
            {"copied", &qmp_int,
             .doc = "bytes that were read and written, those that keep points among them"},
            {"shared", &qmp_int, .doc = "bytes that files share since, without a copy"},
            {"skipped", &qmp_int,
             .doc = "bytes for which there was nothing to do, that stay compressed, or that a top "
                    "which stays has given back"},
            {"rate", &qmp_int, .doc = "bytes copied or shared a second, in the last seconds"},
            {"seconds-left", &qmp_int, true,
             "at this rate; not known while nothing is copied, or of a backup that goes on until "
             "it is cancelled"},
            {0}},
};
const QmpType qmp_mirror_copy_mode = {
    .name = "MirrorCopyMode",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"background", "write-blocking", NULL},
};
static const QmpType info_type = {
    .name = "BlockJobInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"type", &qmp_job_type, .doc = "what it does"},
            {"device", &qmp_str, .doc = "its id"},
            {"len", &qmp_int, .doc = "how much there is, in bytes"},
            {"offset", &qmp_int, .doc = "how much of it is done"},
            {"busy", &qmp_bool, .doc = "whether it is at work right now"},
            {"paused", &qmp_bool, .doc = "whether somebody paused it, or an error did"},
            {"speed", &qmp_int, .doc = "its limit, in bytes a second; 0: none"},
            {"io-status", &io_status, .doc = "what it is paused for, if for an error"},
            {"ready", &qmp_bool, .doc = "whether it can be completed"},
            {"status", &qmp_job_status, .doc = "where it is"},
            {"auto-finalize", &qmp_bool, .doc = "whether it goes on from pending by itself"},
            {"auto-dismiss", &qmp_bool, .doc = "whether it is forgotten when it has ended"},
            {"progress", &progress_type, .doc = "an extension"},
            {"copy-mode", &qmp_mirror_copy_mode, true,
             "an extension: of a job that stays in step with what clients write, what it is now"},
            {"actively-synced", &qmp_bool, true,
             "of the same: whether source and target show the same, and go on to as what is "
             "written goes to both at once"},
            {"error", &qmp_str, true, "why it failed"},
            {0}},
};
static const QmpType infos_type = {.kind = QMP_ARRAY, .element = &info_type};

static json_t *describe_progress(const JobInfo *of)
{
    json_t *progress =
        json_pack("{s:I, s:I, s:I, s:I}", "copied", (json_int_t)of->bytes[JOB_BYTES_COPIED],
                  "shared", (json_int_t)of->bytes[JOB_BYTES_SHARED], "skipped",
                  (json_int_t)of->bytes[JOB_BYTES_SKIPPED], "rate", (json_int_t)of->rate);
    if (of->seconds_left >= 0)
        json_object_set_new(progress, "seconds-left", json_integer(of->seconds_left));
    return progress;
}

static const char *copy_mode_name(CopyMode mode)
{
    return mode == COPY_MODE_WRITE_BLOCKING ? "write-blocking" : "background";
}

static void add_copy_mode(json_t *info, const JobInfo *of)
{
    if (of->copy_mode == COPY_MODE_AUTOMATIC)
        return;
    json_object_set_new(info, "copy-mode", json_string(copy_mode_name(of->copy_mode)));
    json_object_set_new(info, "actively-synced", json_boolean(of->is_synced));
}

static json_t *describe(Fiber *self, const Job *job)
{
    static const char *const io_names[] = {"ok", "failed", "nospace"};
    JobInfo of = job_info(job, loop_now_ns(fiber_loop(self)));
    JobStatus status = job_status(job);
    json_t *info =
        json_pack("{s:s, s:s, s:I, s:I, s:b, s:b, s:I, s:s, s:b, s:s, s:b, s:b, s:o}", "type",
                  job_kind(job)->type, "device", job_id(job), "len", (json_int_t)of.total, "offset",
                  (json_int_t)of.current, "busy", of.is_busy, "paused", of.is_paused, "speed",
                  (json_int_t)of.speed, "io-status", io_names[of.io_status], "ready",
                  status == JOB_READY || status == JOB_STANDBY, "status", job_status_name(status),
                  "auto-finalize", !job_waits_pending(job), "auto-dismiss",
                  !job_waits_concluded(job), "progress", describe_progress(&of));
    add_copy_mode(info, &of);
    qmp_jobs_add_error(info, job);
    return info;
}

static int query_block_jobs(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                            GError **error)
{
    const GPtrArray *jobs = job_table_all(call->daemon->jobs);
    json_t *infos = json_array();
    for (guint i = 0; i < jobs->len; i++)
        if (job_kind(jobs->pdata[i])->is_block_job)
            json_array_append_new(infos, describe(self, jobs->pdata[i]));
    *ret_reply = infos;
    return 0;
}

// -- verbs ----------------------------------------------------------------------------------------

static const QmpType device_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the job's id"}, {0}},
};
static const QmpType id_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the job's"}, {0}},
};
static const QmpType speed_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the job's id"},
                                   {"speed", &qmp_int, .doc = "in bytes a second; 0: no limit"},
                                   {0}},
};
static const QmpType cancel_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"device", &qmp_str, .doc = "the job's id"},
                            {"force", &qmp_bool, true,
                             "also when it is paused; and one that is ready is cancelled, where "
                             "without it, it ends well without completing"},
                            {0}},
};
static const QmpType change_copy_mode = {
    .name = "BlockJobChangeOptionsMirror",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"copy-mode", &qmp_mirror_copy_mode, .doc = "from now on"}, {0}},
};
static const QmpType change_args = {
    .kind = QMP_OBJECT,
    .name = "BlockJobChangeOptions",
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the job's"},
                                   {"type", &qmp_job_type, .doc = "the job's"},
                                   {0}},
    .tag = "type",
    .variants =
        (const QmpVariant[]){{"mirror", &change_copy_mode}, {"commit", &change_copy_mode}, {0}},
};

static Job *find(const QmpCall *call, const json_t *args, GError **error)
{
    const char *id = qmp_args_str(args, "device") ?: qmp_args_str(args, "id");
    Job *job = job_table_get(call->daemon->jobs, id, NULL);
    if (job && job_kind(job)->is_block_job)
        return job;
    g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_ACTIVE, "Block job '%s' not found", id);
    return NULL;
}

static int set_speed(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                     GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_set_speed(job, qmp_args_int(args, "speed", 0), error) : -ENOENT;
}

static int cancel(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                  GError **error)
{
    Job *job = find(call, args, error);
    return job ? job_cancel(self, job, qmp_args_bool(args, "force", false), error) : -ENOENT;
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

static int change(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                  GError **error)
{
    Job *job = find(call, args, error);
    if (!job)
        return -ENOENT;
    if (!g_str_equal(job_kind(job)->type, qmp_args_str(args, "type")))
        return qmp_fail(error, "Job type does not support change");
    return job_change_copy_mode(job, qmp_args_copy_mode(args, "copy-mode"), error);
}

// -- starting one ---------------------------------------------------------------------------------

const QmpType qmp_on_error = {
    .name = "BlockdevOnError",
    .kind = QMP_ENUM,
    .doc =
        "What to do when a job fails to read or write: `report` ends it, `ignore` goes on with the "
        "rest and lets it fail at its end, `stop` pauses it until it is resumed and tries again, "
        "`enospc` does so where there is no space, and reports else; `auto` is `enospc`. With "
        "`report` a job whose data cannot fit fails before its first byte, and says what it needs "
        "and what there is.",
    .values = (const char *const[]){"report", "ignore", "enospc", "stop", "auto", NULL},
};

const QmpType qmp_mirror_sync_mode = {
    .name = "MirrorSyncMode",
    .kind = QMP_ENUM,
    .doc = "What is copied: `full`, all that the node shows; `top`, what its topmost layer owns; "
           "`none`, only what is written from now on (by a backup: what was there before); "
           "`bitmap`, what is dirty in the bitmap (by a mirror: an extension); `incremental`, by a "
           "backup, that with bitmap-mode `on-success`.",
    .values = (const char *const[]){"top", "full", "none", "incremental", "bitmap", NULL},
};
const QmpType qmp_bitmap_sync_mode = {
    .name = "BitmapSyncMode",
    .kind = QMP_ENUM,
    .doc = "What becomes of a bitmap that a job is given, which goes on noting what is written "
           "meanwhile: `on-success`, it is clean, but for what was written since, after a job that "
           "ended well; `always`, that, and after one that did not it is what the target lacks; "
           "`never`, nothing.",
    .values = (const char *const[]){"on-success", "never", "always", NULL},
};

JobOnError qmp_args_on_error(const json_t *args, const char *name)
{
    static const struct {
        const char *word;
        JobOnError policy;
    } words[] = {
        {"report", JOB_ON_ERROR_REPORT}, {"ignore", JOB_ON_ERROR_IGNORE},
        {"enospc", JOB_ON_ERROR_ENOSPC}, {"auto", JOB_ON_ERROR_ENOSPC},
        {"stop", JOB_ON_ERROR_STOP},
    };
    const char *word = qmp_args_str(args, name);
    for (unsigned i = 0; word && i < G_N_ELEMENTS(words); i++)
        if (g_str_equal(words[i].word, word))
            return words[i].policy;
    return JOB_ON_ERROR_REPORT;
}

CopyMode qmp_args_copy_mode(const json_t *args, const char *name)
{
    const char *mode = qmp_args_str(args, name);
    if (!mode)
        return COPY_MODE_AUTOMATIC;
    return g_str_equal(mode, "background") ? COPY_MODE_BACKGROUND : COPY_MODE_WRITE_BLOCKING;
}

JobSpec qmp_block_job_spec(const json_t *args, const JobKind *kind, void *work)
{
    return (JobSpec){
        .id = qmp_args_str(args, "job-id") ?: "",
        .kind = kind,
        .work = work,
        .waits_pending = !qmp_args_bool(args, "auto-finalize", true),
        .waits_concluded = !qmp_args_bool(args, "auto-dismiss", true),
    };
}

// -- events ---------------------------------------------------------------------------------------

static void emit_end(const Daemon *daemon, const Job *job, const char *event)
{
    JobInfo of = job_info(job, 0);
    json_t *data = json_pack("{s:s, s:s, s:I, s:I, s:I}", "type", job_kind(job)->type, "device",
                             job_id(job), "len", (json_int_t)of.total, "offset",
                             (json_int_t)of.current, "speed", (json_int_t)of.speed);
    if (g_str_equal(event, "BLOCK_JOB_COMPLETED"))
        qmp_jobs_add_error(data, job);
    qmp_emit(daemon, event, data);
}

static void emit_copy_mode(const Daemon *daemon, const Job *job)
{
    JobInfo of = job_info(job, 0);
    qmp_emit(daemon, "BLOCK_JOB_COPY_MODE_CHANGE",
             json_pack("{s:s, s:s, s:s}", "type", job_kind(job)->type, "device", job_id(job),
                       "copy-mode", copy_mode_name(of.copy_mode)));
}

void qmp_block_jobs_happened(void *arg, const Job *job, const JobEvent *event)
{
    if (!job_kind(job)->is_block_job)
        return;
    static const char *const actions[] = {"report", "ignore", "stop"};
    switch (event->kind) {
    case JOB_EVENT_STATUS:
        break;
    case JOB_EVENT_READY:
        emit_end(arg, job, "BLOCK_JOB_READY");
        break;
    case JOB_EVENT_COMPLETED:
        emit_end(arg, job, "BLOCK_JOB_COMPLETED");
        break;
    case JOB_EVENT_CANCELLED:
        emit_end(arg, job, "BLOCK_JOB_CANCELLED");
        break;
    case JOB_EVENT_PENDING:
        qmp_emit(arg, "BLOCK_JOB_PENDING",
                 json_pack("{s:s, s:s}", "type", job_kind(job)->type, "id", job_id(job)));
        break;
    case JOB_EVENT_COPY_MODE:
        emit_copy_mode(arg, job);
        break;
    case JOB_EVENT_ERROR:
        qmp_emit(arg, "BLOCK_JOB_ERROR",
                 json_pack("{s:s, s:s, s:s}", "device", job_id(job), "operation",
                           event->is_read ? "read" : "write", "action", actions[event->action]));
        break;
    }
}

#define END_MEMBERS                                                                                \
    {"type", &qmp_job_type, .doc = "what the job does"},                                           \
        {"device", &qmp_str, .doc = "the job's id"},                                               \
        {"len", &qmp_int, .doc = "how much there is, in bytes"},                                   \
        {"offset", &qmp_int, .doc = "how much of it is done"},                                     \
    {                                                                                              \
        "speed", &qmp_int, .doc = "its limit, in bytes a second; 0: none"                          \
    }

static const QmpType ready_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){END_MEMBERS, {0}},
};
static const QmpType completed_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){END_MEMBERS, {"error", &qmp_str, true, "why it failed"}, {0}},
};
static const QmpType pending_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"type", &qmp_job_type, .doc = "what the job does"},
                                   {"id", &qmp_str, .doc = "the job's"},
                                   {0}},
};
static const QmpType copy_mode_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"type", &qmp_job_type, .doc = "what the job does"},
                                   {"device", &qmp_str, .doc = "the job's id"},
                                   {"copy-mode", &qmp_mirror_copy_mode, .doc = "what it is now"},
                                   {0}},
};
static const QmpType operation = {
    .name = "IoOperationType",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"read", "write", NULL},
};
static const QmpType action = {
    .name = "BlockErrorAction",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"ignore", "report", "stop", NULL},
};
static const QmpType error_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the job's id"},
                                   {"operation", &operation, .doc = "what failed"},
                                   {"action", &action, .doc = "what is done about it"},
                                   {0}},
};

static const QmpEvent events[] = {
    {"BLOCK_JOB_READY", &ready_data, "A job can be completed."},
    {"BLOCK_JOB_PENDING", &pending_data, "A job waits for `block-job-finalize`."},
    {"BLOCK_JOB_COMPLETED", &completed_data, "A job has ended, well or not."},
    {"BLOCK_JOB_CANCELLED", &ready_data, "A job was cancelled, and has ended."},
    {"BLOCK_JOB_COPY_MODE_CHANGE", &copy_mode_data,
     "An extension: what clients write gets to a job's target in another way from now on, since "
     "`block-job-change` asked for it, or what was left no longer got less."},
    {"BLOCK_JOB_ERROR", &error_data, "A read or a write of a job failed."},
    {0},
};

static const QmpCommand commands[] = {
    {"query-block-jobs", NULL, &infos_type,
     "The jobs that copy between nodes. Others are told by `query-jobs` alone.", query_block_jobs,
     .is_query = true},
    {"block-job-set-speed", &speed_args, NULL, "Another limit, from now on.", set_speed},
    {"block-job-pause", &device_args, NULL, "As `job-pause`.", pause_job},
    {"block-job-resume", &device_args, NULL, "As `job-resume`.", resume},
    {"block-job-cancel", &cancel_args, NULL, "As `job-cancel`, but for what is ready or paused.",
     cancel},
    {"block-job-complete", &device_args, NULL, "As `job-complete`.", complete},
    {"block-job-finalize", &id_args, NULL, "As `job-finalize`.", finalize},
    {"block-job-dismiss", &id_args, NULL, "As `job-dismiss`.", dismiss},
    {"block-job-change", &change_args, NULL,
     "Changes what a job does while it runs: in which way what clients write gets to its target. "
     "For a job of type `commit`, and a change to `background`, an extension.",
     change},
    {0},
};

const QmpFamily qmp_block_jobs_family = {
    .title = "Block jobs",
    .commands = commands,
    .events = events,
};
