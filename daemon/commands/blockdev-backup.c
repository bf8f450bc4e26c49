// SPDX-License-Identifier: LGPL-2.1-or-later
// blockdev-backup, alone and as an action of transactions. Which nodes it is about, and what the
// table of nodes says; the work is jobs/backup.c's, on the loop of the nodes, once they are held.
// The moment that it shows is the commit of the action, for all disks of a transaction the same.
// Control loop.
#include "blockdev-backup.h"

#include <errno.h>

#include "block-jobs.h"
#include "chain-core/node-compressed.h"
#include "chain-core/remote-call.h"
#include "daemon/bitmaps.h"
#include "daemon/daemon.h"
#include "daemon/drain-rehearsal.h"
#include "daemon/job-nodes.h"
#include "daemon/log.h"
#include "daemon/named-hold.h"
#include "daemon/qmp/args.h"
#include "job-start.h"
#include "jobs/backup.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType perf = {
    .name = "BackupPerf",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"use-copy-range", &qmp_bool, true,
             "whether the host may share or copy bytes between files. true, unless given"},
            {"max-workers", &qmp_int, true,
             "how many chunks are under way at most, as far as they fit into 16 MiB"},
            {"max-chunk", &qmp_int, true,
             "how many bytes are copied at once at most; 0, which is the default: as many as is "
             "good"},
            {"min-cluster-size", &qmp_size, true,
             "how many bytes are copied at once at least, a power of 2 of at most 64 MiB; a "
             "cluster of the target in any case. 0, unless given"},
            {0}},
};
static const QmpType on_cbw_error = {
    .name = "OnCbwError",
    .kind = QMP_ENUM,
    .doc = "What to do when a client is about to change what cannot be saved before: "
           "`break-snapshot` ends the backup with an error, and the client goes on; "
           "`break-guest-write` fails the client's request, and the backup goes on.",
    .values = (const char *const[]){"break-guest-write", "break-snapshot", NULL},
};
const QmpType qmp_blockdev_backup_args = {
    .name = "BlockdevBackup",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"job-id", &qmp_str, true, "of the job; required, as nodes have no devices"},
            {"device", &qmp_str, .doc = "the node that is copied"},
            {"target", &qmp_str, .doc = "the node to which, of the same size"},
            {"sync", &qmp_mirror_sync_mode, .doc = "what is copied"},
            {"bitmap", &qmp_str, true,
             "of the device: what is copied, for sync `bitmap` and `incremental`; what becomes of "
             "it, bitmap-mode says"},
            {"bitmap-mode", &qmp_bitmap_sync_mode, true,
             "what becomes of the bitmap; required with it, but for sync `incremental`, which is "
             "`on-success`"},
            {"compress", &qmp_bool, true,
             "whether clusters are compressed, as far as that makes them smaller; the target has "
             "to be a qcow2 image without a data file. false, unless given"},
            {"speed", &qmp_int, true,
             "at most, in bytes a second; 0, which is the default: no limit"},
            {"on-source-error", &qmp_on_error, true, "report, unless given"},
            {"on-target-error", &qmp_on_error, true, "report, unless given"},
            {"on-cbw-error", &on_cbw_error, true,
             "an extension. break-snapshot, unless given; backups of QEMU break-guest-write"},
            {"cbw-timeout", &qmp_uint32, true,
             "an extension: for how many seconds a client's request waits at most for what it is "
             "about to change to be saved; then it is as if that had failed. 20, unless given; 0: "
             "no limit, as in QEMU"},
            {"discard-source", &qmp_bool, true,
             "whether what has been copied is discarded in the device, which has to be writable: "
             "for snapshot-access nodes, whose scratch images get smaller by that: a qcow2 image "
             "gives back what is free in it whenever that is 64 MiB. Of a disk itself that is "
             "discarded "
             "of which the copy is durable; the disk has lost it then, whatever becomes of the "
             "backup. "
             "false, unless given"},
            {"filter-node-name", &qmp_str, true, "checked only: the job's filter has no name"},
            {"x-perf", &perf, true, "for experts", "unstable"},
            {"x-verify", &qmp_bool, true,
             "an extension: whether what was written is read back from the target and compared. "
             "Compressed clusters of the device are inflated, unless `compress` is given. false, "
             "unless given"},
            {"auto-finalize", &qmp_bool, true, "true, unless given; else by job-finalize"},
            {"auto-dismiss", &qmp_bool, true, "true, unless given; else by job-dismiss"},
            {0}},
};

