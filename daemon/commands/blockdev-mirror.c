// SPDX-License-Identifier: LGPL-2.1-or-later
// blockdev-mirror. Which nodes it is about, what the table of nodes says before and after; the work
// and the switch are jobs/mirror.c's, on the loop of the nodes, once they are held. Control loop.
#include "blockdev-mirror.h"

#include <errno.h>

#include "block-jobs.h"
#include "chain-core/remote-call.h"
#include "daemon/bitmaps.h"
#include "daemon/daemon.h"
#include "daemon/job-nodes.h"
#include "daemon/named-hold.h"
#include "daemon/node-instances.h"
#include "daemon/node-overlay.h"
#include "daemon/qmp/args.h"
#include "job-start.h"
#include "jobs/mirror.h"

// -- types ----------------------------------------------------------------------------------------

const QmpType qmp_blockdev_mirror_args = {
    .name = "BlockdevMirror",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"job-id", &qmp_str, true, "of the job; required, as nodes have no devices"},
            {"device", &qmp_str, .doc = "the node that is copied, with no node over it"},
            {"target", &qmp_str, .doc = "the node to which, of the same size"},
            {"replaces", &qmp_str, true,
             "in whose place the target comes: the device, which is the default, or what it "
             "filters"},
            {"sync", &qmp_mirror_sync_mode,
             .doc = "what is copied beside what is written meanwhile"},
            {"speed", &qmp_int, true,
             "at most, in bytes a second; 0, which is the default: no limit"},
            {"granularity", &qmp_uint32, true,
             "of what is noted as changed, a power of 2; at least a cluster of the target and "
             "64 KiB, which is the default"},
            {"buf-size", &qmp_int, true,
             "how many bytes are under way at most; 16 MiB, unless given"},
            {"on-source-error", &qmp_on_error, true, "report, unless given"},
            {"on-target-error", &qmp_on_error, true, "report, unless given"},
            {"filter-node-name", &qmp_str, true, "checked only: the job's filter has no name"},
            {"copy-mode", &qmp_mirror_copy_mode, true,
             "how what is written meanwhile comes to the target. Unless given, in the background, "
             "and write-blocking once clients make work more than half as fast as it is done"},
            {"unmap", &qmp_bool, true,
             "an extension: whether zeros take no space in the target. true, unless given"},
            {"target-is-zero", &qmp_bool, true,
             "whether all of the target reads as zeros now, so that none need be written. false, "
             "unless given"},
            {"bitmap", &qmp_str, true,
             "an extension: a bitmap of the device, of what to copy (sync `bitmap`), and what has "
             "not been (bitmap-mode)"},
            {"bitmap-mode", &qmp_bitmap_sync_mode, true,
             "an extension: what becomes of the bitmap; required with it"},
            {"x-verify", &qmp_bool, true,
             "an extension: whether what the job has written is read back from the target and "
             "compared, but for what clients write to both. Compressed clusters of the device are "
             "inflated. false, unless given"},
            {"auto-complete", &qmp_bool, true,
             "an extension: it completes as soon as it would be ready, and never is. false, unless "
             "given: by job-complete"},
            {"auto-finalize", &qmp_bool, true, "true, unless given; else by job-finalize"},
            {"auto-dismiss", &qmp_bool, true, "true, unless given; else by job-dismiss"},
            {0}},
};

// What is held of whom; the table in chain-core/node-hold.h.
static const NodePerms source_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_PLACE,
    .shared = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_WRITE,
};
static const NodePerms target_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE | NODE_PERM_PLACE,
    .shared = NODE_PERM_WRITE_UNCHANGED,
};
static const NodePerms replaced_perms = {
    .held = NODE_PERM_PLACE,
    .shared = NODE_PERMS_OF_CONTENT & ~NODE_PERM_RESIZE,
};

// -- the job --------------------------------------------------------------------------------------

typedef struct MirrorJob {
    Daemon *daemon;
    NamedNode *source, *target, *replaced;
    MirrorSpec spec;
    char *owner; // "mirror job 'j'"
    NamedHold *hold;
    Mirror *mirror;
    bool is_switched; // the target is in the place of the replaced node
} MirrorJob;

static int run(Fiber *self, JobControl *control, void *work, GError **error)
{
    return mirror_run(self, control, ((const MirrorJob *)work)->mirror, error);
}

