// SPDX-License-Identifier: LGPL-2.1-or-later
// block-stream. Which nodes it is about, what the table of nodes says before and after; the work
// and the switch are jobs/block-stream.c's, on the image's loop. Control loop.
#include "block-stream.h"

#include <errno.h>

#include "block-jobs.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/job-nodes.h"
#include "daemon/log.h"
#include "daemon/named-hold.h"
#include "daemon/node-instances.h"
#include "daemon/qmp/args.h"
#include "job-start.h"
#include "jobs/block-stream.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType block_stream_args = {
    .name = "BlockStream",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"job-id", &qmp_str, true, "of the job; required, as nodes have no devices"},
            {"device", &qmp_str, .doc = "the node whose image gets the data"},
            {"base", &qmp_str, true, "the file of what is to stay below it"},
            {"base-node", &qmp_str, true, "the same, as a node"},
            {"backing-file", &qmp_str, true,
             "how the image's header is to name that, as it stands; its file's name, unless given"},
            {"backing-mask-protocol", &qmp_bool, true,
             "record `raw` as its format where it is no format"},
            {"bottom", &qmp_str, true, "instead of a base: the lowest node that is to leave"},
            {"speed", &qmp_int, true,
             "at most, in bytes a second; 0, which is the default: no limit"},
            {"on-error", &qmp_on_error, true, "report, unless given"},
            {"filter-node-name", &qmp_str, true, "checked only: a stream needs no filter"},
            {"auto-finalize", &qmp_bool, true, "true, unless given; else by job-finalize"},
            {"auto-dismiss", &qmp_bool, true, "true, unless given; else by job-dismiss"},
            {0}},
};

// Until the end others may read and write, but neither resize nor change what lies where. What is
// only read may be streamed into other overlays, too. What stays below is held by the overlay that
// it has.
static const NodePerms image_perms = {
    .held = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_BACKING,
    .shared = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED | NODE_PERM_WRITE,
};
static const NodePerms below_perms = {
    .held = NODE_PERM_CONSISTENT_READ,
    .shared = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED,
};

// -- the job --------------------------------------------------------------------------------------

typedef struct StreamJob {
    Daemon *daemon;
    NamedNode *image, *bottom; // bottom NULL: nothing leaves
    char *backing_file;        // as the user wants it named; NULL: by its file
    bool masks_protocol;
    JobOnError on_error;
    char *owner; // "stream job 'j'"
    NamedHold *hold;
    BlockStream *stream;
    bool was_read_only;
} StreamJob;

static int run(Fiber *self, JobControl *control, void *work, GError **error)
{
    const StreamJob *job = work;
    return block_stream_run(self, job->stream, control, job->on_error, error);
}

// Of the image, and those that are to leave.
static NamedNode *next_below(const StreamJob *job, const NamedNode *named)
{
    return named == job->bottom || !job->bottom ? NULL : named_node_below(named);
}

static NodePerms perms_on(const StreamJob *job, const NamedNode *named)
{
    return named == job->image ? image_perms : below_perms;
}

typedef struct SwitchCall {
    BlockStream *stream;
    BlockStreamBacking backing;
} SwitchCall;

static int switch_on_loop(Fiber *self, void *arg, GError **error)
{
    const SwitchCall *call = arg;
    return block_stream_switch(self, call->stream, &call->backing, error);
}

static const char *base_format(const StreamJob *job, NamedNode *base)
{
    const Driver *driver = named_node_image(base)->driver;
    return job->masks_protocol && !driver->open ? "raw" : driver->name;
}

static int switch_backing(Fiber *self, StreamJob *job, NamedNode *base, GError **error)
{
    NamedNode *image = job->image;
    g_autofree char *name = g_strdup(job->backing_file);
    SwitchCall call = {.stream = job->stream};
    if (base && !name)
        name = job_nodes_header_name(image, image, base);
    if (base && !name)
        return qmp_fail(error,
                        "Node '%s' is no file that the header of '%s' could name: give its name as "
                        "backing-file",
                        base->name, image->name);
    if (base)
        call.backing = (BlockStreamBacking){name, base_format(job, base)};
    int r = job_nodes_call(self, image, switch_on_loop, &call, error);
    if (r < 0)
        return r;
    if (image->config)
        nodes_set_config(image,
                         node_config_new_with(image->config, "backing", base ? base->name : NULL));
    nodes_set_child(self, job->daemon->nodes, image, "backing", base);
    nodes_refresh(self, image);
    return 0;
}

static int prepare(Fiber *self, void *work, GError **error)
{
    StreamJob *job = work;
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    if (!job->bottom)
        return 0;
    fiber_mutex_lock(self, lock);
    int r = switch_backing(self, job, named_node_below(job->bottom), error);
    fiber_mutex_unlock(self, lock);
    return r;
}

