// SPDX-License-Identifier: LGPL-2.1-or-later
// A point in time is the name of what a layer shows. What becomes of the layer depends on who
// stands on it. Nobody: it goes. Several: they need it, so it stays without a name. One: they
// become one layer, by a stream into the upper or a commit into the lower, whichever moves less and
// has the room. Control loop.
#include "disk-delete.h"

#include <errno.h>

#include "chain-core/chain-plan.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/node-instances.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-info.h"
#include "disk-jobs.h"
#include "disk-space.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType way_type = {
    .name = "DiskDeleteWay",
    .kind = QMP_ENUM,
    .doc =
        "`stream`: the layer above gets what it needs; `commit`: the layer gets what the one above "
        "has, and takes its place; `drop`: nobody needs the layer; `keep`: others need it, and it "
        "stays without a name.",
    .values = (const char *const[]){"stream", "commit", "drop", "keep", NULL},
};
static const QmpType cost_type = {
    .name = "DiskDeleteCost",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"way", &way_type, .doc = "how"},
            {"copy", &qmp_int, .doc = "bytes to be moved, at most"},
            {"space", &qmp_int,
             .doc = "bytes that it needs in addition, at most, before any is freed"},
            {"available", &qmp_int, true, "bytes that there are for that, as far as is known"},
            {"freed", &qmp_int, .doc = "bytes of files that are removed then"},
            {"blocked", &qmp_str, true, "why it cannot be"},
            {0}},
};
static const QmpType costs_type = {.kind = QMP_ARRAY, .element = &cost_type};
static const QmpType plan_type = {
    .name = "DiskPlanInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"way", &way_type, true,
                                    "the one that disk-delete-point would take; none: it would be "
                                    "refused"},
                                   {"ways", &costs_type, .doc = "all that there are"},
                                   {0}},
};
static const QmpType deleted_type = {
    .name = "DiskDeleteInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"job", &qmp_str, true, "the job that does it; none: it is done"},
                            {"way", &way_type, .doc = "how"},
                            {"copy", &qmp_int, .doc = "bytes to be moved, at most"},
                            {"freed", &qmp_int, .doc = "bytes of files that are removed then"},
                            {0}},
};

#define WHICH_MEMBERS                                                                              \
    {"disk", &qmp_str, .doc = "the disk"}, {"point", &qmp_str, true, "the point in time"},         \
    {                                                                                              \
        "layer", &qmp_str, true, "instead: the node of a layer below the head that has no name"    \
    }
static const QmpType plan_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){WHICH_MEMBERS, {0}},
};
static const QmpType delete_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){WHICH_MEMBERS,
                                   {"way", &way_type, true,
                                    "how; without it the one that moves least of those for which "
                                    "there is room"},
                                   {"speed", &qmp_int, true,
                                    "of the job, at most, in bytes a second; 0, which is the "
                                    "default: no limit"},
                                   DISK_SPACE_MEMBER,
                                   {0}},
};

// -- which layer ----------------------------------------------------------------------------------

typedef struct Deletion {
    QmpCall *call;
    Catalogue *catalogue;
    Disk *disk;
    Point *point;             // NULL: a layer without a name
    DiskLayer *layer, *above; // above NULL: nobody, or several
    guint n_above;
} Deletion;

static bool has_name(const Catalogue *c, const DiskLayer *layer)
{
    for (guint d = 0; d < c->disks->len; d++) {
        const Disk *disk = c->disks->pdata[d];
        for (guint i = 0; i < disk->points->len; i++)
            if (((const Point *)disk->points->pdata[i])->layer == layer)
                return true;
    }
    return false;
}

static int find_layer(Deletion *d, const char *name, GError **error)
{
    char node[LAYER_NODE_NAME_BYTES];
    for (DiskLayer *layer = d->disk->head->below; layer; layer = layer->below) {
        disk_layer_node_name(layer, node);
        if (!g_str_equal(node, name))
            continue;
        d->layer = layer;
        return has_name(d->catalogue, layer)
                   ? qmp_fail(error, "'%s' is a point in time: say which", name)
                   : 0;
    }
    return qmp_fail(error, "'%s' is no layer below the head of disk '%s'", name, d->disk->name);
}

