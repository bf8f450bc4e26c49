// SPDX-License-Identifier: LGPL-2.1-or-later
// A backup is a qcow2 image: a full one, or one with what has changed since a checkpoint, over the
// backup of that. What has changed is what the checkpoint's bitmap says and, where the disk has got
// layers since, all that those own. A backup that went well is a checkpoint: its bitmap begins at
// the moment that the backup shows. One that did not leaves nothing: no file, no bitmap, and the
// checkpoints as they were.
//
// The file is named by an intent before it is made; with the checkpoint the intent ends. Control
// loop.
#include "disk-backup.h"

#include <errno.h>

#include "chain-core/qcow2-create.h"
#include "chain-core/remote-call.h"
#include "daemon/bitmaps.h"
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
#include "disk-space.h"
#include "transaction.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType backup_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"disk", &qmp_str, .doc = "the disk"},
            {"target", &qmp_str, .doc = "the file of the backup, which must not exist"},
            {"since", &qmp_str, true,
             "a checkpoint: only what has changed since then is copied, to an image over the "
             "backup "
             "of that. Or `last`: since the latest one that can be used, and all where none can; "
             "the "
             "reply says why. All, unless given"},
            {"checkpoint", &qmp_str, true,
             "the name of the checkpoint that this backup is; that of the job, unless given"},
            {"compress", &qmp_bool, true, "whether clusters are compressed; false"},
            {"dry-run", &qmp_bool, true, "whether only the reply is wanted; false"},
            {"speed", &qmp_int, true,
             "at most, in bytes a second; 0, which is the default: no limit"},
            DISK_SPACE_MEMBER,
            {0}},
};
static const QmpType started_type = {
    .name = "DiskBackupInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"job", &qmp_str, true, "the job that copies; none: a dry run"},
                            {"target", &qmp_str, .doc = "the file of the backup"},
                            {"copy", &qmp_int,
                             .doc = "bytes to be copied, at most; zeros that are known to be such "
                                    "are not"},
                            {"reason", &qmp_str, true, "why it is not since the latest checkpoint"},
                            {"checkpoint", &qmp_str, true,
                             "the checkpoint that is there once the job has ended well; none: "
                             "the disk's head is no qcow2 image, or read-only"},
                            {"since", &qmp_str, true, "the one since which it is"},
                            {0}},
};
static const QmpType forget_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"disk", &qmp_str, .doc = "the disk"},
                                   {"checkpoint", &qmp_str, .doc = "the checkpoint"},
                                   {0}},
};

// -- the job --------------------------------------------------------------------------------------

typedef struct DiskBackup {
    DiskJob job; // first
    QmpCall call;
    Disk *disk;
    DiskChanges changes;
    char *checkpoint; // NULL: none
    char *target;
    bool is_made; // the target
    char *bitmap; // of the checkpoint, on the head; NULL: none, or not made
    int64_t created_s;
    bool is_noted; // that it is one
} DiskBackup;

static void backup_free(DiskBackup *b)
{
    g_free(b->checkpoint);
    g_free(b->target);
    g_free(b->bitmap);
    g_free(b);
}

static void close_target(Fiber *self, const DiskBackup *b)
{
    Nodes *nodes = b->job.daemon->nodes;
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    NamedNode *named = nodes_find(nodes, b->job.id);
    if (named)
        nodes_close(self, nodes, named);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
}

// While the intent is there the target goes at the next start: it is a backup once that has ended.
static int note_checkpoint(Fiber *self, DiskBackup *b, GError **error)
{
    DatabaseChange *change = database_change_new();
    const Checkpoint as = {b->checkpoint, b->disk->head, b->target, b->created_s};
    Checkpoint *checkpoint = b->checkpoint ? disk_add_checkpoint(change, b->disk, &as) : NULL;
    catalogue_end_intent(change, b->job.intent);
    int r = database_write(self, b->job.catalogue->database, change, error);
    stop_point("disk-backup: the checkpoint is noted");
    b->is_noted = r == 0;
    if (r < 0 && checkpoint)
        disk_remove_checkpoint(NULL, b->disk, checkpoint);
    return r;
}