static void free_on_loop(Fiber *self, void *arg)
{
    block_stream_free(self, arg);
}

static void restore_mode(Fiber *self, const StreamJob *job)
{
    g_autoptr(GError) error = NULL;
    if (job_nodes_set_writable(self, job->image, false, &error) < 0)
        log_line(LOG_ERROR, "after %s: %s", job->owner, error->message);
}

// With the graph lock.
static void stream_job_free(Fiber *self, StreamJob *job)
{
    if (job->stream)
        remote_call_fiber_reserve(self, named_node_loop(job->image), free_on_loop, job->stream);
    if (job->was_read_only)
        restore_mode(self, job);
    if (job->hold)
        named_hold_release(self, job->daemon->nodes, job->hold);
    g_free(job->owner);
    g_free(job->backing_file);
    g_free(job);
}

static void clean(Fiber *self, void *work)
{
    StreamJob *job = work;
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    fiber_mutex_lock(self, lock);
    stream_job_free(self, job);
    fiber_mutex_unlock(self, lock);
}

static const JobKind stream_kind = {
    .type = "stream",
    .is_block_job = true,
    .run = run,
    .prepare = prepare,
    .clean = clean,
};

// -- what it is about -----------------------------------------------------------------------------

static NamedNode *find_base(const Nodes *nodes, NamedNode *device, const json_t *args,
                            GError **error)
{
    const char *file = qmp_args_str(args, "base"), *name = qmp_args_str(args, "base-node");
    if (file)
        return job_nodes_find_file(device, file, error);
    NamedNode *base = nodes_get(nodes, name, error);
    if (!base || (base != device && job_nodes_is_below(device, base)))
        return base;
    qmp_fail(error, "Node '%s' is not a backing image of '%s'", name, device->name);
    return NULL;
}

static NamedNode *find_bottom(const Nodes *nodes, const NamedNode *device, const char *name,
                              GError **error)
{
    NamedNode *bottom = nodes_get(nodes, name, error);
    if (!bottom)
        return NULL;
    if (bottom->node->ops->is_filter)
        qmp_fail(error, "Node '%s' is a filter, use a non-filter node as 'bottom'", name);
    else if (!job_nodes_is_below(device, bottom))
        qmp_fail(error, "Node '%s' is not in a chain starting from '%s'", name, device->name);
    else
        return bottom;
    return NULL;
}