// What is held of whom; the table in chain-core/node-hold.h.
// Several backups of one source put their filters over each other.
static const NodePerms source_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_COVER,
    .shared =
        NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_WRITE | NODE_PERM_COVER,
};
static const NodePerms discarded_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_COVER | NODE_PERM_WRITE,
    .shared =
        NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_WRITE | NODE_PERM_COVER,
};
static const NodePerms target_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE,
    .shared = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED,
};
// An overlay of the source that does not show the moment shows what clients write by and by.
static const NodePerms overlay_perms = {
    .held = NODE_PERM_WRITE,
    .shared = NODE_PERM_WRITE_UNCHANGED,
};

// -- the job --------------------------------------------------------------------------------------

typedef struct BackupJob {
    Daemon *daemon;
    NamedNode *source, *target;
    BackupSpec spec;
    char *owner;     // "backup job 'j'"
    NodeUse *moment; // the use that became one of the moment, until that has come; or NULL
    NamedHold *hold;
    Backup *backup;
} BackupJob;

static int run(Fiber *self, JobControl *control, void *work, GError **error)
{
    return backup_run(self, control, ((const BackupJob *)work)->backup, error);
}

static int settle_well_on_loop(Fiber *self, void *work, GError **error)
{
    return backup_settle(self, ((BackupJob *)work)->backup, true, error);
}

static int settle_failed_on_loop(Fiber *self, void *work, GError **error)
{
    return backup_settle(self, ((BackupJob *)work)->backup, false, error);
}

static void settle(Fiber *self, BackupJob *job, JobNodesCallFn *fn)
{
    g_autoptr(GError) error = NULL;
    if (job_nodes_call(self, job->target, fn, job, &error) < 0)
        log_line(LOG_ERROR,
                 "after %s: the bitmap of '%s' is as after one that failed, so the next backup "
                 "copies more than it would have to: %s",
                 job->owner, job->source->name, error->message);
}

static void commit_job(Fiber *self, void *work)
{
    settle(self, work, settle_well_on_loop);
}

static void abort_job(Fiber *self, void *work)
{
    settle(self, work, settle_failed_on_loop);
}

static void end_on_loop(Fiber *self, void *arg)
{
    backup_end(self, arg);
}

// With the graph lock.
static void free_job(Fiber *self, void *work)
{
    BackupJob *job = work;
    if (job->backup) {
        remote_call_fiber_reserve(self, named_node_loop(job->target), end_on_loop, job->backup);
        nodes_refresh(self, job->source); // it had a bitmap of the job's
    }
    job->target = NULL; // what is released may go
    if (job->moment)
        job->moment->is_moment = false;
    if (job->hold)
        named_hold_release(self, job->daemon->nodes, job->hold);
    g_free(job->owner);
    g_free(job);
}

static void clean_job(Fiber *self, void *work)
{
    const BackupJob *job = work;
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    fiber_mutex_lock(self, lock);
    free_job(self, work);
    fiber_mutex_unlock(self, lock);
}

static void give_up(void *work)
{
    const BackupJob *job = work;
    if (job->target)
        nodes_give_up_own(job->target);
}

static const JobKind backup_kind = {
    .type = "backup",
    .is_block_job = true,
    .run = run,
    .give_up = give_up,
    .commit = commit_job,
    .abort = abort_job,
    .clean = clean_job,
};

// -- what it is about -----------------------------------------------------------------------------

static BackupSync sync_of(const json_t *args)
{
    const char *sync = qmp_args_str(args, "sync");
    return g_str_equal(sync, "full")   ? BACKUP_SYNC_FULL
           : g_str_equal(sync, "top")  ? BACKUP_SYNC_TOP
           : g_str_equal(sync, "none") ? BACKUP_SYNC_NONE
                                       : BACKUP_SYNC_BITMAP;
}

static BackupBitmapMode bitmap_mode_of(const json_t *args)
{
    const char *mode = qmp_args_str(args, "bitmap-mode");
    return mode && g_str_equal(mode, "never")    ? BACKUP_BITMAP_NEVER
           : mode && g_str_equal(mode, "always") ? BACKUP_BITMAP_ALWAYS
                                                 : BACKUP_BITMAP_ON_SUCCESS;
}

static int check_bitmap_args(const json_t *args, GError **error)
{
    const char *sync = qmp_args_str(args, "sync"), *mode = qmp_args_str(args, "bitmap-mode");
    bool is_incremental = g_str_equal(sync, "incremental"),
         has_bitmap = qmp_args_have(args, "bitmap");
    if (sync_of(args) == BACKUP_SYNC_BITMAP && !has_bitmap)
        return qmp_fail(error, "must provide a valid bitmap name for '%s' sync mode", sync);
    if (is_incremental && mode && !g_str_equal(mode, "on-success"))
        return qmp_fail(error, "Bitmap sync mode must be 'on-success' when using sync mode '%s'",
                        sync);
    if (!has_bitmap && mode)
        return qmp_fail(error, "Cannot specify bitmap sync mode without a bitmap");
    return 0;
}

