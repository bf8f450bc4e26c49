// SPDX-License-Identifier: LGPL-2.1-or-later
// A pull: an export shows what a disk was at one moment, for as long as a backup program needs,
// while clients go on. What they are about to change is saved to a scratch image on this machine
// before, so they wait for no reader. With the moment a checkpoint begins, which is there if the
// program says that it has read all; else nothing is left.
//
// The scratch image is named by an intent before it is made, and goes in any case. Control loop.
#include "disk-pull.h"

#include <errno.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/table.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-changed.h"
#include "disk-info.h"
#include "disk-jobs.h"
#include "new-image.h"
#include "transaction.h"

#define CONTEXT_BITMAP "changed"

// -- types ----------------------------------------------------------------------------------------

static const QmpType pull_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"disk", &qmp_str, .doc = "the disk"},
            {"since", &qmp_str, true,
             "a checkpoint: the export tells what has changed since then. Or `last`: since the "
             "latest one that can be used, and all where none can; the reply says why"},
            {"checkpoint", &qmp_str, true,
             "the name of the checkpoint that this moment is; that of the job, unless given"},
            {"name", &qmp_str, true, "of the export; the job's id, unless given"},
            {"directory", &qmp_str, true,
             "where the scratch image is made; the state directory's `images`, unless given"},
            {0}},
};
static const QmpType uri_list = {.kind = QMP_ARRAY, .element = &qmp_str};
static const QmpType pull_info = {
    .name = "DiskPullInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"job", &qmp_str, .doc = "the job that keeps the moment; disk-pull-end ends it"},
            {"export", &qmp_str, .doc = "the export, read-only"},
            {"uris", &uri_list, .doc = "where clients find it"},
            {"context", &qmp_str, true,
             "the metadata context that tells what has changed; none: all counts"},
            {"copy", &qmp_int, .doc = "bytes that count, at most"},
            {"checkpoint", &qmp_str, true,
             "the checkpoint that is there once it has ended well; none: the disk's head is no "
             "qcow2 image, or read-only"},
            {"since", &qmp_str, true, "the checkpoint since which it tells"},
            {"reason", &qmp_str, true, "why it is not since the latest checkpoint"},
            {0}},
};
static const QmpType end_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"disk", &qmp_str, .doc = "the disk"},
                                   {"success", &qmp_bool,
                                    .doc = "whether all was read that was wanted: then the moment "
                                           "is a checkpoint"},
                                   {0}},
};

// -- the job --------------------------------------------------------------------------------------

struct DiskPull {
    DiskJob job; // first
    QmpCall call;
    Disk *disk;
    DiskChanges changes; // until the start
    char *checkpoint;    // NULL: none
    char *scratch;       // its file; its node and the export's id are the job's id
    char *name;          // of the export
    char *bitmap;        // of the checkpoint, on the head; NULL: not made
    int64_t created_s;
    bool is_made; // the scratch image
    bool is_well; // the reader says so
};

static void pull_free(DiskPull *p)
{
    g_free(p->checkpoint);
    g_free(p->scratch);
    g_free(p->name);
    g_free(p->bitmap);
    g_free(p);
}

static void remove_export(Fiber *self, const DiskPull *p)
{
    Exports *exports = p->job.daemon->exports;
    Export *export = exports_find(exports, p->job.id);
    if (export && !export->is_shutting_down)
        exports_remove(self, exports, export);
    else if (export)
        exports_wait_removed(self, exports);
}

static void close_scratch(Fiber *self, const DiskPull *p)
{
    Nodes *nodes = p->job.daemon->nodes;
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    NamedNode *named = nodes_find(nodes, p->job.id);
    if (named && !named->users->len)
        nodes_close(self, nodes, named);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
}

static void remove_scratch(Fiber *self, const DiskPull *p)
{
    json_t *files = p->is_made ? json_pack("[s]", p->scratch) : json_array();
    close_scratch(self, p);
    disk_files_remove_intended(self, p->job.daemon, p->job.intent, files);
    json_decref(files);
}

