// SPDX-License-Identifier: LGPL-2.1-or-later
// disk-clone: a new disk on a point in time. disk-rollback: a disk whose head stands on one of its
// points again. disk-flatten: a head that needs less of what lies below it.
//
// A rollback: an overlay of the point is made and opened, clients leave, the database has it as the
// head, exports begin again, what is dropped is removed. Before the database has it nothing was
// changed: what it cannot write has not happened, since clients write the head from then on.
//
// Control loop.
#include "disk-branches.h"

#include <errno.h>
#include <time.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/merges.h"
#include "daemon/state/stop-point.h"
#include "disk-birth.h"
#include "disk-info.h"
#include "disk-jobs.h"
#include "disk-space.h"
#include "new-image.h"

// -- an overlay of a point ------------------------------------------------------------------------

typedef struct Branch {
    QmpCall *call;
    Catalogue *catalogue;
    Disk *disk;
    Point *point;
    DiskLayer as; // the new head; its file is owned
    int64_t intent;
    bool is_made; // the file
} Branch;

static int find_point(Branch *b, const json_t *args, GError **error)
{
    int r = qmp_disks_get_idle(b->catalogue, args, "disk", &b->disk, error);
    if (r < 0)
        return r;
    b->point = disk_get_point(b->disk, qmp_args_str(args, "point"), error);
    if (!b->point)
        return -ENOENT;
    if (b->point->layer->is_merging)
        return qmp_fail(error, "the point '%s@%s' is on its way out: its layer is being merged",
                        b->disk->name, b->point->name);
    return 0;
}

static void choose_file(Fiber *self, Branch *b, const json_t *args, const char *name)
{
    const char *given = qmp_args_str(args, "directory"), *head = b->disk->head->file;
    g_autofree char *directory = given                      ? g_canonicalize_filename(given, NULL)
                                 : g_path_is_absolute(head) ? g_path_get_dirname(head)
                                                            : g_strdup(b->catalogue->images_dir);
    int64_t id = catalogue_next_layer(b->catalogue, NULL);
    g_autofree char *stem = g_strdup_printf("%s.%" G_GINT64_FORMAT, name, id);
    b->as = (DiskLayer){
        .id = id,
        .file = disk_files_choose(self, b->catalogue, &(NewFile){directory, stem, "qcow2", id}),
        .format = "qcow2",
        .below = b->point->layer,
        .is_ours = true,
    };
}

// With the graph lock; the point is open then.
static int make_overlay(Fiber *self, Branch *b, GError **error)
{
    Daemon *daemon = b->call->daemon;
    NamedNode *named;
    int r = disk_layer_open(self, daemon, b->point->layer, NULL, &named, error);
    if (r < 0)
        return r;
    const NewImage image = {
        .path = b->as.file,
        .format = b->as.format,
        .size_bytes = named->facts.size_bytes,
        .below = named_node_image(named),
    };
    r = new_image_create(self, named_node_loop(named), &image, error);
    b->is_made = r == 0;
    stop_point("an overlay of a point is made");
    return r;
}

static int intend_overlay(Fiber *self, Branch *b, GError **error)
{
    b->intent = catalogue_intend(self, b->catalogue, "make",
                                 json_pack("{s:[s]}", "files", b->as.file), error);
    if (b->intent < 0)
        return -EIO;
    stop_point("an overlay of a point is intended");
    fiber_mutex_lock(self, nodes_graph_lock(b->call->daemon->nodes));
    int r = make_overlay(self, b, error);
    fiber_mutex_unlock(self, nodes_graph_lock(b->call->daemon->nodes));
    return r;
}

// What could not be made is somebody else's.
static void take_back_overlay(Fiber *self, const Branch *b)
{
    json_t *files = b->is_made ? json_pack("[s]", b->as.file) : json_array();
    fiber_mutex_lock(self, nodes_graph_lock(b->call->daemon->nodes));
    disk_layer_close_unused(self, b->call->daemon, &b->as);
    fiber_mutex_unlock(self, nodes_graph_lock(b->call->daemon->nodes));
    disk_files_remove_intended(self, b->call->daemon, b->intent, files);
    json_decref(files);
}

// -- disk-clone -----------------------------------------------------------------------------------

static const QmpType clone_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){DISK_BIRTH_MEMBERS,
                                   {"disk", &qmp_str, .doc = "the disk whose point it stands on"},
                                   {"point", &qmp_str, .doc = "the point in time"},
                                   {"directory", &qmp_str, true,
                                    "where its file is made; beside the head of the other, unless "
                                    "given"},
                                   {0}},
};