static int check_bitmap_use(const json_t *args, const DirtyBitmap *bitmap, GError **error)
{
    const char *sync = qmp_args_str(args, "sync"), *mode = qmp_args_str(args, "bitmap-mode");
    if (!mode && !g_str_equal(sync, "incremental"))
        return qmp_fail(error, "Bitmap sync mode must be given when providing a bitmap");
    int r = dirty_bitmap_check(bitmap, DIRTY_BITMAP_USE_READ, error);
    if (r < 0)
        return r;
    if (sync_of(args) == BACKUP_SYNC_NONE)
        return qmp_fail(error, "sync mode '%s' does not produce meaningful bitmap outputs", sync);
    if (bitmap_mode_of(args) == BACKUP_BITMAP_NEVER && sync_of(args) != BACKUP_SYNC_BITMAP)
        return qmp_fail(error,
                        "Bitmap sync mode '%s' has no meaningful effect when combined with sync "
                        "mode '%s'",
                        mode, sync);
    return 0;
}

static int find_bitmap(const json_t *args, BackupJob *job, GError **error)
{
    const char *name = qmp_args_str(args, "bitmap");
    int r = check_bitmap_args(args, error);
    if (r < 0 || !name)
        return r;
    job->spec.bitmap = bitmaps_of(job->source, name);
    if (!job->spec.bitmap)
        return qmp_fail(error, "Bitmap '%s' could not be found", name);
    return check_bitmap_use(args, job->spec.bitmap, error);
}

static int find_nodes(const json_t *args, BackupJob *job, GError **error)
{
    const Nodes *nodes = job->daemon->nodes;
    job->source = job_nodes_find_device(nodes, qmp_args_str(args, "device"), error);
    if (!job->source || named_node_check_no_image(job->source, "a backup", error) < 0)
        return -ENODEV;
    job->target = job_nodes_find_device(nodes, qmp_args_str(args, "target"), error);
    return job->target ? find_bitmap(args, job, error) : -ENODEV;
}

static int check_least(const json_t *perf_given, GError **error)
{
    enum { MOST = 64 << 20 };
    uint64_t least = (uint64_t)qmp_args_int(perf_given, "min-cluster-size", 0);
    if (least > MOST)
        return qmp_fail(error, "min-cluster-size too large: %" G_GUINT64_FORMAT " > %d", least,
                        MOST);
    if (least & (least - 1))
        return qmp_fail(error, "Could not create node: Cannot create block-copy-state: "
                               "min-cluster-size needs to be a power of 2");
    return 0;
}

static int check_perf(const json_t *args, GError **error)
{
    const json_t *given = json_object_get(args, "x-perf");
    int64_t workers = qmp_args_int(given, "max-workers", 1);
    if (workers < 1 || workers > INT_MAX)
        return qmp_fail(error, "max-workers must be between 1 and %d", INT_MAX);
    if (qmp_args_int(given, "max-chunk", 0) < 0)
        return qmp_fail(error, "max-chunk must be zero (which means no limit) or positive");
    return check_least(given, error);
}

static int check_max_chunk(const json_t *args, const BackupJob *job, GError **error)
{
    int64_t most = qmp_args_int(json_object_get(args, "x-perf"), "max-chunk", 0);
    uint64_t granule =
        backup_granule_bytes(job->source->node, job->target->node, job->spec.granularity_bits);
    if (most == 0 || (uint64_t)most >= granule)
        return 0;
    return qmp_fail(error,
                    "Required max-chunk (%" G_GINT64_FORMAT
                    ") is less than backup cluster size (%" G_GUINT64_FORMAT ")",
                    most, granule);
}

static int check_filter_name(const json_t *args, const BackupJob *job, GError **error)
{
    int r = job_nodes_check_filter_name(job->daemon->nodes, qmp_args_str(args, "filter-node-name"),
                                        error);
    if (r < 0)
        g_prefix_error(error, "Could not create node: ");
    return r;
}

static int check_nodes(const json_t *args, const BackupJob *job, GError **error)
{
    if (named_node_image(job->source) == named_node_image(job->target))
        return qmp_fail(error, "Source and target cannot be the same");
    if (job->spec.compresses && !node_can_compress(job->target->node))
        return qmp_fail(error,
                        "Compression is not supported for this drive %s: only qcow2 images "
                        "without a data file have compressed clusters",
                        job->target->name);
    if (job->target->facts.read_only || (job->spec.discards_source && job->source->facts.read_only))
        return qmp_fail(error, "Block node is read-only");
    return check_perf(args, error);
}

