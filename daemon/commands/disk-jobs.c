// SPDX-License-Identifier: LGPL-2.1-or-later
// In this order: the intent is durable; the job works, while disks hold their layers where they
// are; it switches, which headers of images say; the catalogue notes it; nodes are closed; files
// are removed.
#include "disk-jobs.h"

#include <errno.h>

#include "block-commit.h"
#include "block-stream.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-info.h"
#include "disk-space.h"

// -- what it takes --------------------------------------------------------------------------------

void disk_job_init(DiskJob *job, const QmpCall *call, Catalogue *catalogue, const char *verb)
{
    *job = (DiskJob){
        .daemon = call->daemon,
        .catalogue = catalogue,
        .id = g_strdup_printf("%s-%" G_GINT64_FORMAT, verb, catalogue_next_job(catalogue, NULL)),
        .disks = g_ptr_array_new(),
        .closing = g_ptr_array_new_with_free_func(g_free),
    };
}

json_t *disk_job_args(const DiskJob *job, const json_t *args)
{
    return json_pack("{s:s, s:I}", "job-id", job->id, "speed",
                     (json_int_t)qmp_args_int(args, "speed", 0));
}

int disk_job_take_disk(DiskJob *job, Disk *disk, GError **error)
{
    if (g_ptr_array_find(job->disks, disk, NULL))
        return 0;
    if (disk->problem)
        return qmp_fail(error, "disk '%s', which is concerned, is not open: %s", disk->name,
                        disk->problem);
    if (disk->job)
        return qmp_fail(
            error, "disk '%s' is busy: job '%s' is at work on it; wait for its end, or cancel it",
            disk->name, disk->job);
    disk->job = g_strdup(job->id);
    g_ptr_array_add(job->disks, disk);
    return 0;
}

void disk_job_add_closing(DiskJob *job, const DiskLayer *layer)
{
    char name[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(layer, name);
    g_ptr_array_add(job->closing, g_strdup(name));
}

int disk_job_take(DiskJob *job, const DiskLayer *layer, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < job->catalogue->disks->len; i++) {
        Disk *disk = job->catalogue->disks->pdata[i];
        if (disk_needs_layer(disk, layer))
            r = disk_job_take_disk(job, disk, error);
    }
    disk_job_add_closing(job, layer);
    return r;
}

void disk_job_gather(Fiber *self, const DiskJob *job, const DiskLayer *layer)
{
    Nodes *nodes = job->daemon->nodes;
    for (guint i = 0; i < job->disks->len; i++) {
        const Disk *disk = job->disks->pdata[i];
        NamedNode *head = disk_layer_node(nodes, disk->head);
        if (head && disk_has_layer(disk, layer))
            nodes_move(self, nodes, head, named_node_loop(disk_layer_node(nodes, layer)), NULL);
    }
}

// -- start and end --------------------------------------------------------------------------------

static void be_idle(const DiskJob *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        g_clear_pointer(&((Disk *)job->disks->pdata[i])->job, g_free);
}

static void job_clear(DiskJob *job)
{
    be_idle(job);
    g_ptr_array_unref(job->disks);
    g_ptr_array_unref(job->closing);
    merge_left_clear(&job->left);
    g_free(job->id);
}

static void close_nodes(Fiber *self, const DiskJob *job)
{
    Nodes *nodes = job->daemon->nodes;
    for (guint i = 0; i < job->closing->len; i++) {
        NamedNode *named = nodes_find(nodes, job->closing->pdata[i]);
        if (named && !named->users->len)
            nodes_close(self, nodes, named);
    }
}

void disk_job_drop(Fiber *self, DiskJob *job)
{
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    fiber_mutex_lock(self, lock);
    close_nodes(self, job);
    fiber_mutex_unlock(self, lock);
    job_clear(job);
}

static void let_go(const DiskJob *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        disk_let_go(job->disks->pdata[i]);
}

static void hold(const DiskJob *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        disk_hold(job->daemon, job->disks->pdata[i]);
}