static void note_checkpoint(Fiber *self, const DiskPull *p)
{
    g_autoptr(GError) error = NULL;
    DatabaseChange *change = database_change_new();
    disk_add_checkpoint(change, p->disk,
                        &(Checkpoint){p->checkpoint, p->disk->head, NULL, p->created_s});
    if (database_note(self, p->job.catalogue->database, change, &error) < 0)
        log_line(LOG_ERROR, "%s", error->message);
    stop_point("disk-pull: the checkpoint is noted");
}

// It is never over by itself: its end is a cancel. Readers fail from then on. Should it come before
// the command that began it has added the export, that is there once the lock is.
static void ended(Fiber *self, void *arg, const char *error)
{
    DiskPull *p = arg;
    Catalogue *catalogue = p->job.catalogue;
    remove_export(self, p);
    fiber_mutex_lock(self, &catalogue->lock);
    remove_export(self, p);
    if (p->is_well && p->checkpoint)
        note_checkpoint(self, p);
    else
        disk_changed_remove_bitmap(self, &p->call, p->disk, p->bitmap);
    remove_scratch(self, p);
    p->disk->pull = NULL;
    disk_job_end(self, &p->job);
    fiber_queue_wake_all(&catalogue->pulls_ended);
    fiber_mutex_unlock(self, &catalogue->lock);
    pull_free(p);
}

static int prepared(Fiber *self, void *arg, GError **error)
{
    return 0;
}

static const JobFollower follower = {prepared, ended};

// -- the start ------------------------------------------------------------------------------------

static int make_scratch(Fiber *self, DiskPull *p, GError **error)
{
    char head[LAYER_NODE_NAME_BYTES];
    NamedNode *named = disk_layer_node(p->job.daemon->nodes, p->disk->head);
    const NewImage image = {
        .path = p->scratch,
        .format = "qcow2",
        .size_bytes = named->facts.size_bytes,
        .below = named_node_image(named),
    };
    int r = new_image_create(self, named_node_loop(named), &image, error);
    p->is_made = r == 0;
    stop_point("disk-pull: the scratch image is made");
    if (r < 0)
        return r;
    disk_layer_node_name(p->disk->head, head);
    return qmp_table_run_by_name(self, &p->call, "blockdev-add",
                                 json_pack("{s:s, s:s, s:s, s:s, s:{s:s, s:s, s:s}}", "driver",
                                           "qcow2", "node-name", p->job.id, "backing", head,
                                           "discard", "unmap", "file", "driver", "file", "filename",
                                           p->scratch, "discard", "unmap"),
                                 error);
}

static void add_action(json_t *actions, const char *type, json_t *data)
{
    json_array_append_new(actions, json_pack("{s:s, s:o}", "type", type, "data", data));
}

// All of one moment.
static json_t *actions_of(const DiskPull *p)
{
    char head[LAYER_NODE_NAME_BYTES];
    const char *id = p->job.id;
    json_t *actions = json_array();
    disk_layer_node_name(p->disk->head, head);
    if (p->bitmap)
        add_action(actions, "block-dirty-bitmap-add",
                   json_pack("{s:s, s:s, s:b}", "node", head, "name", p->bitmap, "persistent", 1));
    if (p->changes.bitmap) {
        add_action(actions, "block-dirty-bitmap-add",
                   json_pack("{s:s, s:s, s:b}", "node", id, "name", CONTEXT_BITMAP, "disabled", 1));
        add_action(actions, "block-dirty-bitmap-merge",
                   json_pack("{s:s, s:s, s:[{s:s, s:s}]}", "node", id, "target", CONTEXT_BITMAP,
                             "bitmaps", "node", head, "name", p->changes.bitmap));
    }
    add_action(actions, "blockdev-backup",
               json_pack("{s:s, s:s, s:s, s:s}", "job-id", id, "device", head, "target", id, "sync",
                         "none"));
    return json_pack("{s:o}", "actions", actions);
}