static int come_close_on_loop(Fiber *self, void *work, GError **error)
{
    return mirror_come_close(self, ((MirrorJob *)work)->mirror, error);
}

static int switch_on_loop(Fiber *self, void *work, GError **error)
{
    MirrorJob *job = work;
    return mirror_switch(self, job->mirror, &job->is_switched, error);
}

// A target in the place of what nobody may write is not written any more.
static void note_switch(Fiber *self, void *work)
{
    const MirrorJob *job = work;
    g_autoptr(GPtrArray) changed = g_ptr_array_new();
    if (!job->is_switched)
        return;
    node_overlay_leave(job->replaced, job->target);
    if (job->replaced->facts.read_only)
        g_ptr_array_add(changed, job->target);
    job_nodes_make_read_only(self, changed, job->owner);
    nodes_refresh(self, job->target);
}

static int prepare(Fiber *self, void *work, GError **error)
{
    static const JobSwitch how = {come_close_on_loop, switch_on_loop, note_switch};
    const MirrorJob *job = work;
    return job_nodes_switch(self, job->daemon->nodes, job->target, &how, work, error);
}

static void end_on_loop(Fiber *self, void *arg)
{
    mirror_end(self, arg);
}

// With the graph lock.
static void free_job(Fiber *self, void *work)
{
    MirrorJob *job = work;
    if (job->mirror)
        remote_call_fiber_reserve(self, named_node_loop(job->target), end_on_loop, job->mirror);
    job->target = NULL; // what is released may go
    if (job->hold)
        named_hold_release(self, job->daemon->nodes, job->hold);
    g_free(job->owner);
    g_free(job);
}

static void clean(Fiber *self, void *work)
{
    const MirrorJob *job = work;
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    fiber_mutex_lock(self, lock);
    free_job(self, work);
    fiber_mutex_unlock(self, lock);
}

static void give_up(void *work)
{
    const MirrorJob *job = work;
    if (job->target)
        nodes_give_up_own(job->target);
}

static const JobKind mirror_kind = {
    .type = "mirror",
    .is_block_job = true,
    .can_be_ready = true,
    .run = run,
    .give_up = give_up,
    .prepare = prepare,
    .clean = clean,
};

// -- what it is about -----------------------------------------------------------------------------

static int check_granularity(int64_t granularity, GError **error)
{
    enum { LEAST = 512, MOST = 64 << 20 };
    if (granularity && (granularity < LEAST || granularity > MOST))
        return qmp_fail(error, "Parameter 'granularity' expects a value in range [512B, 64MB]");
    if (granularity & (granularity - 1))
        return qmp_fail(error, "Parameter 'granularity' expects a power of 2");
    return 0;
}

static int check_no_overlay(const NamedNode *named, GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && g_str_equal(use->role, "backing"))
            return qmp_fail(error, "Node '%s' is busy: node is used as backing hd of '%s'",
                            named->name, use->by->name);
    }
    return 0;
}

static bool is_filter_over(NamedNode *top, const NamedNode *wanted)
{
    for (; top != wanted; top = named_node_below(top))
        if (!top || !top->node->ops->is_filter)
            return false;
    return true;
}

static int find_replaced(const Nodes *nodes, const char *name, MirrorJob *job, GError **error)
{
    job->replaced = name ? nodes_find(nodes, name) : job->source;
    if (!job->replaced)
        return qmp_fail(error, "Failed to find node with node-name='%s'", name);
    int r = check_no_overlay(job->replaced, error);
    if (r == 0 && !is_filter_over(job->source, job->replaced))
        r = qmp_fail(error,
                     "Cannot replace '%s' by a node mirrored from '%s', because it cannot be "
                     "guaranteed that doing so would not lead to an abrupt change of visible data",
                     name, job->source->name);
    if (r == 0 && job->replaced->facts.size_bytes != job->source->facts.size_bytes)
        r = qmp_fail(error, "cannot replace image with a mirror image of different size");
    return r;
}

static int find_nodes(const Nodes *nodes, const json_t *args, MirrorJob *job, GError **error)
{
    job->source = job_nodes_find_device(nodes, qmp_args_str(args, "device"), error);
    int r = job->source ? job_nodes_check_root(job->source, error) : -ENODEV;
    if (r < 0)
        return r;
    job->target = job_nodes_find_device(nodes, qmp_args_str(args, "target"), error);
    r = job->target ? check_granularity(qmp_args_int(args, "granularity", 0), error) : -ENODEV;
    if (r == 0)
        r = named_node_check_change(job->source, NODE_PERM_PLACE, "another job", error);
    if (r == 0)
        r = check_no_overlay(job->target, error);
    return r == 0 ? find_replaced(nodes, qmp_args_str(args, "replaces"), job, error) : r;
}

