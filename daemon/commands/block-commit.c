// SPDX-License-Identifier: LGPL-2.1-or-later
// block-commit. Which nodes it is about, what the table of nodes says before and after; the work
// and the switch are jobs/commit.c's, on the loop of the nodes, once they are held. Control loop.
#include "block-commit.h"

#include <errno.h>

#include "block-jobs.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/job-nodes.h"
#include "daemon/named-hold.h"
#include "daemon/node-instances.h"
#include "daemon/node-overlay.h"
#include "daemon/qmp/args.h"
#include "job-start.h"
#include "jobs/commit.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType block_commit_args = {
    .name = "BlockCommit",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"job-id", &qmp_str, true, "of the job; required, as nodes have no devices"},
            {"device", &qmp_str, .doc = "the head of the chain"},
            {"base-node", &qmp_str, true, "into which node; the lowest one, unless given"},
            {"base", &qmp_str, true, "the same, as its file"},
            {"top-node", &qmp_str, true,
             "the highest node that is committed; the device, unless given"},
            {"top", &qmp_str, true, "the same, as its file"},
            {"backing-file", &qmp_str, true,
             "how images over the top are to name the base, as it stands; its file's name, unless "
             "given"},
            {"backing-mask-protocol", &qmp_bool, true,
             "record `raw` as its format where it is no format"},
            {"speed", &qmp_int, true,
             "at most, in bytes a second; 0, which is the default: no limit"},
            {"on-error", &qmp_on_error, true, "report, unless given"},
            {"filter-node-name", &qmp_str, true, "checked only: the job's filter has no name"},
            {"copy-mode", &qmp_mirror_copy_mode, true,
             "an extension: how what guests write meanwhile comes to the base of a device that is "
             "committed itself. Unless given, in the background, and write-blocking once they make "
             "work more than half as fast as it is done"},
            {"keep-points", &qmp_bool, true,
             "an extension: all overlays of the base, and what lies on them, go on showing what "
             "they do, the layers that leave the chain among them, whatever becomes of the job. "
             "They get what the base loses, so they grow. false, unless given"},
            {"keep-top", &qmp_bool, true,
             "an extension: the top stays in the chain, over the base. Only what lies between "
             "leaves, and what the base has then of what the top owned is given back to the host, "
             "while the job is pending and no faster than `speed`, which can be changed meanwhile; "
             "cancelled then, it ends well, and the rest stays in the top. What clients write to a "
             "device while its commit comes to an end, and from then on, stays in it. false, "
             "unless "
             "given"},
            {"auto-complete", &qmp_bool, true,
             "an extension: a device that is committed itself completes as soon as it would be "
             "ready, and never is. false, unless given: by job-complete"},
            {"auto-finalize", &qmp_bool, true, "true, unless given; else by job-finalize"},
            {"auto-dismiss", &qmp_bool, true, "true, unless given; else by job-dismiss"},
            {0}},
};

// What is held of whom; the table in chain-core/node-hold.h.
static const NodePerms base_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE | NODE_PERM_RESIZE,
    .shared = NODE_PERM_WRITE_UNCHANGED,
};
static const NodePerms between_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_BACKING | NODE_PERM_PLACE,
    .shared = NODE_PERM_WRITE_UNCHANGED,
};
static const NodePerms top_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_PLACE,
    .shared = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_WRITE,
};
static const NodePerms staying_top_perms = {
    .held =
        NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_BACKING | NODE_PERM_PLACE,
    .shared = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_WRITE,
};
static const NodePerms overlay_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_BACKING,
    .shared = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_WRITE,
};

// -- the job --------------------------------------------------------------------------------------

typedef struct CommitJob {
    Daemon *daemon;
    NamedNode *device, *top, *base;
    GPtrArray *overlays; // NamedNode, images; none: the device is committed itself
    bool keeps_top, completes_itself;
    GPtrArray
        *points; // NamedNode, images over the base that are to stay valid; none: they need not
    GPtrArray *read_only; // NamedNode that were, and are to be again
    char *backing_file;   // as the user wants it named; NULL: by its file
    bool masks_protocol;
    JobOnError on_error;
    CopyMode copy_mode;
    char *owner; // "commit job 'j'"
    NamedHold *hold;
    Commit *commit;
    bool is_switched; // the chain is another one now
    JobPivot pivot;
} CommitJob;

static bool is_active(const CommitJob *job)
{
    return job->overlays->len == 0;
}