static int check_exports(const Deletion *d, GError **error)
{
    for (guint i = 0; i < d->disk->exports->len; i++) {
        const DiskExport *export = d->disk->exports->pdata[i];
        if (export->point && g_str_equal(export->point, d->point->name))
            return qmp_disk_refuse(error, -EBUSY,
                                   "export '%s' shows '%s@%s': end that with disk-unexport first",
                                   export->id, d->disk->name, d->point->name);
    }
    return 0;
}

static int find(Deletion *d, const json_t *args, GError **error)
{
    const char *point = qmp_args_str(args, "point"), *layer = qmp_args_str(args, "layer");
    int r = qmp_disks_get_idle(d->catalogue, args, "disk", &d->disk, error);
    if (r < 0)
        return r;
    if (!point == !layer)
        return qmp_fail(error, "either a point or a layer is to be given");
    d->point = point ? disk_get_point(d->disk, point, error) : NULL;
    if (point && !d->point)
        return -ENOENT;
    r = point ? check_exports(d, error) : find_layer(d, layer, error);
    if (r < 0)
        return r;
    if (point)
        d->layer = d->point->layer;
    g_autoptr(GPtrArray) above = catalogue_layers_above(d->catalogue, d->layer);
    d->n_above = above->len;
    d->above = above->len == 1 ? above->pdata[0] : NULL;
    return 0;
}

// -- what it costs --------------------------------------------------------------------------------

enum { STREAM, COMMIT, N_MERGES };

typedef struct Cost {
    uint64_t copy, space, available, freed; // available UINT64_MAX: nobody can tell
    char *blocked;
} Cost;

typedef struct Estimate {
    Cost costs[N_MERGES];
    Node *lower, *upper; // on the loop
    int result;
} Estimate;

static uint64_t allocated_bytes(Fiber *self, Node *node)
{
    uint64_t bytes;
    File *file = node_file(node);
    return file && file_allocated_bytes(self, file, &bytes) == 0 ? bytes : 0;
}

static void estimate_on_loop(Fiber *self, void *arg)
{
    Estimate *e = arg;
    Node *layers[] = {e->lower, e->upper};
    ChainPlanCost costs[2];
    e->result = chain_plan(self, layers, 2, costs);
    if (e->result < 0)
        return;
    e->costs[STREAM].copy = costs[1].stream_bytes;
    e->costs[STREAM].space = costs[1].stream_space;
    e->costs[STREAM].freed = allocated_bytes(self, e->lower);
    e->costs[STREAM].available = disk_space_free(self, e->upper);
    e->costs[COMMIT].copy = costs[0].commit_bytes;
    e->costs[COMMIT].space = costs[0].commit_space;
    e->costs[COMMIT].freed = allocated_bytes(self, e->upper);
    e->costs[COMMIT].available = disk_space_free(self, e->lower);
}

static void add_blocked(const Deletion *d, bool checks_space, Estimate *e)
{
    const DiskLayer *layer = d->layer, *above = d->above;
    Cost *stream = &e->costs[STREAM], *commit = &e->costs[COMMIT];
    if (!above->is_ours && !catalogue_disk_of_head(d->catalogue, above))
        stream->blocked = g_strdup_printf("'%s', which would be written, is not ours", above->file);
    else if (layer->is_merging)
        stream->blocked = g_strdup_printf("a commit into '%s' has begun", layer->file);
    if (!layer->is_ours)
        commit->blocked = g_strdup_printf("'%s', which would be written, is not ours", layer->file);
    if (!layer->is_ours)
        stream->freed = 0;
    if (!above->is_ours)
        commit->freed = 0;
    for (unsigned i = 0; i < N_MERGES && checks_space; i++)
        if (!e->costs[i].blocked && e->costs[i].space > e->costs[i].available)
            e->costs[i].blocked = g_strdup_printf("it needs %" G_GUINT64_FORMAT
                                                  " bytes, and there are %" G_GUINT64_FORMAT,
                                                  e->costs[i].space, e->costs[i].available);
}