// As if it had never been begun. What could not be made is somebody else's.
static void take_back(Fiber *self, DiskBackup *b)
{
    disk_changed_remove_bitmap(self, &b->call, b->disk, b->bitmap);
    json_t *files = b->is_made ? json_pack("[s]", b->target) : json_array();
    disk_files_remove_intended(self, b->job.daemon, b->job.intent, files);
    json_decref(files);
}

static int prepared(Fiber *self, void *arg, GError **error)
{
    DiskBackup *b = arg;
    Catalogue *catalogue = b->job.catalogue;
    stop_point("disk-backup: it is copied");
    fiber_mutex_lock(self, &catalogue->lock);
    int r = note_checkpoint(self, b, error);
    fiber_mutex_unlock(self, &catalogue->lock);
    return r;
}

static void ended(Fiber *self, void *arg, const char *error)
{
    DiskBackup *b = arg;
    Catalogue *catalogue = b->job.catalogue;
    fiber_mutex_lock(self, &catalogue->lock);
    disk_changes_done(self, &b->call, b->disk, &b->changes);
    close_target(self, b);
    if (!b->is_noted)
        take_back(self, b);
    disk_job_end(self, &b->job);
    fiber_mutex_unlock(self, &catalogue->lock);
    backup_free(b);
}

static const JobFollower follower = {prepared, ended};

// -- the target -----------------------------------------------------------------------------------

typedef struct TargetCall {
    const char *path;
    Qcow2CreateOptions options;
    int result;
    GError *error;
} TargetCall;

static void create_on_loop(Fiber *self, void *arg)
{
    TargetCall *call = arg;
    call->result = qcow2_create(self, call->path, &call->options, &call->error);
}

static int create_target(Fiber *self, const DiskBackup *b, const NamedNode *head, GError **error)
{
    TargetCall call = {
        .path = b->target,
        .options =
            {
                .size_bytes = head->facts.size_bytes,
                .backing_name = b->changes.since ? b->changes.since->target : NULL,
                .backing_format = b->changes.since ? "qcow2" : NULL,
            },
    };
    if (remote_call_fiber_reserve(self, named_node_loop(head), create_on_loop, &call) < 0)
        return qmp_fail(error, "no memory for a fiber's stack");
    if (call.error)
        g_propagate_error(error, call.error);
    return call.result;
}

// With the graph lock. Alone: what lies below it is not read.
static int open_target(Fiber *self, const DiskBackup *b, GError **error)
{
    NodeConfig *config;
    NamedNode *named;
    int r = node_config_new_name(b->target, "qcow2", &config, error);
    if (r < 0)
        return r;
    NodeConfig *alone = node_config_new_with(config, "backing", NULL);
    node_config_free(config);
    json_object_set_new(alone->values, "node-name", json_string(b->job.id));
    return nodes_add(self, b->job.daemon->nodes, alone, b->target, &named, error);
}