static int check(const json_t *args, const BackupJob *job, GError **error)
{
    int r = check_nodes(args, job, error);
    if (r == 0 && job->spec.bitmap && job->spec.bitmap_mode != BACKUP_BITMAP_NEVER)
        r = dirty_bitmap_check(job->spec.bitmap, DIRTY_BITMAP_USE_CHANGE, error);
    if (r == 0 && job->source->facts.size_bytes != job->target->facts.size_bytes)
        r = qmp_fail(error, "Source and target image have different sizes");
    if (r == 0)
        r = check_filter_name(args, job, error);
    return r == 0 ? check_max_chunk(args, job, error) : r;
}

// -- the start ------------------------------------------------------------------------------------

// Of what was pulled for a backup before there is nothing to begin with.
static int find_overlay(BackupJob *job, GError **error)
{
    NodeUse *edge = named_node_edge(named_node_image(job->target), "backing");
    job->spec.is_over_source = edge && edge->used == job->source;
    if (!job->spec.is_over_source)
        return 0;
    if (edge->is_moment)
        return qmp_fail(error,
                        "Node '%s' shows the moment of a backup before: delete it, and add a new "
                        "overlay of '%s'",
                        edge->by->name, job->source->name);
    if (job->spec.sync == BACKUP_SYNC_NONE) {
        edge->is_moment = true;
        job->moment = edge;
    }
    return 0;
}

static int hold(Fiber *self, BackupJob *job, GError **error)
{
    bool is_unread = job->spec.is_over_source && !job->moment;
    NamedNeed needs[] = {
        {job->source, "source", job->spec.discards_source ? discarded_perms : source_perms},
        {job->target, "target", is_unread ? overlay_perms : target_perms},
    };
    return named_hold_new(self, job->daemon->nodes, job->owner, needs, G_N_ELEMENTS(needs),
                          &job->hold, error);
}

static int begin_on_loop(Fiber *self, void *work, GError **error)
{
    BackupJob *job = work;
    job->backup = backup_begin(self, &job->spec, error);
    return job->backup ? 0 : -EINVAL;
}

static int begin(Fiber *self, BackupJob *job, const char *id, GError **error)
{
    int r = job_nodes_join(self, job->daemon->nodes, job->source, job->target, error);
    if (r == 0)
        r = find_overlay(job, error);
    if (r == 0)
        r = hold(self, job, error);
    if (r < 0)
        return r;
    job->spec.name = id;
    job->spec.source = job->source->node;
    job->spec.target = job->target->node;
    return job_nodes_call(self, job->target, begin_on_loop, job, error);
}

// Takes `work`.
static int make_job(Fiber *self, BackupJob *work, const QmpCall *call, const json_t *args,
                    QmpJobStart *ret_start, GError **error)
{
    JobSpec spec = qmp_block_job_spec(args, &backup_kind, work);
    spec.total = work->spec.sync == BACKUP_SYNC_FULL ? work->source->facts.size_bytes : 0;
    spec.group = call->group;
    Job *job = job_new(work->daemon->jobs, &spec, error);
    if (!job) {
        free_job(self, work);
        return -EINVAL;
    }
    int r = job_set_speed(job, qmp_args_int(args, "speed", 0), error);
    work->owner = g_strdup_printf("%s job '%s'", backup_kind.type, spec.id);
    if (r == 0)
        r = begin(self, work, spec.id, error);
    if (r == 0) {
        *ret_start = (QmpJobStart){job, named_node_loop(work->target), work, free_job};
    } else {
        job_drop(job);
        free_job(self, work);
    }
    return r;
}

static BackupSpec spec_of(const json_t *args)
{
    enum { CBW_TIMEOUT_S = 20 };
    const json_t *given = json_object_get(args, "x-perf");
    const char *on_cbw = qmp_args_str(args, "on-cbw-error");
    uint64_t timeout_s = (uint64_t)qmp_args_int(args, "cbw-timeout", CBW_TIMEOUT_S);
    uint64_t chunk = (uint64_t)MAX(qmp_args_int(given, "max-chunk", 0), 0);
    uint64_t least = (uint64_t)qmp_args_int(given, "min-cluster-size", 0);
    uint64_t workers = (uint64_t)MAX(qmp_args_int(given, "max-workers", 0), 0);
    return (BackupSpec){
        .sync = sync_of(args),
        .bitmap_mode = bitmap_mode_of(args),
        .max_chunk_bytes = chunk,
        .max_chunks = workers,
        .granularity_bits = least ? (uint32_t)__builtin_ctzll(least) : 0,
        .verifies = qmp_args_bool(args, "x-verify", false),
        .discards_source = qmp_args_bool(args, "discard-source", false),
        .compresses = qmp_args_bool(args, "compress", false),
        .uses_buffers = !qmp_args_bool(given, "use-copy-range", true),
        .on_source_error = qmp_args_on_error(args, "on-source-error"),
        .on_target_error = qmp_args_on_error(args, "on-target-error"),
        .breaks_guests = on_cbw && g_str_equal(on_cbw, "break-guest-write"),
        .cbw_timeout_ns = timeout_s * 1000000000,
    };
}