static int find_sync(const char *name, MirrorSync *ret_sync, GError **error)
{
    static const struct {
        const char *name;
        MirrorSync sync;
    } syncs[] = {
        {"full", MIRROR_SYNC_FULL},
        {"top", MIRROR_SYNC_TOP},
        {"none", MIRROR_SYNC_NONE},
        {"bitmap", MIRROR_SYNC_BITMAP},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(syncs); i++) {
        if (g_str_equal(syncs[i].name, name)) {
            *ret_sync = syncs[i].sync;
            return 0;
        }
    }
    return qmp_fail(error, "Sync mode '%s' not supported", name);
}

static MirrorBitmapMode bitmap_mode_of(const json_t *args)
{
    const char *mode = qmp_args_str(args, "bitmap-mode");
    return g_str_equal(mode, "always")  ? MIRROR_BITMAP_ALWAYS
           : g_str_equal(mode, "never") ? MIRROR_BITMAP_NEVER
                                        : MIRROR_BITMAP_ON_SUCCESS;
}

// In the words of QEMU's backups.
static int check_bitmap(const json_t *args, const MirrorSpec *spec, GError **error)
{
    const char *sync = qmp_args_str(args, "sync"), *mode = qmp_args_str(args, "bitmap-mode");
    if (spec->sync == MIRROR_SYNC_NONE)
        return qmp_fail(error, "sync mode '%s' does not produce meaningful bitmap outputs", sync);
    if (spec->sync != MIRROR_SYNC_BITMAP && spec->bitmap_mode == MIRROR_BITMAP_NEVER)
        return qmp_fail(error,
                        "Bitmap sync mode '%s' has no meaningful effect when combined with sync "
                        "mode '%s'",
                        mode, sync);
    bool is_changed = spec->bitmap_mode != MIRROR_BITMAP_NEVER;
    return dirty_bitmap_check(spec->bitmap,
                              is_changed ? DIRTY_BITMAP_USE_CHANGE : DIRTY_BITMAP_USE_READ, error);
}

static int find_bitmap(const json_t *args, const MirrorJob *job, MirrorSpec *spec, GError **error)
{
    const char *name = qmp_args_str(args, "bitmap"), *sync = qmp_args_str(args, "sync");
    bool has_mode = qmp_args_have(args, "bitmap-mode");
    if (!name && spec->sync == MIRROR_SYNC_BITMAP)
        return qmp_fail(error, "must provide a valid bitmap name for '%s' sync mode", sync);
    if (!name)
        return has_mode ? qmp_fail(error, "Cannot specify bitmap sync mode without a bitmap") : 0;
    spec->bitmap = bitmaps_of(job->source, name);
    if (!spec->bitmap)
        return qmp_fail(error, "Bitmap '%s' could not be found", name);
    if (!has_mode)
        return qmp_fail(error, "Bitmap sync mode must be given when providing a bitmap");
    spec->bitmap_mode = bitmap_mode_of(args);
    return check_bitmap(args, spec, error);
}

static int check(const json_t *args, MirrorJob *job, GError **error)
{
    int r = find_sync(qmp_args_str(args, "sync"), &job->spec.sync, error);
    if (r == 0)
        r = find_bitmap(args, job, &job->spec, error);
    if (r == 0 && qmp_args_int(args, "buf-size", 0) < 0)
        r = qmp_fail(error, "Invalid parameter 'buf-size'");
    if (r == 0 && named_node_image(job->source) == named_node_image(job->target))
        r = qmp_fail(error, "Can't mirror node into itself");
    if (r == 0 && job->target->facts.read_only)
        r = qmp_fail(error, "Block node is read-only");
    return r == 0 ? job_nodes_check_filter_name(job->daemon->nodes,
                                                qmp_args_str(args, "filter-node-name"), error)
                  : r;
}

// -- the start ------------------------------------------------------------------------------------