static int run(Fiber *self, JobControl *control, void *work, GError **error)
{
    return commit_run(self, control, ((const CommitJob *)work)->commit, error);
}

static int come_close_on_loop(Fiber *self, void *work, GError **error)
{
    return commit_come_close(self, ((CommitJob *)work)->commit, error);
}

static int switch_on_loop(Fiber *self, void *work, GError **error)
{
    CommitJob *job = work;
    return commit_switch(self, job->commit, &job->is_switched, error);
}

static void note_left_between(Fiber *self, const CommitJob *job)
{
    NamedNode *top = job->top, *base = job->base;
    if (top->config)
        nodes_set_config(top, node_config_new_with(top->config, "backing", base->name));
    nodes_set_child(self, job->daemon->nodes, top, "backing", base);
    nodes_refresh(self, top);
    nodes_refresh(self, base);
}

static void note_switch(Fiber *self, void *work)
{
    CommitJob *job = work;
    if (!job->is_switched)
        return;
    if (job->keeps_top) {
        note_left_between(self, job);
        return;
    }
    node_overlay_leave(job->top, job->base);
    if (is_active(job) && !job->top->facts.read_only)
        g_ptr_array_remove(job->read_only, job->base); // it is the head now
    nodes_refresh(self, job->base);
    for (guint i = 0; i < job->overlays->len; i++)
        nodes_refresh(self, job->overlays->pdata[i]);
}

static int prepare(Fiber *self, void *work, GError **error)
{
    static const JobSwitch how = {come_close_on_loop, switch_on_loop, note_switch};
    const CommitJob *job = work;
    return job_nodes_switch(self, job->daemon->nodes, job->base, &how, work, error);
}

typedef struct GiveBackCall {
    Commit *commit;
    int result;
} GiveBackCall;

static void give_back_on_loop(Fiber *self, void *arg)
{
    GiveBackCall *call = arg;
    call->result = commit_give_back(self, call->commit);
}

static bool gives_back(const void *work)
{
    return ((const CommitJob *)work)->keeps_top;
}

// It is over for its users but for that, so what remains in the top is only told.
static void give_back(Fiber *self, void *work)
{
    const CommitJob *job = work;
    GiveBackCall call = {.commit = job->commit};
    if (!job->keeps_top)
        return;
    if (remote_call_fiber_reserve(self, named_node_loop(job->base), give_back_on_loop, &call) < 0)
        call.result = -ENOMEM;
    if (call.result < 0)
        log_line(LOG_WARNING,
                 "%s: node '%s' keeps clusters that its base has, too, and that were to be given "
                 "back: %s",
                 job->owner, job->top->name, g_strerror(-call.result));
}

static void end_on_loop(Fiber *self, void *arg)
{
    commit_end(self, arg);
}

// With the graph lock.
static void commit_job_free(Fiber *self, CommitJob *job)
{
    if (job->commit)
        remote_call_fiber_reserve(self, named_node_loop(job->base), end_on_loop, job->commit);
    job_nodes_make_read_only(self, job->read_only, job->owner);
    if (job->hold)
        named_hold_release(self, job->daemon->nodes, job->hold);
    g_ptr_array_unref(job->overlays);
    g_ptr_array_unref(job->points);
    g_ptr_array_unref(job->read_only);
    g_free(job->owner);
    g_free(job->backing_file);
    g_free(job);
}

static void clean(Fiber *self, void *work)
{
    CommitJob *job = work;
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    fiber_mutex_lock(self, lock);
    commit_job_free(self, job);
    fiber_mutex_unlock(self, lock);
}

static const JobKind commit_kind = {
    .type = "commit",
    .is_block_job = true,
    .run = run,
    .prepare = prepare,
    .clears_up = gives_back,
    .commit = give_back,
    .clean = clean,
};
static const JobKind active_commit_kind = {
    .type = "commit",
    .is_block_job = true,
    .can_be_ready = true,
    .run = run,
    .prepare = prepare,
    .clears_up = gives_back,
    .commit = give_back,
    .clean = clean,
};

// -- what it is about -----------------------------------------------------------------------------

static NamedNode *find_device(const Nodes *nodes, const char *name, GError **error)
{
    NamedNode *device = nodes_find(nodes, name);
    if (!device) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", name);
        return NULL;
    }
    return job_nodes_check_root(device, error) < 0 ? NULL : device;
}