static int begin_job(Fiber *self, DiskPull *p, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(p->job.daemon->nodes);
    json_t *actions = actions_of(p);
    QmpCall call = p->call;
    call.follower = &follower;
    call.follower_arg = p;
    int r = qmp_rehearse_transaction(self, &call, actions, error);
    if (r == 0) {
        fiber_mutex_lock(self, lock);
        r = qmp_run_transaction(self, &call, actions, error);
        fiber_mutex_unlock(self, lock);
    }
    json_decref(actions);
    stop_point("disk-pull: the moment is kept");
    return r;
}

static int add_export(Fiber *self, const DiskPull *p, GError **error)
{
    json_t *args = json_pack("{s:s, s:s, s:s, s:s, s:b}", "type", "nbd", "id", p->job.id, "name",
                             p->name, "node-name", p->job.id, "allocation-depth", 1);
    if (p->changes.bitmap)
        json_object_set_new(args, "bitmaps", json_pack("[s]", CONTEXT_BITMAP));
    return qmp_table_run_by_name(self, &p->call, "block-export-add", args, error);
}

// Until the job runs, what was made is taken back here; then it is the job's to do.
static int start(Fiber *self, DiskPull *p, GError **error)
{
    int r = disk_job_take_disk(&p->job, p->disk, error);
    if (r < 0)
        return r;
    p->job.intent = catalogue_intend(self, p->job.catalogue, "make",
                                     json_pack("{s:[s]}", "files", p->scratch), error);
    if (p->job.intent < 0)
        return -EIO;
    stop_point("disk-pull: it is intended");
    r = make_scratch(self, p, error);
    if (r == 0 && p->checkpoint)
        p->bitmap = disk_changed_bitmap_name(p->checkpoint);
    if (r == 0)
        r = begin_job(self, p, error);
    if (r < 0)
        remove_scratch(self, p);
    return r;
}

// -- disk-pull ------------------------------------------------------------------------------------

static json_t *describe(const DiskPull *p)
{
    const Checkpoint *since = p->changes.since;
    json_t *uris = json_array();
    g_auto(GStrv) all = nbd_server_uris(p->job.daemon->nbd, p->name);
    for (char **uri = all; *uri; uri++)
        json_array_append_new(uris, json_string(*uri));
    return json_pack("{s:s, s:s, s:o, s:s*, s:I, s:s*, s:s*, s:s*}", "job", p->job.id, "export",
                     p->name, "uris", uris, "context",
                     since ? "qemu:dirty-bitmap:" CONTEXT_BITMAP : NULL, "copy",
                     (json_int_t)p->changes.bytes, "checkpoint", p->checkpoint, "since",
                     since ? since->name : NULL, "reason", p->changes.reason);
}

static DiskPull *new_pull(Fiber *self, const QmpCall *call, Catalogue *catalogue, Disk *disk,
                          const json_t *args)
{
    const char *directory = qmp_args_str(args, "directory");
    g_autofree char *full =
        directory ? g_canonicalize_filename(directory, NULL) : g_strdup(catalogue->images_dir);
    DiskPull *p = g_new0(DiskPull, 1);
    disk_job_init(&p->job, call, catalogue, "pull");
    p->call = (QmpCall){.daemon = call->daemon, .table = call->table, .is_negotiated = true};
    p->disk = disk;
    p->created_s = g_get_real_time() / G_USEC_PER_SEC;
    p->name = g_strdup(qmp_args_str(args, "name") ?: p->job.id);
    g_autofree char *stem = g_strdup_printf("%s.%s", disk->name, p->job.id);
    p->scratch =
        disk_files_choose(self, catalogue, &(NewFile){full, stem, "qcow2", catalogue->last_layer});
    if (disk_changed_can_note(disk))
        p->checkpoint = g_strdup(qmp_args_str(args, "checkpoint") ?: p->job.id);
    return p;
}

static int check(const QmpCall *call, const Disk *disk, const json_t *args, GError **error)
{
    const char *checkpoint = qmp_args_str(args, "checkpoint");
    if (!nbd_server_get(call->daemon->nbd))
        return qmp_fail(error, "there is no NBD server: begin one with nbd-server-start");
    return checkpoint ? disk_changed_check_new(disk, checkpoint, error) : 0;
}