static int finish_clone(Fiber *self, Branch *b, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    DatabaseChange *change = database_change_new();
    DiskLayer *head = catalogue_add_layer(b->catalogue, change, &b->as);
    catalogue_end_intent(change, b->intent);
    int r = disk_birth_finish(self, b->call, b->catalogue, change, args, head, ret_reply, error);
    if (r < 0)
        catalogue_remove_layer(b->catalogue, NULL, head);
    return r;
}

static int clone_disk(Fiber *self, Branch *b, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    int r = disk_birth_check(b->call, b->catalogue, args, error);
    if (r == 0)
        r = find_point(b, args, error);
    if (r < 0)
        return r;
    choose_file(self, b, args, qmp_args_str(args, "name"));
    r = intend_overlay(self, b, error);
    if (r == 0)
        r = finish_clone(self, b, args, ret_reply, error);
    if (r < 0 && b->intent > 0)
        take_back_overlay(self, b);
    return r;
}

static int with_branch(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       int (*fn)(Fiber *self, Branch *b, const json_t *args, json_t **ret_reply,
                                 GError **error),
                       GError **error)
{
    Branch b = {.call = call, .catalogue = qmp_disks_begin(self, call, error)};
    if (!b.catalogue)
        return -ENOENT;
    int r = fn(self, &b, args, ret_reply, error);
    g_free(b.as.file);
    qmp_disks_end(self, b.catalogue);
    return r;
}

static int disk_clone(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                      GError **error)
{
    return with_branch(self, call, args, ret_reply, clone_disk, error);
}

// -- disk-rollback --------------------------------------------------------------------------------

static const QmpType above_mode = {
    .name = "DiskRollbackAbove",
    .kind = QMP_ENUM,
    .doc = "What becomes of the head and of the points over the one that is gone back to: `keep` "
           "keeps "
           "them, the head as a point; `drop` drops them.",
    .values = (const char *const[]){"keep", "drop", NULL},
};
static const QmpType rollback_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"disk", &qmp_str, .doc = "the disk"},
            {"point", &qmp_str, .doc = "the point in time"},
            {"above", &above_mode, true, "keep, unless given"},
            {"keep-as", &qmp_str, true,
             "the name of the point that the head becomes, with keep; before-rollback-TIME, unless "
             "given"},
            {"clients", &qmp_disk_client_mode, true,
             "of the head, and of points that are dropped; safe, unless given: refused while there "
             "are any. Clients never see the other content without having been disconnected"},
            {"directory", &qmp_str, true,
             "where the file of the new head is made; beside the old one, unless given"},
            {0}},
};

typedef struct Rollback {
    Branch *b;
    bool drops;
    char *keep_as;      // owned
    GPtrArray *dropped; // Point
    GPtrArray *nodes;   // names of those above the point, head first
} Rollback;

static bool is_above(const Rollback *r, const DiskLayer *layer)
{
    for (const DiskLayer *l = r->b->disk->head; l && l != r->b->point->layer; l = l->below)
        if (l == layer)
            return true;
    return false;
}

static bool ends(const Rollback *r, const DiskExport *export)
{
    const Point *point = export->point ? disk_find_point(r->b->disk, export->point) : NULL;
    return !point || g_ptr_array_find(r->dropped, point, NULL);
}

static int check_rollback(Fiber *self, const Rollback *r, const json_t *args, GError **error)
{
    const Disk *disk = r->b->disk;
    if (!r->drops && (catalogue_check_point_name(r->keep_as, error) < 0))
        return -EINVAL;
    if (!r->drops && disk_find_point(disk, r->keep_as))
        return qmp_fail(error, "disk '%s' has a point in time '%s' already: choose another name",
                        disk->name, r->keep_as);
    for (guint i = 0; i < disk->exports->len && !qmp_args_is_hard(args); i++) {
        const DiskExport *export = disk->exports->pdata[i];
        if (ends(r, export) && exports_have_clients(self, r->b->call->daemon->exports, export->id))
            return qmp_disk_refuse(
                error, -EBUSY,
                "export '%s' has clients, which would see something else: let them "
                "disconnect, or disconnect them with \"clients\": \"hard\"",
                export->name);
    }
    return 0;
}

static void plan_rollback(Rollback *r)
{
    const Disk *disk = r->b->disk;
    for (const DiskLayer *l = disk->head; l && l != r->b->point->layer; l = l->below) {
        char name[LAYER_NODE_NAME_BYTES];
        disk_layer_node_name(l, name);
        g_ptr_array_add(r->nodes, g_strdup(name));
    }
    for (guint i = 0; r->drops && i < disk->points->len; i++)
        if (is_above(r, ((const Point *)disk->points->pdata[i])->layer))
            g_ptr_array_add(r->dropped, disk->points->pdata[i]);
}