// With the graph lock; both nodes are open then, and in use as long as it takes.
static int open_pair(Fiber *self, const Deletion *d, NodeUse **ret_use, Estimate *ret_estimate,
                     GError **error)
{
    static const NodePerms none = {0, NODE_PERM_ALL};
    Daemon *daemon = d->call->daemon;
    const Disk *disk = catalogue_disk_of_head(d->catalogue, d->above);
    NamedNode *upper;
    if (disk && disk->problem)
        return qmp_fail(error, "disk '%s', which stands on it, is not open: %s", disk->name,
                        disk->problem);
    int r = disk_layer_open(self, daemon, d->above, disk, &upper, error);
    if (r < 0)
        return r;
    NodeUse use = {.role = "root", .is_fixed = true, .user = g_strdup("disk-plan"), .perms = &none};
    *ret_use = named_node_use(upper, &use);
    *ret_estimate = (Estimate){
        .upper = upper->node,
        .lower =
            node_instances_get(disk_layer_node(daemon->nodes, d->layer), named_node_loop(upper)),
    };
    return 0;
}

static int estimate(Fiber *self, const Deletion *d, bool checks_space, Estimate *ret_estimate,
                    GError **error)
{
    FiberMutex *lock = nodes_graph_lock(d->call->daemon->nodes);
    NodeUse *use = NULL;
    fiber_mutex_lock(self, lock);
    int r = open_pair(self, d, &use, ret_estimate, error);
    fiber_mutex_unlock(self, lock);
    if (r < 0)
        return r;
    Loop *loop = named_node_loop(use->used);
    if (remote_call_fiber_reserve(self, loop, estimate_on_loop, ret_estimate) < 0)
        ret_estimate->result = -ENOMEM;
    fiber_mutex_lock(self, lock);
    nodes_end_use(self, d->call->daemon->nodes, use);
    disk_layer_close_unused(self, d->call->daemon, d->above);
    fiber_mutex_unlock(self, lock);
    if (ret_estimate->result < 0)
        return qmp_fail(error, "the tables of '%s' cannot be read: %s", d->above->file,
                        g_strerror(-ret_estimate->result));
    add_blocked(d, checks_space, ret_estimate);
    return 0;
}

static void estimate_clear(Estimate *e)
{
    for (unsigned i = 0; i < N_MERGES; i++)
        g_free(e->costs[i].blocked);
}

// N_MERGES: neither can be.
static unsigned choose(const Estimate *e)
{
    bool may_stream = !e->costs[STREAM].blocked, may_commit = !e->costs[COMMIT].blocked;
    if (may_stream && may_commit)
        return e->costs[COMMIT].copy < e->costs[STREAM].copy ? COMMIT : STREAM;
    return may_stream ? STREAM : may_commit ? COMMIT : N_MERGES;
}

// -- without a job --------------------------------------------------------------------------------

static int forget(Fiber *self, Deletion *d, GError **error)
{
    Catalogue *catalogue = d->catalogue;
    Daemon *daemon = d->call->daemon;
    json_t *files = json_array();
    DatabaseChange *change = database_change_new();
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    disk_layer_close_unused(self, daemon, d->layer);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
    disk_remove_point(change, d->disk, d->point);
    catalogue_drop_unneeded(catalogue, change, files);
    int64_t intent =
        catalogue_add_intent(catalogue, change, "remove", json_pack("{s:O}", "files", files));
    int r = database_note(self, catalogue->database, change, error);
    stop_point("disk-delete-point: it is forgotten");
    if (r == 0)
        disk_files_remove_intended(self, daemon, intent, files);
    json_decref(files);
    return r;
}

static json_t *describe_cost(const char *way, const Cost *cost)
{
    json_t *info = json_pack("{s:s, s:I, s:I, s:I, s:s*}", "way", way, "copy",
                             (json_int_t)cost->copy, "space", (json_int_t)cost->space, "freed",
                             (json_int_t)cost->freed, "blocked", cost->blocked);
    if (cost->available != UINT64_MAX)
        json_object_set_new(info, "available", json_integer((json_int_t)cost->available));
    return info;
}

// What it is without a merge.
static Cost cost_of_none(Fiber *self, const Deletion *d)
{
    Cost cost = {.available = UINT64_MAX};
    if (!d->n_above && d->layer->is_ours)
        cost.freed = disk_files_allocated(self, d->layer->file);
    return cost;
}