int qmp_prepare_backup(Fiber *self, const QmpCall *call, const json_t *args, QmpJobStart *ret_start,
                       GError **error)
{
    BackupJob *work = g_new(BackupJob, 1);
    *work = (BackupJob){.daemon = call->daemon, .spec = spec_of(args)};
    int r = find_nodes(args, work, error);
    if (r == 0)
        r = check(args, work, error);
    if (r == 0)
        return make_job(self, work, call, args, ret_start, error);
    free_job(self, work);
    return r;
}

// -- the moment -----------------------------------------------------------------------------------

static BackupJob *job_of(void *state)
{
    return ((const QmpJobStart *)state)->work;
}

static int prepare_action(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                          GError **error)
{
    return qmp_prepare_job_action(self, call, data, qmp_prepare_backup, ret_state, error);
}

static int drain_on_loop(Fiber *self, void *work, GError **error)
{
    return backup_drain(self, ((BackupJob *)work)->backup, error);
}

int qmp_drain_backup_action(Fiber *self, void *state, GError **error)
{
    BackupJob *job = job_of(state);
    return job_nodes_call(self, job->target, drain_on_loop, job, error);
}

static void commit_on_loop(void *arg)
{
    backup_commit(arg);
}

void qmp_commit_backup_action(Fiber *self, void *state)
{
    BackupJob *job = job_of(state);
    job->moment = NULL; // for good
    remote_call_plain(self, named_node_loop(job->target), commit_on_loop, job->backup);
}

static void resume_on_loop(void *arg)
{
    backup_resume(arg);
}

void qmp_resume_backup_action(Fiber *self, void *state)
{
    const BackupJob *job = job_of(state);
    remote_call_plain(self, named_node_loop(job->target), resume_on_loop, job->backup);
}

const char *qmp_drained_by_backup(const json_t *data)
{
    return qmp_args_str(data, "device");
}

static const QmpAction actions[] = {
    {"blockdev-backup", &qmp_blockdev_backup_args,
     "As the command. The backups of one transaction are of the same moment.", prepare_action,
     QMP_BACKUP_MOMENT, QMP_JOB_ACTION},
    {0},
};

// As a transaction of this one does.
static int run_alone(Fiber *self, const QmpCall *call, const json_t *args, QmpPrepareJobFn *prepare,
                     GError **error)
{
    void *state;
    int r = qmp_prepare_job_action(self, call, args, prepare, &state, error);
    if (r < 0)
        return r;
    r = qmp_drain_backup_action(self, state, error);
    if (r == 0) {
        qmp_commit_backup_action(self, state);
        qmp_resume_backup_action(self, state);
        qmp_start_job_action(self, state);
    } else {
        qmp_abort_job_action(self, state);
    }
    qmp_clean_job_action(self, state);
    return r;
}

int qmp_start_backup(Fiber *self, const QmpCall *call, const json_t *args, QmpPrepareJobFn *prepare,
                     GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    int r = drain_rehearse(self, call->daemon->nodes, qmp_drained_by_backup(args),
                           "the backup was not begun", error);
    if (r < 0)
        return r;
    fiber_mutex_lock(self, lock);
    r = run_alone(self, call, args, prepare, error);
    fiber_mutex_unlock(self, lock);
    return r;
}

static int start_backup(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return qmp_start_backup(self, call, args, qmp_prepare_backup, error);
}

static const QmpCommand commands[] = {
    {"blockdev-backup", &qmp_blockdev_backup_args, NULL,
     "Starts a job that copies to another node what a node shows at this moment, while its clients "
     "go on writing: what they are about to change is saved first. Zeros and holes are not read. "
     "By a bitmap only what has changed since another backup.",
     start_backup},
    {0},
};

const QmpFamily qmp_blockdev_backup_family = {
    .title = "Backup", .commands = commands, .actions = actions};