static void stop_exports(Fiber *self, const Rollback *r)
{
    const Disk *disk = r->b->disk;
    for (guint i = 0; i < disk->exports->len; i++)
        if (ends(r, disk->exports->pdata[i]))
            disk_export_stop(self, r->b->call->daemon, disk->exports->pdata[i]);
}

// The new head, and what is to become of the old one: kept as a point, or `drop` as an intent,
// whose number is `*ret_intent`.
static int note_rollback(Fiber *self, const Rollback *r, json_t *drop, int64_t *ret_intent,
                         GError **error)
{
    const Branch *b = r->b;
    DatabaseChange *change = database_change_new();
    Point *kept = NULL;
    DiskLayer *old = b->disk->head, *head = catalogue_add_layer(b->catalogue, change, &b->as);
    disk_set_head(change, b->disk, head);
    if (drop)
        *ret_intent = catalogue_add_intent(b->catalogue, change, "drop", json_incref(drop));
    else
        kept = disk_add_point(change, b->disk, r->keep_as, old, g_get_real_time() / G_USEC_PER_SEC);
    catalogue_end_intent(change, b->intent);
    int result = database_write(self, b->catalogue->database, change, error);
    stop_point("disk-rollback: it is noted");
    if (result == 0)
        return 0;
    if (kept)
        disk_remove_point(NULL, b->disk, kept);
    disk_set_head(NULL, b->disk, old);
    catalogue_remove_layer(b->catalogue, NULL, head);
    return result;
}

static void close_old(Fiber *self, const Rollback *r)
{
    Nodes *nodes = r->b->call->daemon->nodes;
    for (guint i = 0; i < r->nodes->len; i++) {
        NamedNode *named = nodes_find(nodes, r->nodes->pdata[i]);
        if (named && !named->users->len)
            nodes_close(self, nodes, named);
    }
}

// With the graph lock.
static int open_new(Fiber *self, const Rollback *r, GError **error)
{
    NamedNode *named;
    return disk_layer_open_over(self, r->b->call->daemon, &r->b->as, r->b->disk, &named, error);
}

static int switch_head(Fiber *self, const Rollback *r, GError **error)
{
    Branch *b = r->b;
    Daemon *daemon = b->call->daemon;
    FiberMutex *lock = nodes_graph_lock(daemon->nodes);
    fiber_mutex_lock(self, lock);
    int result = open_new(self, r, error);
    fiber_mutex_unlock(self, lock);
    if (result < 0)
        return result;
    stop_exports(self, r);
    stop_point("disk-rollback: clients have left");
    int64_t intent;
    MergeLeft left = {0};
    json_auto_t *drop = r->drops ? rollback_drop_detail(b->disk, r->dropped) : NULL;
    result = note_rollback(self, r, drop, &intent, error);
    if (result == 0 && drop)
        rollback_drop_note(self, b->catalogue, intent, drop, &left);
    fiber_mutex_lock(self, lock);
    if (result == 0) {
        disk_hold(daemon, b->disk);
        close_old(self, r);
    }
    disk_serve(self, daemon, b->disk);
    fiber_mutex_unlock(self, lock);
    if (left.intent)
        disk_files_remove_intended(self, b->call->daemon, left.intent, left.files);
    merge_left_clear(&left);
    return result;
}

static char *default_name(void)
{
    char text[32];
    time_t now = time(NULL);
    struct tm tm;
    strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", gmtime_r(&now, &tm));
    return g_strdup_printf("before-rollback-%s", text);
}

static int roll_back(Fiber *self, Rollback *r, const json_t *args, json_t **ret_reply,
                     GError **error)
{
    Branch *b = r->b;
    plan_rollback(r);
    int result = check_rollback(self, r, args, error);
    if (result < 0)
        return result;
    choose_file(self, b, args, b->disk->name);
    result = intend_overlay(self, b, error);
    if (result == 0)
        result = switch_head(self, r, error);
    if (result < 0 && b->intent > 0)
        take_back_overlay(self, b);
    else if (result == 0)
        *ret_reply = qmp_describe_disk(b->call->daemon, b->disk);
    return result;
}