int disk_job_start(Fiber *self, const QmpCall *call, DiskJob *job, QmpPrepareJobFn *prepare,
                   const json_t *args, const JobFollower *follower, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    QmpJobStart start;
    fiber_mutex_lock(self, lock);
    let_go(job);
    int r = prepare(self, call, args, &start, error);
    hold(job);
    if (r == 0) {
        job_follow(start.job, follower, job);
        job_start(self, start.job, start.loop);
    }
    fiber_mutex_unlock(self, lock);
    return r;
}

void disk_job_end(Fiber *self, DiskJob *job)
{
    FiberMutex *lock = nodes_graph_lock(job->daemon->nodes);
    fiber_mutex_lock(self, lock);
    hold(job);
    close_nodes(self, job);
    fiber_mutex_unlock(self, lock);
    if (job->left.intent)
        disk_files_remove_intended(self, job->daemon, job->left.intent, job->left.files);
    job_clear(job);
}

// -- streams --------------------------------------------------------------------------------------

static int stream_prepared(Fiber *self, void *arg, GError **error)
{
    DiskStreamJob *stream = arg;
    Catalogue *catalogue = stream->job.catalogue;
    stop_point("a stream has switched");
    fiber_mutex_lock(self, &catalogue->lock);
    stream_merge_note(self, catalogue, stream->job.intent, &stream->merge, &stream->job.left);
    fiber_mutex_unlock(self, &catalogue->lock);
    return 0;
}

static void stream_ended(Fiber *self, void *arg, const char *error)
{
    DiskStreamJob *stream = arg;
    Catalogue *catalogue = stream->job.catalogue;
    fiber_mutex_lock(self, &catalogue->lock);
    if (!stream->job.left.intent)
        merge_give_up(self, catalogue, stream->job.intent);
    disk_job_end(self, &stream->job);
    fiber_mutex_unlock(self, &catalogue->lock);
    g_free(stream->point);
    g_free(stream);
}

static const JobFollower stream_follower = {stream_prepared, stream_ended};

static int start_stream(Fiber *self, const QmpCall *call, DiskStreamJob *stream, const json_t *args,
                        GError **error)
{
    char image[LAYER_NODE_NAME_BYTES], base[LAYER_NODE_NAME_BYTES];
    stream->job.intent = catalogue_intend(self, stream->job.catalogue, "stream",
                                          stream_merge_detail(&stream->merge), error);
    if (stream->job.intent < 0)
        return -EIO;
    stop_point("a stream is intended");
    json_t *of_job = disk_job_args(&stream->job, args);
    disk_space_set_on_error(of_job, "on-error", args);
    disk_layer_node_name(stream->merge.image, image);
    json_object_set_new(of_job, "device", json_string(image));
    if (stream->merge.base) {
        disk_layer_node_name(stream->merge.base, base);
        json_object_set_new(of_job, "base-node", json_string(base));
    }
    int r = disk_job_start(self, call, &stream->job, qmp_prepare_stream, of_job, &stream_follower,
                           error);
    json_decref(of_job);
    if (r < 0)
        merge_give_up(self, stream->job.catalogue, stream->job.intent);
    return r;
}

int disk_stream_start(Fiber *self, const QmpCall *call, DiskStreamJob *stream, const json_t *args,
                      GError **error)
{
    stream->merge.point = stream->point;
    int r = start_stream(self, call, stream, args, error);
    if (r == 0)
        return 0;
    disk_job_drop(self, &stream->job);
    g_free(stream->point);
    g_free(stream);
    return r;
}

// -- commits --------------------------------------------------------------------------------------

// From the nodes' loop, while guests wait; on the control loop.
typedef struct PivotCall {
    DiskCommitJob *commit;
    int result;
    GError *error;
} PivotCall;

static void pivot_on_control(Fiber *self, void *arg)
{
    PivotCall *call = arg;
    DiskCommitJob *commit = call->commit;
    call->result = commit_merge_pivot(self, commit->job.catalogue, commit->job.intent,
                                      &commit->merge, &commit->job.left, &call->error);
    commit->is_pivoted = call->result == 0;
}

// The catalogue's lock is not asked for: until the job ends nobody else changes these disks, and
// what is written is written one after the other.
static int before_pivot(Fiber *self, void *arg, GError **error)
{
    PivotCall call = {.commit = arg};
    Loop *control = daemon_control_loop(call.commit->job.daemon);
    if (remote_call_fiber_reserve(self, control, pivot_on_control, &call) < 0)
        return -ENOMEM;
    if (call.error)
        g_propagate_error(error, call.error);
    return call.result;
}