static int check_exclusive(const json_t *args, const char *node, const char *file, GError **error)
{
    if (qmp_args_have(args, node) && qmp_args_have(args, file))
        return qmp_fail(error, "'%s' and '%s' are mutually exclusive", node, file);
    return 0;
}

static NamedNode *find_in_chain(const Nodes *nodes, const NamedNode *chain, const char *name,
                                GError **error)
{
    NamedNode *named = nodes_get(nodes, name, error);
    if (!named || job_nodes_is_below(chain, named))
        return named;
    qmp_fail(error, "'%s' is not in this backing file chain", name);
    return NULL;
}

static NamedNode *find_top(const Nodes *nodes, NamedNode *device, const json_t *args,
                           GError **error)
{
    const char *name = qmp_args_str(args, "top-node"), *file = qmp_args_str(args, "top");
    if (check_exclusive(args, "top-node", "top", error) < 0)
        return NULL;
    if (name)
        return find_in_chain(nodes, device, name, error);
    if (!file || g_str_equal(file, named_node_file_name(device)))
        return device;
    NamedNode *top = job_nodes_find_file(device, file, NULL);
    if (!top)
        qmp_fail(error, "Top image file %s not found", file);
    return top;
}

static NamedNode *lowest_below(NamedNode *named)
{
    for (NamedNode *below; (below = named_node_below(named));)
        named = below;
    return named;
}

static NamedNode *find_base(const Nodes *nodes, const NamedNode *device, NamedNode *top,
                            const json_t *args, GError **error)
{
    const char *name = qmp_args_str(args, "base-node"), *file = qmp_args_str(args, "base");
    if (check_exclusive(args, "base-node", "base", error) < 0)
        return NULL;
    if (file)
        return job_nodes_find_file(top, file, error);
    if (!name)
        return lowest_below(top);
    NamedNode *base = find_in_chain(nodes, device, name, error);
    if (!base || job_nodes_is_below(top, base))
        return base;
    qmp_fail(error, "'%s' is not in this backing file chain", name);
    return NULL;
}

// Images whose backing node it is, or a filter over it.
static void collect_overlays(const NamedNode *named, GPtrArray *overlays)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && use->by->node->ops->is_filter)
            collect_overlays(use->by, overlays);
        else if (use->by && g_str_equal(use->role, "backing") && !use->is_moment)
            g_ptr_array_add(overlays, use->by);
    }
}

static int find_nodes(const Nodes *nodes, const json_t *args, CommitJob *job, GError **error)
{
    job->device = find_device(nodes, qmp_args_str(args, "device"), error);
    if (!job->device)
        return -ENODEV;
    job->top = find_top(nodes, job->device, args, error);
    if (!job->top)
        return -ENODEV;
    job->base = find_base(nodes, job->device, job->top, args, error);
    if (!job->base)
        return -ENODEV;
    if (named_node_image(job->base) == named_node_image(job->top))
        return qmp_fail(error, "cannot commit an image into itself");
    if (named_node_image(job->top) == named_node_image(job->device))
        job->top = named_node_image(job->device); // filters over it stay
    else
        collect_overlays(job->top, job->overlays);
    if (qmp_args_bool(args, "keep-points", false))
        collect_overlays(job->base, job->points);
    return 0;
}

static int check(const CommitJob *job, const json_t *args, GError **error)
{
    int r = 0;
    for (NamedNode *named = job->top; r == 0 && named != job->base; named = named_node_below(named))
        r = named_node_check_change(named, NODE_PERM_BACKING, "another job", error);
    if (r < 0)
        return r;
    if (is_active(job) && !job->keeps_top && qmp_args_have(args, "backing-file"))
        return qmp_fail(error, "'backing-file' specified, but 'top' is the active layer");
    if (!is_active(job) && qmp_args_have(args, "copy-mode"))
        return qmp_fail(error, "'copy-mode' specified, but 'top' is not the active layer");
    if (!is_active(job) && job->completes_itself)
        return qmp_fail(error, "'auto-complete' specified, but 'top' is not the active layer");
    if (job->keeps_top && qmp_args_have(args, "copy-mode"))
        return qmp_fail(error, "'copy-mode' specified, but with 'keep-top' what clients write "
                               "stays in the top");
    if (is_active(job) && !job->keeps_top && qmp_args_bool(args, "keep-points", false))
        return qmp_fail(error,
                        "'keep-points' specified, but 'top' is the active layer, and clients "
                        "write the base afterwards; with 'keep-top' they do not");
    if (job->keeps_top && (r = job_nodes_check_snapshots(job->top, error)) < 0)
        return r;
    for (guint i = 0; i < job->points->len; i++)
        if ((r = job_nodes_check_snapshots(job->points->pdata[i], error)) < 0)
            return r;
    return job_nodes_check_filter_name(job->daemon->nodes, qmp_args_str(args, "filter-node-name"),
                                       error);
}