static int roll_back_disk(Fiber *self, Branch *b, const json_t *args, json_t **ret_reply,
                          GError **error)
{
    const char *keep_as = qmp_args_str(args, "keep-as");
    int result = find_point(b, args, error);
    if (result < 0)
        return result;
    Rollback r = {
        .b = b,
        .drops = g_strcmp0(qmp_args_str(args, "above"), "drop") == 0,
        .keep_as = keep_as ? g_strdup(keep_as) : default_name(),
        .dropped = g_ptr_array_new(),
        .nodes = g_ptr_array_new_with_free_func(g_free),
    };
    result = roll_back(self, &r, args, ret_reply, error);
    g_free(r.keep_as);
    g_ptr_array_unref(r.dropped);
    g_ptr_array_unref(r.nodes);
    return result;
}

static int disk_rollback(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    return with_branch(self, call, args, ret_reply, roll_back_disk, error);
}

// -- disk-flatten ---------------------------------------------------------------------------------

static const QmpType flatten_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"disk", &qmp_str, .doc = "the disk"},
            {"depth", &qmp_int, true,
             "how many layers its chain has then, from the head down: of those that it has now the "
             "lowest ones stay below the head. 1, unless given: the head alone"},
            {"speed", &qmp_int, true,
             "at most, in bytes a second; 0, which is the default: no limit"},
            DISK_SPACE_MEMBER,
            {0}},
};
static const QmpType job_started = {
    .name = "DiskJobInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"job", &qmp_str, true, "the job; none: there is nothing to do"}, {0}},
};

// The highest of the lowest `depth` - 1 layers; NULL: none. -EINVAL: the chain is not longer.
static int find_base(const Disk *disk, int64_t depth, DiskLayer **ret_base, GError **error)
{
    int64_t n = 0;
    for (const DiskLayer *l = disk->head; l; l = l->below)
        n++;
    if (depth < 1)
        return qmp_fail(error, "a chain has a depth of 1 at least");
    if (n <= depth)
        return 1;
    DiskLayer *base = disk->head;
    for (int64_t i = n; base && i >= depth; i--)
        base = base->below;
    *ret_base = base;
    return 0;
}

static int start_flatten(Fiber *self, Branch *b, DiskLayer *base, const json_t *args,
                         json_t **ret_reply, GError **error)
{
    DiskStreamJob *stream = g_new0(DiskStreamJob, 1);
    disk_job_init(&stream->job, b->call, b->catalogue, "flatten");
    g_autofree char *id = g_strdup(stream->job.id);
    stream->merge = (StreamMerge){.image = b->disk->head, .base = base};
    int r = disk_job_take_disk(&stream->job, b->disk, error);
    for (const DiskLayer *l = b->disk->head->below; r == 0 && l != base; l = l->below)
        disk_job_add_closing(&stream->job, l);
    if (r == 0 && disk_space_is_checked(args))
        r = disk_space_check_fill(self, b->call->daemon, b->disk, base, error);
    if (r == 0) {
        r = disk_stream_start(self, b->call, stream, args, error);
    } else {
        disk_job_drop(self, &stream->job);
        g_free(stream);
    }
    if (r == 0)
        *ret_reply = json_pack("{s:s}", "job", id);
    return r;
}

static int flatten(Fiber *self, Branch *b, const json_t *args, json_t **ret_reply, GError **error)
{
    DiskLayer *base = NULL;
    int r = qmp_disks_get_idle(b->catalogue, args, "disk", &b->disk, error);
    if (r < 0)
        return r;
    r = find_base(b->disk, qmp_args_int(args, "depth", 1), &base, error);
    return r == 0 ? start_flatten(self, b, base, args, ret_reply, error) : MIN(r, 0);
}

static int disk_flatten(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    return with_branch(self, call, args, ret_reply, flatten, error);
}

static const QmpCommand commands[] = {
    {"disk-clone", &clone_args, &qmp_disk_info,
     "Makes a disk that begins with what a point in time of another shows, and shares its layers. "
     "The "
     "point may be deleted then: what the clone needs stays.",
     disk_clone},
    {"disk-rollback", &rollback_args, &qmp_disk_info,
     "Takes a disk back to a point in time. The point stays, and what is written from then on goes "
     "to "
     "a new layer over it.",
     disk_rollback},
    {"disk-flatten", &flatten_args, &job_started,
     "Starts a job that shortens the chain of a disk: its head gets what it needs of the layers "
     "below "
     "that leave. Points in time stay, beside the head. Layers that nobody needs go, with their "
     "files, if they are ours.",
     disk_flatten},
    {0},
};

const QmpFamily qmp_disk_branches_family = {.title = "Branches of disks", .commands = commands};