static int check_exclusive(const json_t *args, GError **error)
{
    static const char *const pairs[][2] = {
        {"base", "base-node"},
        {"base", "bottom"},
        {"bottom", "base-node"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(pairs); i++)
        if (qmp_args_have(args, pairs[i][0]) && qmp_args_have(args, pairs[i][1]))
            return qmp_fail(error, "'%s' and '%s' cannot be specified at the same time",
                            pairs[i][0], pairs[i][1]);
    return 0;
}

// The lowest node over `base`, or that there is; NULL: all lies above `image`, or is it.
static NamedNode *lowest_over(NamedNode *image, const NamedNode *base)
{
    NamedNode *lowest = image;
    if (base && (base == image || !job_nodes_is_below(image, base)))
        return NULL;
    for (NamedNode *below; (below = named_node_below(lowest)) && below != base;)
        lowest = below;
    return lowest == image ? NULL : lowest;
}

static int find_range(const Nodes *nodes, const json_t *args, StreamJob *job, GError **error)
{
    NamedNode *device = job_nodes_find_device(nodes, qmp_args_str(args, "device"), error);
    const char *bottom = qmp_args_str(args, "bottom");
    NamedNode *base = NULL;
    if (!device || named_node_check_no_image(device, "a stream", error) < 0)
        return -ENODEV;
    if (qmp_args_have(args, "base") || qmp_args_have(args, "base-node")) {
        base = find_base(nodes, device, args, error);
        if (!base)
            return -ENODEV;
    }
    job->image = named_node_image(device);
    if (!job->image)
        return qmp_fail(error, "Node '%s' has no image below it", device->name);
    job->bottom =
        bottom ? find_bottom(nodes, device, bottom, error) : lowest_over(job->image, base);
    if (bottom && !job->bottom)
        return -ENODEV;
    if (job->bottom == job->image)
        job->bottom = NULL;
    return 0;
}

static int check(const StreamJob *job, const json_t *args, GError **error)
{
    int r = 0;
    for (NamedNode *named = job->image; r == 0 && named; named = next_below(job, named))
        r = named_node_check_job(named, perms_on(job, named), error);
    if (r < 0)
        return r;
    if (qmp_args_have(args, "backing-file") && (!job->bottom || !named_node_below(job->bottom)))
        return qmp_fail(error, "backing file specified, but streaming the entire chain");
    r = job_nodes_check_filter_name(job->daemon->nodes, qmp_args_str(args, "filter-node-name"),
                                    error);
    return r == 0 && job->bottom ? job_nodes_check_snapshots(job->image, error) : r;
}

// -- the start ------------------------------------------------------------------------------------

typedef struct NewCall {
    const StreamJob *job;
    BlockStream *stream;
} NewCall;

static void new_on_loop(void *arg)
{
    NewCall *call = arg;
    const StreamJob *job = call->job;
    Node *bottom =
        job->bottom ? node_instances_get(job->bottom, named_node_loop(job->image)) : NULL;
    call->stream = block_stream_new(job->image->node, bottom, job->daemon->memory, job->owner);
}

static int hold(Fiber *self, StreamJob *job, GError **error)
{
    g_autoptr(GArray) needs = g_array_new(FALSE, FALSE, sizeof(NamedNeed));
    for (NamedNode *named = job->image; named; named = next_below(job, named)) {
        NamedNeed need = {
            .named = named,
            .role = named == job->image ? "active node" : "intermediate node",
            .perms = perms_on(job, named),
        };
        g_array_append_val(needs, need);
    }
    return named_hold_new(self, job->daemon->nodes, job->owner, (const NamedNeed *)needs->data,
                          needs->len, &job->hold, error);
}

static int make_ready(Fiber *self, StreamJob *job, GError **error)
{
    int r = hold(self, job, error);
    bool is_read_only = job->bottom && job->image->facts.read_only;
    if (r == 0 && is_read_only)
        r = job_nodes_set_writable(self, job->image, true, error);
    if (r < 0)
        return r;
    job->was_read_only = is_read_only;
    NewCall call = {.job = job};
    remote_call_plain(self, named_node_loop(job->image), new_on_loop, &call);
    job->stream = call.stream;
    return 0;
}

static void drop_work(Fiber *self, void *work)
{
    stream_job_free(self, work);
}

// Takes `work`.
static int make_job(Fiber *self, StreamJob *work, const json_t *args, JobGroup *group,
                    QmpJobStart *ret_start, GError **error)
{
    JobSpec spec = qmp_block_job_spec(args, &stream_kind, work);
    spec.total = work->bottom ? work->image->facts.size_bytes : 0;
    spec.group = group;
    Job *job = job_new(work->daemon->jobs, &spec, error);
    if (!job) {
        stream_job_free(self, work);
        return -EINVAL;
    }
    int r = job_set_speed(job, qmp_args_int(args, "speed", 0), error);
    work->owner = g_strdup_printf("%s job '%s'", stream_kind.type, spec.id);
    if (r == 0)
        r = make_ready(self, work, error);
    if (r == 0) {
        *ret_start = (QmpJobStart){job, named_node_loop(work->image), work, drop_work};
    } else {
        job_drop(job);
        stream_job_free(self, work);
    }
    return r;
}

int qmp_prepare_stream(Fiber *self, const QmpCall *call, const json_t *args, QmpJobStart *ret_start,
                       GError **error)
{
    StreamJob *work = g_new(StreamJob, 1);
    *work = (StreamJob){
        .daemon = call->daemon,
        .backing_file = g_strdup(qmp_args_str(args, "backing-file")),
        .masks_protocol = qmp_args_bool(args, "backing-mask-protocol", false),
        .on_error = qmp_args_on_error(args, "on-error"),
    };
    int r = check_exclusive(args, error);
    if (r == 0)
        r = find_range(call->daemon->nodes, args, work, error);
    if (r == 0)
        r = check(work, args, error);
    if (r == 0)
        return make_job(self, work, args, call->group, ret_start, error);
    stream_job_free(self, work);
    return r;
}

static int start_stream(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return qmp_start_job(self, call, args, qmp_prepare_stream, error);
}

static int prepare_action(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                          GError **error)
{
    return qmp_prepare_job_action(self, call, data, qmp_prepare_stream, ret_state, error);
}

static const QmpAction actions[] = {
    {"block-stream", &block_stream_args, "As the command; an extension.", prepare_action,
     QMP_JOB_ACTION},
    {0},
};

static const QmpCommand commands[] = {
    {"block-stream", &block_stream_args, NULL,
     "Starts a job that fills an image, the top of a chain or a layer in its middle, with what it "
     "shows of the layers below it, down to a base, and takes those out of the chain then. What "
     "the node shows does not change, nor what a layer shows that stays. Its clients do not "
     "notice. Several images over the same layers may be filled at once.",
     start_stream},
    {0},
};

const QmpFamily qmp_block_stream_family = {
    .title = "Stream", .commands = commands, .actions = actions};
