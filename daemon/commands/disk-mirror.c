// SPDX-License-Identifier: LGPL-2.1-or-later
// A disk moves: a new image gets all that it shows, clients are taken there, and it is the head.
// The database says so before they write it. Until then the image is one that is being made: after
// a crash it goes, and the disk is where it was. What nobody needs then goes by an intent of its
// own.
//
// Control loop.
#include "disk-mirror.h"

#include <errno.h>
#include <sys/stat.h>

#include "blockdev-mirror.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-info.h"
#include "disk-jobs.h"
#include "disk-space.h"
#include "new-image.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType mirror_format = {
    .name = "DiskMirrorFormat",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"qcow2", "raw", NULL},
};
static const QmpType mirror_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"disk", &qmp_str, .doc = "the disk"},
            {"target", &qmp_str,
             .doc = "a file, which must not exist; a directory, in which one is made; or the name "
                    "of an image elsewhere, such as an NBD URI, which has the disk's size"},
            {"format", &mirror_format, true,
             "of the target; qcow2, unless given, and raw of an image elsewhere"},
            {"verify", &qmp_bool, true,
             "whether what was written is read back and compared; false"},
            {"auto-complete", &qmp_bool, true,
             "whether clients are taken there as soon as it can be; else the job gets ready, and "
             "it is done by job-complete. true, unless given"},
            {"speed", &qmp_int, true,
             "at most, in bytes a second; 0, which is the default: no limit"},
            DISK_SPACE_MEMBER,
            {0}},
};
static const QmpType started_type = {
    .name = "DiskMirrorInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"job", &qmp_str, .doc = "the job"},
                                   {"file", &qmp_str, .doc = "the image that the disk moves to"},
                                   {"node-name", &qmp_str, .doc = "its node"},
                                   {0}},
};

// -- the job --------------------------------------------------------------------------------------

typedef struct DiskMirror {
    DiskJob job; // first
    Disk *disk;
    DiskLayer as;   // the new head; file and format are owned
    bool is_made;   // its file, by us
    DiskLayer *old; // the head before, from the pivot on until what nobody needs goes
    JobPivot pivot;
    int64_t drop;  // intent: what nobody needs goes; 0: it is not the head yet
    json_t *drops; // what that says
} DiskMirror;

static void mirror_free(DiskMirror *m)
{
    g_free(m->as.file);
    g_free(m->as.format);
    json_decref(m->drops);
    g_free(m);
}

typedef struct PivotCall {
    DiskMirror *m;
    int result;
    GError *error;
} PivotCall;

static void pivot_on_control(Fiber *self, void *arg)
{
    PivotCall *call = arg;
    DiskMirror *m = call->m;
    json_t *drops = rollback_drop_detail(m->disk, NULL);
    m->old = m->disk->head;
    disk_layer_keep(m->old);
    call->result = head_replace(self, m->job.catalogue, m->job.intent, m->disk, &m->as, drops,
                                &m->drop, &call->error);
    if (call->result == 0) {
        m->drops = drops;
    } else {
        disk_layer_let_go(m->old);
        json_decref(drops);
    }
}

// Guests wait. As with commits, the catalogue's lock is not asked for: nobody else changes this
// disk, or drops the layers that it leaves.
static int before_pivot(Fiber *self, void *arg, GError **error)
{
    PivotCall call = {.m = arg};
    Loop *control = daemon_control_loop(call.m->job.daemon);
    if (remote_call_fiber_reserve(self, control, pivot_on_control, &call) < 0)
        return -ENOMEM;
    if (call.error)
        g_propagate_error(error, call.error);
    return call.result;
}

static int prepared(Fiber *self, void *arg, GError **error)
{
    DiskMirror *m = arg;
    Catalogue *catalogue = m->job.catalogue;
    stop_point("disk-mirror: clients are there");
    if (!m->drop) // it was asked to end, and to leave a copy
        return 0;
    fiber_mutex_lock(self, &catalogue->lock);
    disk_layer_let_go(m->old);
    rollback_drop_note(self, catalogue, m->drop, m->drops, &m->job.left);
    fiber_mutex_unlock(self, &catalogue->lock);
    return 0;
}

static void close_target(Fiber *self, const DiskMirror *m)
{
    Nodes *nodes = m->job.daemon->nodes;
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    NamedNode *named = disk_layer_node(nodes, &m->as);
    if (named && !named->users->len)
        nodes_close(self, nodes, named);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
}