// -- the start ------------------------------------------------------------------------------------

static void add_need(GArray *needs, NamedNode *named, const char *role, NodePerms perms)
{
    NamedNeed need = {named, role, perms};
    g_array_append_val(needs, need);
}

static bool is_between(const CommitJob *job, const NamedNode *named)
{
    return named != job->base && job_nodes_is_below(job->top, named) &&
           !job_nodes_is_below(job->base, named);
}

// What lies in between stays a state of the disk where points are kept.
static NodePerms perms_between(const CommitJob *job, NamedNode *named)
{
    NodePerms perms = between_perms;
    if (job->points->len)
        perms.shared |= NODE_PERM_CONSISTENT_READ;
    if (g_ptr_array_find(job->points, named, NULL))
        perms.held |= NODE_PERM_WRITE_UNCHANGED;
    return perms;
}

static int hold(Fiber *self, CommitJob *job, GError **error)
{
    g_autoptr(GArray) needs = g_array_new(FALSE, FALSE, sizeof(NamedNeed));
    for (guint i = 0; i < job->overlays->len && !job->keeps_top; i++)
        add_need(needs, job->overlays->pdata[i], "overlay", overlay_perms);
    add_need(needs, job->top, is_active(job) ? "main node" : "intermediate node",
             job->keeps_top   ? staying_top_perms
             : is_active(job) ? top_perms
                              : perms_between(job, job->top));
    for (NamedNode *n = named_node_below(job->top); n != job->base; n = named_node_below(n))
        add_need(needs, n, "intermediate node", perms_between(job, n));
    add_need(needs, job->base, "base", base_perms);
    for (guint i = 0; i < job->points->len; i++)
        if (!is_between(job, job->points->pdata[i]))
            add_need(needs, job->points->pdata[i], "point in time", overlay_perms);
    return named_hold_new(self, job->daemon->nodes, job->owner, (const NamedNeed *)needs->data,
                          needs->len, &job->hold, error);
}

typedef struct BeginCall {
    CommitSpec spec;
    Commit *commit;
} BeginCall;

static int begin_on_loop(Fiber *self, void *arg, GError **error)
{
    BeginCall *call = arg;
    return commit_begin(self, &call->spec, &call->commit, error);
}

// One of the images that are to record the base.
static NamedNode *first_overlay(const CommitJob *job)
{
    return job->keeps_top ? job->top : job->overlays->pdata[0];
}

static char *base_name(const CommitJob *job)
{
    if (job->backing_file || (is_active(job) && !job->keeps_top))
        return g_strdup(job->backing_file);
    return job_nodes_header_name(first_overlay(job), job->top, job->base);
}

static int begin(Fiber *self, CommitJob *job, const char *id, GError **error)
{
    Loop *loop = named_node_loop(job->base);
    const Driver *driver = named_node_image(job->base)->driver;
    g_autofree char *name = base_name(job);
    g_autofree Node **overlays = g_new(Node *, job->overlays->len + 1);
    g_autofree Node **points = g_new(Node *, job->points->len + 1);
    if ((!is_active(job) || job->keeps_top) && !name)
        return qmp_fail(error,
                        "Node '%s' is no file that the header of '%s' could name: give its name as "
                        "backing-file",
                        job->base->name, first_overlay(job)->name);
    for (guint i = 0; i < job->overlays->len; i++)
        overlays[i] = ((NamedNode *)job->overlays->pdata[i])->node;
    for (guint i = 0; i < job->points->len; i++)
        points[i] = ((NamedNode *)job->points->pdata[i])->node;
    BeginCall call = {
        .spec =
            {
                .name = id,
                .top = node_instances_get(job->top, loop),
                .base = job->base->node,
                .overlays = overlays,
                .n_overlays = job->overlays->len,
                .points = points,
                .n_points = job->points->len,
                .keeps_top = job->keeps_top,
                .backing_name = name,
                .backing_format = job->masks_protocol && !driver->open ? "raw" : driver->name,
                .on_error = job->on_error,
                .copy_mode = job->copy_mode,
                .completes_itself = job->completes_itself,
                .pivot = job->pivot,
                .memory = job->daemon->memory,
            },
    };
    int r = job_nodes_call(self, job->base, begin_on_loop, &call, error);
    nodes_refresh(self, job->base);
    job->commit = call.commit;
    return r;
}