static bool is_over_base(void *arg, const DiskLayer *overlay)
{
    return true;
}

static int commit_prepared(Fiber *self, void *arg, GError **error)
{
    DiskCommitJob *commit = arg;
    Catalogue *catalogue = commit->job.catalogue;
    stop_point("a commit has switched");
    if (commit->is_pivoted)
        return 0;
    fiber_mutex_lock(self, &catalogue->lock);
    commit_merge_note(self, catalogue, commit->job.intent, &commit->merge, is_over_base, NULL,
                      &commit->job.left);
    fiber_mutex_unlock(self, &catalogue->lock);
    return 0;
}

static void commit_ended(Fiber *self, void *arg, const char *error)
{
    DiskCommitJob *commit = arg;
    Catalogue *catalogue = commit->job.catalogue;
    fiber_mutex_lock(self, &catalogue->lock);
    if (!commit->job.left.intent)
        merge_give_up(self, catalogue, commit->job.intent);
    disk_job_end(self, &commit->job);
    fiber_mutex_unlock(self, &catalogue->lock);
    g_free(commit);
}

static const JobFollower commit_follower = {commit_prepared, commit_ended};

static int open_layer(Fiber *self, DiskCommitJob *commit, DiskLayer *layer, GError **error)
{
    NamedNode *named;
    Daemon *daemon = commit->job.daemon;
    const Disk *disk = catalogue_disk_of_head(commit->job.catalogue, layer);
    int r = disk_job_take(&commit->job, layer, error);
    return r == 0 ? disk_layer_open(self, daemon, layer, disk, &named, error) : r;
}

int disk_commit_open(Fiber *self, DiskCommitJob *commit, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(commit->job.daemon->nodes);
    g_autoptr(GPtrArray) overlays =
        catalogue_layers_above(commit->job.catalogue, commit->merge.top);
    fiber_mutex_lock(self, lock);
    int r = 0;
    for (guint i = 0; r == 0 && i < overlays->len; i++)
        r = open_layer(self, commit, overlays->pdata[i], error);
    if (r == 0)
        r = open_layer(self, commit, commit->merge.top, error);
    if (r == 0)
        r = open_layer(self, commit, commit->merge.base, error);
    if (r == 0)
        disk_job_gather(self, &commit->job, commit->merge.base);
    fiber_mutex_unlock(self, lock);
    return r;
}

// The point is gone, and what the base shows by itself is nobody's, from here on; durable.
static int note_begin(Fiber *self, DiskCommitJob *commit, Disk *disk, Point *point, GError **error)
{
    Catalogue *catalogue = commit->job.catalogue;
    DatabaseChange *change = database_change_new();
    database_change_add(change, "UPDATE counters SET value = %lld WHERE name = 'job'",
                        (long long)catalogue->last_job);
    if (point)
        database_change_add(change, "DELETE FROM points WHERE disk = %Q AND name = %Q", disk->name,
                            point->name);
    database_change_add(change, "UPDATE layers SET is_merging = 1 WHERE id = %lld",
                        (long long)commit->merge.base->id);
    commit->job.intent =
        catalogue_add_intent(catalogue, change, "commit", commit_merge_detail(&commit->merge));
    int r = database_write(self, catalogue->database, change, error);
    if (r < 0)
        return r;
    if (point)
        disk_remove_point(NULL, disk, point);
    disk_layer_set_merging(NULL, commit->merge.base, true);
    stop_point("a commit is intended");
    return 0;
}

// What there was before note_begin().
typedef struct Begun {
    Disk *disk;
    const char *point; // NULL: none
    int64_t created_s;
    bool was_merging;
} Begun;

// Nothing was written into the base.
static void take_back_begin(Fiber *self, const DiskCommitJob *commit, const Begun *begun)
{
    g_autoptr(GError) error = NULL;
    DatabaseChange *change = database_change_new();
    if (begun->point)
        disk_add_point(change, begun->disk, begun->point, commit->merge.base, begun->created_s);
    disk_layer_set_merging(change, commit->merge.base, begun->was_merging);
    catalogue_end_intent(change, commit->job.intent);
    if (database_note(self, commit->job.catalogue->database, change, &error) < 0)
        log_line(LOG_ERROR, "%s", error->message);
}