static void take_back(Fiber *self, const DiskMirror *m)
{
    json_t *files = m->is_made ? json_pack("[s]", m->as.file) : json_array();
    close_target(self, m);
    disk_files_remove_intended(self, m->job.daemon, m->job.intent, files);
    json_decref(files);
}

static void ended(Fiber *self, void *arg, const char *error)
{
    DiskMirror *m = arg;
    Catalogue *catalogue = m->job.catalogue;
    fiber_mutex_lock(self, &catalogue->lock);
    if (!m->drop)
        take_back(self, m);
    disk_job_end(self, &m->job);
    fiber_mutex_unlock(self, &catalogue->lock);
    mirror_free(m);
}

static const JobFollower follower = {prepared, ended};

// -- the target -----------------------------------------------------------------------------------

static int is_directory(void *arg)
{
    struct stat st;
    return stat(arg, &st) == 0 && S_ISDIR(st.st_mode);
}

static int choose_target(Fiber *self, DiskMirror *m, const json_t *args, GError **error)
{
    const char *format = qmp_args_str(args, "format");
    g_autofree char *target = disk_layer_resolve_name(self, NULL, qmp_args_str(args, "target"));
    int64_t id = catalogue_next_layer(m->job.catalogue, NULL);
    m->as = (DiskLayer){.id = id, .file = g_steal_pointer(&target)};
    bool is_elsewhere = disk_layer_is_remote(&m->as);
    m->as.format = g_strdup(format ?: is_elsewhere ? "raw" : "qcow2");
    m->as.is_ours = !is_elsewhere;
    if (!is_elsewhere && loop_work(self, is_directory, m->as.file) == 1) {
        g_autofree char *directory = m->as.file;
        m->as.file = disk_files_choose(self, m->job.catalogue,
                                       &(NewFile){directory, m->disk->name, m->as.format, id});
    }
    if (catalogue_find_file(m->job.catalogue, m->as.file))
        return qmp_fail(error, "'%s' is an image of a disk already", m->as.file);
    if (!is_elsewhere && disk_files_exist(self, m->as.file))
        return qmp_fail(error, "'%s' exists already: choose another name", m->as.file);
    return 0;
}

static int make_target(Fiber *self, DiskMirror *m, GError **error)
{
    const NamedNode *head = disk_layer_node(m->job.daemon->nodes, m->disk->head);
    const NewImage image = {
        .path = m->as.file,
        .format = m->as.format,
        .size_bytes = head->facts.size_bytes,
    };
    if (!m->as.is_ours)
        return 0;
    int r = new_image_create(self, named_node_loop(head), &image, error);
    m->is_made = r == 0;
    stop_point("disk-mirror: the target is made");
    return r;
}

static int check_size(const DiskMirror *m, const NamedNode *target, GError **error)
{
    const NamedNode *head = disk_layer_node(m->job.daemon->nodes, m->disk->head);
    if (target->facts.size_bytes == head->facts.size_bytes)
        return 0;
    return qmp_fail(error,
                    "'%s' has a size of %" G_GUINT64_FORMAT " bytes, and disk '%s' one of "
                    "%" G_GUINT64_FORMAT ": they must be the same",
                    m->as.file, target->facts.size_bytes, m->disk->name, head->facts.size_bytes);
}

// The disk is busy: it stays while a server is waited for, and commands of others go on.
static int open_target(Fiber *self, const DiskMirror *m, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(m->job.daemon->nodes);
    NamedNode *named;
    fiber_mutex_unlock(self, &m->job.catalogue->lock);
    fiber_mutex_lock(self, lock);
    int r = disk_layer_open_over(self, m->job.daemon, &m->as, m->disk, &named, error);
    fiber_mutex_unlock(self, lock);
    fiber_mutex_lock(self, &m->job.catalogue->lock);
    return r == 0 ? check_size(m, named, error) : r;
}

// -- the start ------------------------------------------------------------------------------------