static int make_ready(Fiber *self, CommitJob *job, const char *id, GError **error)
{
    int r = hold(self, job, error);
    if (r == 0)
        r = job_nodes_make_writable(self, job->base, job->read_only, error);
    if (r == 0 && job->keeps_top)
        r = job_nodes_make_writable(self, job->top, job->read_only, error);
    for (guint i = 0; r == 0 && i < job->overlays->len && !job->keeps_top; i++)
        r = job_nodes_make_writable(self, job->overlays->pdata[i], job->read_only, error);
    for (guint i = 0; r == 0 && i < job->points->len; i++)
        r = job_nodes_make_writable(self, job->points->pdata[i], job->read_only, error);
    return r == 0 ? begin(self, job, id, error) : r;
}

static void drop_work(Fiber *self, void *work)
{
    commit_job_free(self, work);
}

// Takes `work`.
static int make_job(Fiber *self, CommitJob *work, const json_t *args, JobGroup *group,
                    QmpJobStart *ret_start, GError **error)
{
    JobSpec spec =
        qmp_block_job_spec(args, is_active(work) ? &active_commit_kind : &commit_kind, work);
    if (is_active(work) && !work->keeps_top)
        spec.copy_mode = copy_mode_at_first(work->copy_mode);
    spec.total = is_active(work) ? 0 : work->top->facts.size_bytes;
    spec.group = group;
    Job *job = job_new(work->daemon->jobs, &spec, error);
    if (!job) {
        commit_job_free(self, work);
        return -EINVAL;
    }
    int r = job_set_speed(job, qmp_args_int(args, "speed", 0), error);
    work->owner = g_strdup_printf("%s job '%s'", commit_kind.type, spec.id);
    if (r == 0)
        r = make_ready(self, work, spec.id, error);
    if (r == 0) {
        *ret_start = (QmpJobStart){job, named_node_loop(work->base), work, drop_work};
    } else {
        job_drop(job);
        commit_job_free(self, work);
    }
    return r;
}

int qmp_prepare_commit(Fiber *self, const QmpCall *call, const json_t *args, QmpJobStart *ret_start,
                       GError **error)
{
    CommitJob *work = g_new(CommitJob, 1);
    *work = (CommitJob){
        .daemon = call->daemon,
        .overlays = g_ptr_array_new(),
        .points = g_ptr_array_new(),
        .read_only = g_ptr_array_new(),
        .backing_file = g_strdup(qmp_args_str(args, "backing-file")),
        .masks_protocol = qmp_args_bool(args, "backing-mask-protocol", false),
        .on_error = qmp_args_on_error(args, "on-error"),
        .copy_mode = qmp_args_copy_mode(args, "copy-mode"),
        .keeps_top = qmp_args_bool(args, "keep-top", false),
        .completes_itself = qmp_args_bool(args, "auto-complete", false),
        .pivot = call->pivot ? *call->pivot : (JobPivot){0},
    };
    int r = find_nodes(call->daemon->nodes, args, work, error);
    if (r == 0)
        r = check(work, args, error);
    if (r == 0)
        return make_job(self, work, args, call->group, ret_start, error);
    commit_job_free(self, work);
    return r;
}

static int start_commit(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return qmp_start_job(self, call, args, qmp_prepare_commit, error);
}

static int prepare_action(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                          GError **error)
{
    return qmp_prepare_job_action(self, call, data, qmp_prepare_commit, ret_state, error);
}

static const QmpAction actions[] = {
    {"block-commit", &block_commit_args, "As the command; an extension.", prepare_action,
     QMP_JOB_ACTION},
    {0},
};

static const QmpCommand commands[] = {
    {"block-commit", &block_commit_args, NULL,
     "Starts a job that writes what layers of a chain own into a layer below them, and takes them "
     "out of the chain then. If the device itself is committed the job becomes ready once all is "
     "copied, and stays in step with what clients write; completed, the base is in its place. What "
     "the device shows does not change; its clients do not notice. The base is no state of the "
     "disk by itself from the first byte on. No file is removed.",
     start_commit},
    {0},
};

const QmpFamily qmp_block_commit_family = {
    .title = "Commit", .commands = commands, .actions = actions};