static int hold(Fiber *self, MirrorJob *job, GError **error)
{
    NamedNeed needs[] = {
        {job->source, "main node", source_perms},
        {job->target, "target", target_perms},
        {job->replaced, "replaced", replaced_perms},
    };
    return named_hold_new(self, job->daemon->nodes, job->owner, needs,
                          job->replaced == job->source ? 2 : 3, &job->hold, error);
}

typedef struct BeginCall {
    const MirrorSpec *spec;
    Mirror *mirror;
} BeginCall;

static void begin_on_loop(void *arg)
{
    BeginCall *call = arg;
    call->mirror = mirror_begin(call->spec);
}

static int begin(Fiber *self, MirrorJob *job, const char *id, GError **error)
{
    int r = job_nodes_join(self, job->daemon->nodes, job->source, job->target, error);
    if (r == 0)
        r = hold(self, job, error);
    if (r < 0)
        return r;
    job->spec.name = id;
    job->spec.source = job->source->node;
    job->spec.target = job->target->node;
    job->spec.replaced = job->replaced->node;
    BeginCall call = {.spec = &job->spec};
    remote_call_plain(self, named_node_loop(job->target), begin_on_loop, &call);
    job->mirror = call.mirror;
    return 0;
}

// Takes `work`.
static int make_job(Fiber *self, MirrorJob *work, const QmpCall *call, const json_t *args,
                    QmpJobStart *ret_start, GError **error)
{
    JobSpec spec = qmp_block_job_spec(args, &mirror_kind, work);
    spec.copy_mode = copy_mode_at_first(qmp_args_copy_mode(args, "copy-mode"));
    spec.group = call->group;
    Job *job = job_new(work->daemon->jobs, &spec, error);
    if (!job) {
        free_job(self, work);
        return -EINVAL;
    }
    int r = job_set_speed(job, qmp_args_int(args, "speed", 0), error);
    work->owner = g_strdup_printf("%s job '%s'", mirror_kind.type, spec.id);
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

static MirrorSpec spec_of(const json_t *args)
{
    int64_t granularity = qmp_args_int(args, "granularity", 0);
    return (MirrorSpec){
        .copy_mode = qmp_args_copy_mode(args, "copy-mode"),
        .target_is_zero = qmp_args_bool(args, "target-is-zero", false),
        .verifies = qmp_args_bool(args, "x-verify", false),
        .keeps_space = !qmp_args_bool(args, "unmap", true),
        .granularity_bits = granularity > 0 ? (uint32_t)__builtin_ctzll((uint64_t)granularity) : 0,
        .window_bytes = (uint64_t)MAX(qmp_args_int(args, "buf-size", 0), 0),
        .completes_itself = qmp_args_bool(args, "auto-complete", false),
        .on_source_error = qmp_args_on_error(args, "on-source-error"),
        .on_target_error = qmp_args_on_error(args, "on-target-error"),
    };
}

int qmp_prepare_mirror(Fiber *self, const QmpCall *call, const json_t *args, QmpJobStart *ret_start,
                       GError **error)
{
    MirrorJob *work = g_new(MirrorJob, 1);
    *work = (MirrorJob){.daemon = call->daemon, .spec = spec_of(args)};
    if (call->pivot)
        work->spec.pivot = *call->pivot;
    int r = find_nodes(call->daemon->nodes, args, work, error);
    if (r == 0)
        r = check(args, work, error);
    if (r == 0)
        return make_job(self, work, call, args, ret_start, error);
    free_job(self, work);
    return r;
}

static int start_mirror(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return qmp_start_job(self, call, args, qmp_prepare_mirror, error);
}

static int prepare_action(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                          GError **error)
{
    return qmp_prepare_job_action(self, call, data, qmp_prepare_mirror, ret_state, error);
}

static const QmpAction actions[] = {
    {"blockdev-mirror", &qmp_blockdev_mirror_args, "As the command; an extension.", prepare_action,
     QMP_JOB_ACTION},
    {0},
};

static const QmpCommand commands[] = {
    {"blockdev-mirror", &qmp_blockdev_mirror_args, NULL,
     "Starts a job that copies a node to another, and becomes ready once all is copied; it stays "
     "in step with what clients write then. Completed, the target is in the place of the node, and "
     "its clients do not notice; cancelled without force, once it is ready, it leaves a copy of "
     "that moment. Zeros and holes are not read, nor written where the target has them.",
     start_mirror},
    {0},
};

const QmpFamily qmp_blockdev_mirror_family = {
    .title = "Mirror", .commands = commands, .actions = actions};