// Its end takes the lock, and all back.
static void ask_to_end(Fiber *self, const DiskPull *p)
{
    Catalogue *catalogue = p->job.catalogue;
    Job *job = job_table_get(p->job.daemon->jobs, p->job.id, NULL);
    fiber_mutex_unlock(self, &catalogue->lock);
    if (job)
        job_cancel(self, job, true, NULL);
    fiber_mutex_lock(self, &catalogue->lock);
}

// The job runs already, and `p` is its own.
static int serve(Fiber *self, DiskPull *p, json_t **ret_reply, GError **error)
{
    p->disk->pull = p;
    int r = add_export(self, p, error);
    if (r == 0)
        *ret_reply = describe(p);
    disk_changes_done(self, &p->call, p->disk, &p->changes);
    if (r < 0)
        ask_to_end(self, p);
    return r;
}

static int pull(Fiber *self, QmpCall *call, Catalogue *catalogue, const json_t *args,
                json_t **ret_reply, GError **error)
{
    Disk *disk;
    int r = qmp_disks_get_idle(catalogue, args, "disk", &disk, error);
    if (r == 0)
        r = check(call, disk, args, error);
    if (r < 0)
        return r;
    DiskPull *p = new_pull(self, call, catalogue, disk, args);
    r = disk_changes_find(self, &p->call, disk, qmp_args_str(args, "since"), p->job.id, false,
                          &p->changes, error);
    if (r == 0)
        r = start(self, p, error);
    if (r == 0)
        return serve(self, p, ret_reply, error);
    disk_changes_done(self, &p->call, disk, &p->changes);
    disk_job_drop(self, &p->job);
    pull_free(p);
    return r;
}

static int disk_pull(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                     GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = pull(self, call, catalogue, args, ret_reply, error);
    qmp_disks_end(self, catalogue);
    return r;
}

// -- disk-pull-end --------------------------------------------------------------------------------

// With the catalogue's lock, which is given up until the job is over.
static int end(Fiber *self, const QmpCall *call, Catalogue *catalogue, const json_t *args,
               GError **error)
{
    Disk *disk = qmp_disks_get(catalogue, args, "disk", error);
    if (!disk)
        return -ENOENT;
    DiskPull *p = disk->pull;
    if (!p)
        return qmp_disk_refuse(error, -ENOENT,
                               "nobody pulls disk '%s' any more: the moment was not kept to its "
                               "end, or has ended already",
                               disk->name);
    Job *job = job_table_get(call->daemon->jobs, p->job.id, error);
    if (!job)
        return -ENOENT;
    p->is_well = qmp_args_bool(args, "success", false);
    fiber_mutex_unlock(self, &catalogue->lock);
    int r = job_cancel(self, job, true, error);
    fiber_mutex_lock(self, &catalogue->lock);
    while (r == 0 && catalogue_find_disk(catalogue, qmp_args_str(args, "disk")) == disk &&
           disk->pull == p) {
        fiber_mutex_unlock(self, &catalogue->lock);
        fiber_queue_wait(self, &catalogue->pulls_ended, false, "disks: the end of a pull");
        fiber_mutex_lock(self, &catalogue->lock);
    }
    return r;
}

static int disk_pull_end(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = end(self, call, catalogue, args, error);
    qmp_disks_end(self, catalogue);
    return r;
}

static const QmpCommand commands[] = {
    {"disk-pull", &pull_args, &pull_info,
     "Exports what a disk shows at this moment, read-only, for a backup program that reads it at "
     "its "
     "own pace, while clients go on: what they change is saved to a scratch image before, which is "
     "gone in the end. A metadata context tells what has changed since a checkpoint. Should the "
     "scratch image have no room, the moment is lost, and clients go on; reads of it fail then.",
     disk_pull},
    {"disk-pull-end", &end_args, NULL,
     "Ends that. With success the moment is a checkpoint. To cancel the job is to end without.",
     disk_pull_end},
    {0},
};

const QmpFamily qmp_disk_pull_family = {.title = "Backups of disks that are pulled",
                                        .commands = commands};