// Of a chain that has the layer.
static const NamedNode *root_over(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && !g_str_equal(use->role, "snapshot"))
            return root_over(use->by);
    }
    return named;
}

static json_t *args_of_commit(const DiskCommitJob *commit, const json_t *args)
{
    const Nodes *nodes = commit->job.daemon->nodes;
    const NamedNode *top = disk_layer_node(nodes, commit->merge.top);
    const NamedNode *root = root_over(top);
    json_t *of_job = disk_job_args(&commit->job, args);
    disk_space_set_on_error(of_job, "on-error", args);
    json_object_set_new(of_job, "device", json_string(root->name));
    json_object_set_new(of_job, "top-node", json_string(top->name));
    json_object_set_new(of_job, "base-node",
                        json_string(disk_layer_node(nodes, commit->merge.base)->name));
    if (root == top)
        json_object_set_new(of_job, "auto-complete", json_true());
    return of_job;
}

static int start_commit(Fiber *self, const QmpCall *call, DiskCommitJob *commit, Disk *disk,
                        Point *point, const json_t *args, GError **error)
{
    QmpCall with_pivot = *call;
    g_autofree char *name = point ? g_strdup(point->name) : NULL;
    const Begun begun = {disk, name, point ? point->created_s : 0, commit->merge.base->is_merging};
    int r = note_begin(self, commit, disk, point, error);
    if (r < 0)
        return r;
    commit->pivot = (JobPivot){before_pivot, commit};
    if (catalogue_disk_of_head(commit->job.catalogue, commit->merge.top))
        with_pivot.pivot = &commit->pivot;
    json_t *of_job = args_of_commit(commit, args);
    r = disk_job_start(self, &with_pivot, &commit->job, qmp_prepare_commit, of_job,
                       &commit_follower, error);
    json_decref(of_job);
    if (r < 0)
        take_back_begin(self, commit, &begun);
    return r;
}

int disk_commit_start(Fiber *self, const QmpCall *call, DiskCommitJob *commit, Disk *disk,
                      Point *point, const json_t *args, GError **error)
{
    int r = start_commit(self, call, commit, disk, point, args, error);
    if (r == 0)
        return 0;
    disk_job_drop(self, &commit->job);
    g_free(commit);
    return r;
}

// -- again ----------------------------------------------------------------------------------------

static int resume_one(Fiber *self, const QmpCall *call, Catalogue *catalogue, DiskLayer *base,
                      GError **error)
{
    g_autoptr(GPtrArray) above = catalogue_layers_above(catalogue, base);
    if (above->len != 1)
        return 0;
    DiskCommitJob *commit = g_new0(DiskCommitJob, 1);
    disk_job_init(&commit->job, call, catalogue, "delete");
    commit->merge = (CommitMerge){.top = above->pdata[0], .base = base};
    int r = disk_commit_open(self, commit, error);
    if (r == 0)
        return disk_commit_start(self, call, commit, NULL, NULL, NULL, error);
    disk_job_drop(self, &commit->job);
    g_free(commit);
    return r;
}

void disk_jobs_resume(Fiber *self, const QmpCall *call, Catalogue *catalogue)
{
    g_autoptr(GPtrArray) merging = g_ptr_array_new();
    GHashTableIter iter;
    gpointer layer;
    g_hash_table_iter_init(&iter, catalogue->layers);
    while (g_hash_table_iter_next(&iter, NULL, &layer))
        if (((DiskLayer *)layer)->is_merging)
            g_ptr_array_add(merging, layer);
    for (guint i = 0; i < merging->len; i++) {
        const DiskLayer *base = merging->pdata[i];
        g_autoptr(GError) error = NULL;
        g_autofree char *file = g_strdup(base->file);
        if (resume_one(self, call, catalogue, merging->pdata[i], &error) < 0)
            log_line(LOG_ERROR, "the merge into '%s' is not begun again: %s", file, error->message);
    }
}