static const char *way_of_none(const Deletion *d)
{
    return d->n_above ? "keep" : "drop";
}

// -- disk-plan ------------------------------------------------------------------------------------

static const char *const way_names[] = {"stream", "commit"};

static int plan_merge(Fiber *self, const Deletion *d, json_t **ret_reply, GError **error)
{
    Estimate e;
    int r = estimate(self, d, true, &e, error);
    if (r < 0)
        return r;
    json_t *ways = json_array();
    unsigned best = choose(&e);
    for (unsigned i = 0; i < N_MERGES; i++) {
        unsigned at = best == N_MERGES ? i : (best + i) % N_MERGES;
        json_array_append_new(ways, describe_cost(way_names[at], &e.costs[at]));
    }
    *ret_reply =
        json_pack("{s:o, s:s*}", "ways", ways, "way", best == N_MERGES ? NULL : way_names[best]);
    estimate_clear(&e);
    return 0;
}

static int plan(Fiber *self, Deletion *d, const json_t *args, json_t **ret_reply, GError **error)
{
    int r = find(d, args, error);
    if (r < 0)
        return r;
    if (d->above)
        return plan_merge(self, d, ret_reply, error);
    Cost cost = cost_of_none(self, d);
    *ret_reply = json_pack("{s:[o], s:s}", "ways", describe_cost(way_of_none(d), &cost), "way",
                           way_of_none(d));
    return 0;
}

static int disk_plan(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                     GError **error)
{
    Deletion d = {.call = call, .catalogue = qmp_disks_begin(self, call, error)};
    if (!d.catalogue)
        return -ENOENT;
    int r = plan(self, &d, args, ret_reply, error);
    qmp_disks_end(self, d.catalogue);
    return r;
}

// -- disk-delete-point ----------------------------------------------------------------------------

static int start_stream(Fiber *self, Deletion *d, const json_t *args, char **ret_job,
                        GError **error)
{
    DiskStreamJob *stream = g_new0(DiskStreamJob, 1);
    NamedNode *named;
    Daemon *daemon = d->call->daemon;
    const Disk *head = catalogue_disk_of_head(d->catalogue, d->above);
    disk_job_init(&stream->job, d->call, d->catalogue, "delete");
    g_autofree char *id = g_strdup(stream->job.id);
    stream->merge = (StreamMerge){d->above, d->layer->below, d->point ? d->disk : NULL, NULL};
    stream->point = d->point ? g_strdup(d->point->name) : NULL;
    int r = disk_job_take_disk(&stream->job, d->disk, error);
    if (r == 0)
        r = disk_job_take(&stream->job, d->above, error);
    if (r == 0)
        r = disk_job_take(&stream->job, d->layer, error);
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    if (r == 0)
        r = disk_layer_open(self, daemon, d->above, head, &named, error);
    if (r == 0)
        disk_job_gather(self, &stream->job, d->above);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
    if (r == 0) {
        r = disk_stream_start(self, d->call, stream, args, error);
    } else {
        disk_job_drop(self, &stream->job);
        g_free(stream->point);
        g_free(stream);
    }
    if (r == 0)
        *ret_job = g_steal_pointer(&id);
    return r;
}

static int start_commit(Fiber *self, Deletion *d, const json_t *args, char **ret_job,
                        GError **error)
{
    DiskCommitJob *commit = g_new0(DiskCommitJob, 1);
    disk_job_init(&commit->job, d->call, d->catalogue, "delete");
    g_autofree char *id = g_strdup(commit->job.id);
    commit->merge = (CommitMerge){.top = d->above, .base = d->layer};
    int r = disk_job_take_disk(&commit->job, d->disk, error);
    if (r == 0)
        r = disk_commit_open(self, commit, error);
    if (r == 0) {
        r = disk_commit_start(self, d->call, commit, d->disk, d->point, args, error);
    } else {
        disk_job_drop(self, &commit->job);
        g_free(commit);
    }
    if (r == 0)
        *ret_job = g_steal_pointer(&id);
    return r;
}