static json_t *args_of_job(const DiskMirror *m, const json_t *args)
{
    char source[LAYER_NODE_NAME_BYTES], target[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(m->disk->head, source);
    disk_layer_node_name(&m->as, target);
    json_t *of_job = disk_job_args(&m->job, args);
    json_object_set_new(of_job, "device", json_string(source));
    json_object_set_new(of_job, "target", json_string(target));
    json_object_set_new(of_job, "sync", json_string("full"));
    json_object_set_new(of_job, "target-is-zero", json_boolean(m->is_made));
    disk_space_set_on_error(of_job, "on-target-error", args);
    json_object_set_new(of_job, "x-verify", json_boolean(qmp_args_bool(args, "verify", false)));
    json_object_set_new(of_job, "auto-complete",
                        json_boolean(qmp_args_bool(args, "auto-complete", true)));
    return of_job;
}

// An image elsewhere has its size already.
static int check_space(Fiber *self, const DiskMirror *m, const json_t *args, GError **error)
{
    const Nodes *nodes = m->job.daemon->nodes;
    NamedNode *head = disk_layer_node(nodes, m->disk->head);
    if (!m->is_made || !disk_space_is_checked(args))
        return 0;
    return disk_space_check_copy(self, head, disk_layer_node(nodes, &m->as), head->facts.size_bytes,
                                 error);
}

static int begin_job(Fiber *self, const QmpCall *call, DiskMirror *m, const json_t *args,
                     GError **error)
{
    QmpCall with_pivot = *call;
    m->pivot = (JobPivot){before_pivot, m};
    with_pivot.pivot = &m->pivot;
    json_t *of_job = args_of_job(m, args);
    int r =
        disk_job_start(self, &with_pivot, &m->job, qmp_prepare_mirror, of_job, &follower, error);
    json_decref(of_job);
    return r;
}

static int start(Fiber *self, const QmpCall *call, DiskMirror *m, const json_t *args,
                 GError **error)
{
    int r = choose_target(self, m, args, error);
    if (r == 0)
        r = disk_job_take_disk(&m->job, m->disk, error);
    if (r < 0)
        return r;
    for (const DiskLayer *l = m->disk->head; l; l = l->below)
        disk_job_add_closing(&m->job, l);
    json_t *files = m->as.is_ours ? json_pack("[s]", m->as.file) : json_array();
    m->job.intent =
        catalogue_intend(self, m->job.catalogue, "make", json_pack("{s:o}", "files", files), error);
    if (m->job.intent < 0)
        return -EIO;
    stop_point("disk-mirror: it is intended");
    r = make_target(self, m, error);
    if (r == 0)
        r = open_target(self, m, error);
    if (r == 0)
        r = check_space(self, m, args, error);
    if (r == 0)
        r = begin_job(self, call, m, args, error);
    if (r < 0)
        take_back(self, m);
    return r;
}

// -- the command ----------------------------------------------------------------------------------

static int mirror(Fiber *self, const QmpCall *call, Catalogue *catalogue, const json_t *args,
                  json_t **ret_reply, GError **error)
{
    char node[LAYER_NODE_NAME_BYTES];
    Disk *disk;
    int r = qmp_disks_get_idle(catalogue, args, "disk", &disk, error);
    if (r < 0)
        return r;
    if (json_is_true(json_object_get(disk->policy, "read-only")))
        return qmp_fail(error, "disk '%s' is read-only: it stays where it is", disk->name);
    DiskMirror *m = g_new0(DiskMirror, 1);
    disk_job_init(&m->job, call, catalogue, "mirror");
    m->disk = disk;
    g_autofree char *id = g_strdup(m->job.id);
    r = start(self, call, m, args, error);
    if (r < 0) {
        disk_job_drop(self, &m->job);
        mirror_free(m);
        return r;
    }
    disk_layer_node_name(&m->as, node);
    *ret_reply = json_pack("{s:s, s:s, s:s}", "job", id, "file", m->as.file, "node-name", node);
    return 0;
}

static int disk_mirror(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = mirror(self, call, catalogue, args, ret_reply, error);
    qmp_disks_end(self, catalogue);
    return r;
}

static const QmpCommand commands[] = {
    {"disk-mirror", &mirror_args, &started_type,
     "Starts a job that moves a disk to another image, while clients go on: it gets all that the "
     "disk shows, without layers below, and takes the place of its chain. Points in time stay "
     "where they are, beside the head. Layers that nobody needs go, with their files, if they are "
     "ours. Cancelled, or after a crash, the disk is where it was and the new image is gone.",
     disk_mirror},
    {0},
};

const QmpFamily qmp_disk_mirror_family = {.title = "Disks that move", .commands = commands};