static int make_target(Fiber *self, DiskBackup *b, GError **error)
{
    Nodes *nodes = b->job.daemon->nodes;
    int r = create_target(self, b, disk_layer_node(nodes, b->disk->head), error);
    b->is_made = r == 0;
    stop_point("disk-backup: the target is made");
    if (r < 0)
        return r;
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    r = open_target(self, b, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    return r;
}

// -- the start ------------------------------------------------------------------------------------

static json_t *actions_of(const DiskBackup *b, const json_t *args)
{
    const char *changed = b->changes.bitmap;
    char head[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(b->disk->head, head);
    json_t *actions = json_array();
    json_t *data = json_pack("{s:s, s:s, s:s, s:s, s:b, s:I}", "job-id", b->job.id, "device", head,
                             "target", b->job.id, "sync", changed ? "bitmap" : "full", "compress",
                             qmp_args_bool(args, "compress", false), "speed",
                             (json_int_t)qmp_args_int(args, "speed", 0));
    disk_space_set_on_error(data, "on-target-error", args);
    if (changed) {
        json_object_set_new(data, "bitmap", json_string(changed));
        json_object_set_new(data, "bitmap-mode", json_string("never"));
    }
    if (b->bitmap)
        json_array_append_new(actions, json_pack("{s:s, s:{s:s, s:s, s:b}}", "type",
                                                 "block-dirty-bitmap-add", "data", "node", head,
                                                 "name", b->bitmap, "persistent", 1));
    json_array_append_new(actions,
                          json_pack("{s:s, s:o}", "type", "blockdev-backup", "data", data));
    return json_pack("{s:o}", "actions", actions);
}

static int begin_job(Fiber *self, DiskBackup *b, const json_t *args, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(b->job.daemon->nodes);
    json_t *actions = actions_of(b, args);
    QmpCall call = b->call;
    call.follower = &follower;
    call.follower_arg = b;
    int r = qmp_rehearse_transaction(self, &call, actions, error);
    if (r == 0) {
        fiber_mutex_lock(self, lock);
        r = qmp_run_transaction(self, &call, actions, error);
        fiber_mutex_unlock(self, lock);
    }
    json_decref(actions);
    return r;
}

// How small clusters become when they are compressed nobody can tell.
static int check_space(Fiber *self, const DiskBackup *b, const json_t *args, GError **error)
{
    Nodes *nodes = b->job.daemon->nodes;
    if (!disk_space_is_checked(args) || qmp_args_bool(args, "compress", false))
        return 0;
    return disk_space_check_copy(self, disk_layer_node(nodes, b->disk->head),
                                 nodes_find(nodes, b->job.id), b->changes.bytes, error);
}

static int begin(Fiber *self, DiskBackup *b, const json_t *args, GError **error)
{
    int r = make_target(self, b, error);
    if (r == 0)
        r = check_space(self, b, args, error);
    if (r == 0 && b->checkpoint)
        b->bitmap = disk_changed_bitmap_name(b->checkpoint);
    if (r == 0)
        r = begin_job(self, b, args, error);
    if (r == 0)
        return 0;
    close_target(self, b);
    g_clear_pointer(&b->bitmap, g_free); // the transaction has taken it back
    return r;
}

static int start(Fiber *self, DiskBackup *b, const json_t *args, GError **error)
{
    int r = disk_job_take_disk(&b->job, b->disk, error);
    if (r < 0)
        return r;
    b->job.intent = catalogue_intend(self, b->job.catalogue, "make",
                                     json_pack("{s:[s]}", "files", b->target), error);
    if (b->job.intent < 0)
        return -EIO;
    stop_point("disk-backup: it is intended");
    r = begin(self, b, args, error);
    if (r < 0)
        take_back(self, b);
    return r;
}

// -- the command ----------------------------------------------------------------------------------

static int check(Fiber *self, const Disk *disk, const json_t *args, const char *target,
                 GError **error)
{
    const char *name = qmp_args_str(args, "checkpoint");
    int r = name ? disk_changed_check_new(disk, name, error) : 0;
    if (r == 0 && disk_files_exist(self, target))
        r = qmp_fail(error, "'%s' exists already: choose another name", target);
    return r;
}

static json_t *describe(const DiskBackup *b)
{
    const Checkpoint *since = b->changes.since;
    return json_pack("{s:s, s:I, s:s*, s:s*, s:s*}", "target", b->target, "copy",
                     (json_int_t)b->changes.bytes, "checkpoint", b->checkpoint, "since",
                     since ? since->name : NULL, "reason", b->changes.reason);
}

static DiskBackup *new_backup(const QmpCall *call, Catalogue *catalogue, Disk *disk,
                              const json_t *args, const char *target)
{
    DiskBackup *b = g_new0(DiskBackup, 1);
    disk_job_init(&b->job, call, catalogue, "backup");
    b->call = (QmpCall){.daemon = call->daemon, .table = call->table, .is_negotiated = true};
    b->disk = disk;
    b->target = g_strdup(target);
    b->created_s = g_get_real_time() / G_USEC_PER_SEC;
    if (disk_changed_can_note(disk))
        b->checkpoint = g_strdup(qmp_args_str(args, "checkpoint") ?: b->job.id);
    return b;
}

// Starts it, unless only the reply is wanted; then, as after a failure, `b` is still the caller's.
static int describe_and_start(Fiber *self, DiskBackup *b, const json_t *args, json_t **ret_reply,
                              GError **error)
{
    g_autofree char *id = g_strdup(b->job.id);
    json_t *reply = describe(b);
    int r = 0;
    if (!qmp_args_bool(args, "dry-run", false)) {
        r = start(self, b, args, error);
        json_object_set_new(reply, "job", json_string(id));
    }
    if (r == 0)
        *ret_reply = reply;
    else
        json_decref(reply);
    return r;
}

static int backup(Fiber *self, QmpCall *call, Catalogue *catalogue, const json_t *args,
                  json_t **ret_reply, GError **error)
{
    g_autofree char *target = g_canonicalize_filename(qmp_args_str(args, "target"), NULL);
    Disk *disk;
    int r = qmp_disks_get_idle(catalogue, args, "disk", &disk, error);
    if (r == 0)
        r = check(self, disk, args, target, error);
    if (r < 0)
        return r;
    DiskBackup *b = new_backup(call, catalogue, disk, args, target);
    r = disk_changes_find(self, &b->call, disk, qmp_args_str(args, "since"), b->job.id, true,
                          &b->changes, error);
    if (r == 0)
        r = describe_and_start(self, b, args, ret_reply, error);
    if (r == 0 && !qmp_args_bool(args, "dry-run", false))
        return 0;
    disk_changes_done(self, &b->call, disk, &b->changes);
    disk_job_drop(self, &b->job);
    backup_free(b);
    return r;
}

static int disk_backup(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = backup(self, call, catalogue, args, ret_reply, error);
    qmp_disks_end(self, catalogue);
    return r;
}

static int forget(Fiber *self, QmpCall *call, Catalogue *catalogue, const json_t *args,
                  GError **error)
{
    const char *name = qmp_args_str(args, "checkpoint");
    char node[LAYER_NODE_NAME_BYTES];
    Disk *disk;
    int r = qmp_disks_get_idle(catalogue, args, "disk", &disk, error);
    if (r < 0)
        return r;
    Checkpoint *checkpoint =
        g_str_equal(name, "last") ? NULL : disk_changed_find_checkpoint(disk, name);
    if (!checkpoint)
        return qmp_disk_refuse(error, -ENOENT, "disk '%s' has no checkpoint '%s'", disk->name,
                               name);
    g_autofree char *bitmap = disk_changed_bitmap_name(name);
    disk_layer_node_name(disk->head, node);
    if (checkpoint->layer == disk->head &&
        bitmaps_of(disk_layer_node(call->daemon->nodes, disk->head), bitmap))
        r = qmp_table_run_by_name(self, call, "block-dirty-bitmap-remove",
                                  json_pack("{s:s, s:s}", "node", node, "name", bitmap), error);
    if (r < 0)
        return r;
    DatabaseChange *change = database_change_new();
    disk_remove_checkpoint(change, disk, checkpoint);
    return database_note(self, catalogue->database, change, error);
}

static int disk_forget_checkpoint(Fiber *self, QmpCall *call, const json_t *args,
                                  json_t **ret_reply, GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = forget(self, call, catalogue, args, error);
    qmp_disks_end(self, catalogue);
    return r;
}

static const QmpCommand commands[] = {
    {"disk-backup", &backup_args, &started_type,
     "Starts a job that copies what a disk shows at this moment to a new qcow2 image, while "
     "clients "
     "go on: all of it, or what has changed since a checkpoint, over the image of that. When it "
     "ends "
     "well it is a checkpoint itself; else nothing is left of it.",
     disk_backup},
    {"disk-forget-checkpoint", &forget_args, NULL,
     "Forgets a checkpoint: no backup can be made since then. Backups stay.",
     disk_forget_checkpoint},
    {0},
};

const QmpFamily qmp_disk_backup_family = {.title = "Backups of disks", .commands = commands};