static bool lacks_space(const Estimate *e)
{
    return e->costs[STREAM].space > e->costs[STREAM].available ||
           e->costs[COMMIT].space > e->costs[COMMIT].available;
}

static int merge(Fiber *self, Deletion *d, const Estimate *e, const json_t *args,
                 json_t **ret_reply, GError **error)
{
    const char *wanted = qmp_args_str(args, "way");
    unsigned way = !wanted                         ? choose(e)
                   : g_str_equal(wanted, "stream") ? STREAM
                   : g_str_equal(wanted, "commit") ? COMMIT
                                                   : N_MERGES;
    if (way == N_MERGES && !wanted)
        return qmp_disk_refuse(error, lacks_space(e) ? -ENOSPC : -EINVAL,
                               "'%s' cannot go: by a stream, %s; by a commit, %s", d->layer->file,
                               e->costs[STREAM].blocked, e->costs[COMMIT].blocked);
    if (way != N_MERGES && e->costs[way].blocked)
        return qmp_disk_refuse(error, lacks_space(e) ? -ENOSPC : -EINVAL,
                               "'%s' cannot go by a %s: %s", d->layer->file, way_names[way],
                               e->costs[way].blocked);
    if (way == N_MERGES)
        return qmp_fail(error, "layer '%s' stands on it: the way is stream or commit",
                        d->above->file);
    g_autofree char *job = NULL;
    int r = way == STREAM ? start_stream(self, d, args, &job, error)
                          : start_commit(self, d, args, &job, error);
    if (r == 0)
        *ret_reply =
            json_pack("{s:s, s:s, s:I, s:I}", "job", job, "way", way_names[way], "copy",
                      (json_int_t)e->costs[way].copy, "freed", (json_int_t)e->costs[way].freed);
    return r;
}

static int delete_merged(Fiber *self, Deletion *d, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    Estimate e;
    int r = estimate(self, d, disk_space_is_checked(args), &e, error);
    if (r < 0)
        return r;
    r = merge(self, d, &e, args, ret_reply, error);
    estimate_clear(&e);
    return r;
}

static int delete_point(Fiber *self, Deletion *d, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    const char *wanted = qmp_args_str(args, "way");
    int r = find(d, args, error);
    if (r < 0)
        return r;
    if (d->above && g_strcmp0(wanted, "keep") != 0)
        return delete_merged(self, d, args, ret_reply, error);
    if (!d->point)
        return qmp_fail(error, "%u layers stand on it: it stays as long as they do", d->n_above);
    const char *way = way_of_none(d);
    if (wanted && !g_str_equal(wanted, way))
        return qmp_fail(error, "%u layers stand on it: the way is %s", d->n_above, way);
    Cost cost = cost_of_none(self, d);
    r = forget(self, d, error);
    if (r == 0)
        *ret_reply =
            json_pack("{s:s, s:i, s:I}", "way", way, "copy", 0, "freed", (json_int_t)cost.freed);
    return r;
}

static int disk_delete_point_command(Fiber *self, QmpCall *call, const json_t *args,
                                     json_t **ret_reply, GError **error)
{
    Deletion d = {.call = call, .catalogue = qmp_disks_begin(self, call, error)};
    if (!d.catalogue)
        return -ENOENT;
    int r = delete_point(self, &d, args, ret_reply, error);
    qmp_disks_end(self, d.catalogue);
    return r;
}

static const QmpCommand commands[] = {
    {"disk-plan", &plan_args, &plan_type,
     "What it would cost to delete a point in time, in each way. Nothing is changed.", disk_plan,
     .is_query = true},
    {"disk-delete-point", &delete_args, &deleted_type,
     "Deletes a point in time, while clients go on. All other points, of this disk and of others, "
     "show what they did. By a stream the point is there until the job has ended; by a commit it "
     "is "
     "gone when the command answers, and a job that is cancelled leaves a layer that is deleted "
     "like "
     "a point. Files leave last, if they are ours. Refused, with both figures, where there is no "
     "room.",
     disk_delete_point_command},
    {0},
};

const QmpFamily qmp_disk_delete_family = {.title = "Points in time of disks that go",
                                          .commands = commands};
