// SPDX-License-Identifier: LGPL-2.1-or-later
// The overlays are made and opened first; the database says that they are there; then
// blockdev-snapshot puts all of them over their heads at one moment; then the database has it.
//
// After a crash the new layers are heads if it said so, even if a file cannot be found at that
// moment, since clients may have written the others; else none is. Over the old head an overlay
// that nobody has written yet shows what that shows (state/recovery.c).
//
// Control loop.
#include "disk-snapshots.h"

#include <errno.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-info.h"
#include "new-image.h"
#include "transaction.h"

static const QmpType item_type = {
    .name = "DiskSnapshot",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"disk", &qmp_str, .doc = "the disk"},
            {"point", &qmp_str,
             .doc = "the name of the point in time: a letter or digit, then letters, digits and "
                    "- . _ : +"},
            {"directory", &qmp_str, true,
             "where the file of the new head is made; beside the old one, unless given"},
            {0}},
};
static const QmpType items_type = {.kind = QMP_ARRAY, .element = &item_type};
static const QmpType snapshot_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"snapshots", &items_type, .doc = "each of another disk, all of one moment"}, {0}},
};

static const QmpType taken_type = {
    .name = "DiskSnapshotInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"disk", &qmp_str, .doc = "the disk"},
                                   {"point", &qmp_str, .doc = "the point in time"},
                                   {"created", &qmp_int, .doc = "in seconds since 1970"},
                                   {"node-name", &qmp_str, .doc = "of the new head"},
                                   {"file", &qmp_str, .doc = "of the new head"},
                                   {0}},
};
static const QmpType taken_types = {.kind = QMP_ARRAY, .element = &taken_type};

typedef struct NewPoint {
    Disk *disk;
    const char *name;
    DiskLayer layer; // the new head; its file is owned
    char node_name[LAYER_NODE_NAME_BYTES];
    NamedNode *node; // NULL: not open
} NewPoint;

typedef struct Snapshots {
    QmpCall *call;
    Catalogue *catalogue;
    NewPoint *points;
    size_t n;
    int64_t created_s, intent;
    json_t *files, *actions;
    json_t *made; // of `files`: what could not be made is somebody else's
    bool is_made; // the database says that all are
} Snapshots;

// -- what is to be --------------------------------------------------------------------------------

static int check_new(const Snapshots *s, const Disk *disk, const char *point, size_t i,
                     GError **error)
{
    int r = catalogue_check_point_name(point, error);
    for (size_t before = 0; r == 0 && before < i; before++)
        if (s->points[before].disk == disk)
            r = qmp_fail(error, "disk '%s' is named twice", disk->name);
    if (r == 0 && disk_find_point(disk, point))
        r = qmp_fail(error, "disk '%s' has a point in time '%s' already: choose another name",
                     disk->name, point);
    if (r == 0 && json_is_true(json_object_get(disk->policy, "read-only")))
        r = qmp_fail(error, "disk '%s' is read-only: it stays as it is", disk->name);
    return r;
}

static char *directory_for(const Disk *disk, const json_t *item, const Catalogue *catalogue)
{
    const char *given = qmp_args_str(item, "directory");
    if (given)
        return g_canonicalize_filename(given, NULL);
    return g_path_is_absolute(disk->head->file) ? g_path_get_dirname(disk->head->file)
                                                : g_strdup(catalogue->images_dir);
}

static int plan_one(Fiber *self, Snapshots *s, const json_t *item, size_t i, GError **error)
{
    NewPoint *p = &s->points[i];
    const char *point = qmp_args_str(item, "point");
    Disk *disk;
    int r = qmp_disks_get_idle(s->catalogue, item, "disk", &disk, error);
    if (r == 0)
        r = check_new(s, disk, point, i, error);
    if (r < 0)
        return r;
    g_autofree char *directory = directory_for(disk, item, s->catalogue);
    int64_t id = catalogue_next_layer(s->catalogue, NULL);
    g_autofree char *stem = g_strdup_printf("%s.%" G_GINT64_FORMAT, disk->name, id);
    *p = (NewPoint){
        .disk = disk,
        .name = point,
        .layer = {.id = id,
                  .file = disk_files_choose(self, s->catalogue,
                                            &(NewFile){directory, stem, "qcow2", id}),
                  .format = "qcow2",
                  .below = disk->head,
                  .is_ours = true},
    };
    disk_layer_node_name(&p->layer, p->node_name);
    json_array_append_new(s->files, json_string(p->layer.file));
    return 0;
}

// `are_made`: clients may have written the overlays.
static json_t *detail_of(const Snapshots *s, bool are_made)
{
    json_t *all = json_array();
    for (size_t i = 0; i < s->n; i++) {
        const NewPoint *p = &s->points[i];
        json_array_append_new(all, json_pack("{s:s, s:s, s:I, s:s}", "disk", p->disk->name, "point",
                                             p->name, "layer", (json_int_t)p->layer.id, "file",
                                             p->layer.file));
    }
    return json_pack("{s:o, s:I, s:O, s:b}", "snapshots", all, "created", (json_int_t)s->created_s,
                     "files", s->files, "made", are_made);
}

static void add_action(const Snapshots *s, const NewPoint *p)
{
    char below[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(p->disk->head, below);
    json_array_append_new(json_object_get(s->actions, "actions"),
                          json_pack("{s:s, s:{s:s, s:s}}", "type", "blockdev-snapshot", "data",
                                    "node", below, "overlay", p->node_name));
}

// -- with the graph lock --------------------------------------------------------------------------

static int make_overlay(Fiber *self, const Snapshots *s, NewPoint *p, GError **error)
{
    Daemon *daemon = s->call->daemon;
    NamedNode *head = disk_layer_node(daemon->nodes, p->disk->head);
    const NewImage image = {
        .path = p->layer.file,
        .format = p->layer.format,
        .size_bytes = head->facts.size_bytes,
        .below = named_node_image(head),
    };
    int r = new_image_create(self, named_node_loop(head), &image, error);
    stop_point("disk-snapshot: an overlay is made");
    if (r < 0)
        return r;
    json_array_append_new(s->made, json_string(p->layer.file));
    return disk_layer_open_alone(self, daemon, &p->layer, p->disk, &p->node, error);
}

static int note_made(Fiber *self, Snapshots *s, GError **error)
{
    DatabaseChange *change = database_change_new();
    catalogue_change_intent(change, s->intent, "snapshot", detail_of(s, true));
    int r = database_write(self, s->catalogue->database, change, error);
    s->is_made = r == 0;
    stop_point("disk-snapshot: the overlays are noted");
    return r;
}

static int put_over(Fiber *self, Snapshots *s, GError **error)
{
    Daemon *daemon = s->call->daemon;
    int r = 0;
    for (size_t i = 0; r == 0 && i < s->n; i++)
        r = make_overlay(self, s, &s->points[i], error);
    if (r == 0)
        r = note_made(self, s, error);
    for (size_t i = 0; i < s->n; i++)
        disk_let_go(s->points[i].disk);
    if (r == 0)
        r = qmp_run_transaction(self, s->call, s->actions, error);
    stop_point("disk-snapshot: the overlays are heads");
    for (size_t i = 0; r < 0 && i < s->n; i++) {
        if (s->points[i].node)
            nodes_close(self, daemon->nodes, s->points[i].node);
        disk_hold(daemon, s->points[i].disk);
    }
    return r;
}

static int note_not_made(Fiber *self, const Snapshots *s, GError **error)
{
    DatabaseChange *change = database_change_new();
    catalogue_change_intent(change, s->intent, "make", json_pack("{s:O}", "files", s->made));
    return database_note(self, s->catalogue->database, change, error);
}

// Files go only once the database does not say any more that they may be heads. Until it can be
// written they stay: over the heads they show the same.
static void take_back(Fiber *self, const Snapshots *s)
{
    g_autoptr(GError) error = NULL;
    int r = s->is_made ? note_not_made(self, s, &error) : 0;
    if (r == 0)
        disk_files_remove_intended(self, s->call->daemon, s->intent, s->made);
    else
        log_line(LOG_ERROR, "%s", error->message);
}

static int remember(Fiber *self, const Snapshots *s, GError **error)
{
    DatabaseChange *change = database_change_new();
    for (size_t i = 0; i < s->n; i++) {
        const NewPoint *p = &s->points[i];
        DiskLayer *below = p->layer.below,
                  *head = catalogue_add_layer(s->catalogue, change, &p->layer);
        disk_set_head(change, p->disk, head);
        disk_add_point(change, p->disk, p->name, below, s->created_s);
        disk_hold(s->call->daemon, p->disk);
    }
    catalogue_end_intent(change, s->intent);
    int r = database_note(self, s->catalogue->database, change, error);
    if (r < 0)
        g_prefix_error(error, "the points in time are made, but not noted yet: ");
    stop_point("disk-snapshot: it is remembered");
    return r;
}

// -- the command ----------------------------------------------------------------------------------

static json_t *describe(const Snapshots *s)
{
    json_t *all = json_array();
    for (size_t i = 0; i < s->n; i++) {
        const NewPoint *p = &s->points[i];
        json_array_append_new(all, json_pack("{s:s, s:s, s:I, s:s, s:s}", "disk", p->disk->name,
                                             "point", p->name, "created", (json_int_t)s->created_s,
                                             "node-name", p->node_name, "file", p->layer.file));
    }
    return all;
}

static int take(Fiber *self, Snapshots *s, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(s->call->daemon->nodes);
    for (size_t i = 0; i < s->n; i++)
        add_action(s, &s->points[i]);
    int r = qmp_rehearse_transaction(self, s->call, s->actions, error);
    if (r < 0)
        return r;
    s->intent = catalogue_intend(self, s->catalogue, "snapshot", detail_of(s, false), error);
    if (s->intent < 0)
        return -EIO;
    stop_point("disk-snapshot: it is intended");
    fiber_mutex_lock(self, lock);
    r = put_over(self, s, error);
    if (r == 0)
        r = remember(self, s, error);
    else
        take_back(self, s);
    fiber_mutex_unlock(self, lock);
    return r;
}

static int plan_and_take(Fiber *self, Snapshots *s, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    const json_t *items = json_object_get(args, "snapshots"), *item;
    size_t i;
    int r = json_array_size(items) ? 0 : qmp_fail(error, "no disk is named");
    json_array_foreach(items, i, item)
    {
        if (r == 0)
            r = plan_one(self, s, item, i, error);
        if (r == 0)
            s->n++;
    }
    if (r == 0)
        r = take(self, s, error);
    if (r == 0)
        *ret_reply = describe(s);
    return r;
}

static int disk_snapshot(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    size_t n = json_array_size(json_object_get(args, "snapshots"));
    Snapshots s = {
        .call = call,
        .catalogue = qmp_disks_begin(self, call, error),
        .points = g_new0(NewPoint, n + 1),
        .created_s = g_get_real_time() / G_USEC_PER_SEC,
        .files = json_array(),
        .made = json_array(),
        .actions = json_pack("{s:[]}", "actions"),
    };
    int r = s.catalogue ? plan_and_take(self, &s, args, ret_reply, error) : -ENOENT;
    if (s.catalogue)
        qmp_disks_end(self, s.catalogue);
    for (size_t i = 0; i < n; i++)
        g_free(s.points[i].layer.file);
    g_free(s.points);
    json_decref(s.files);
    json_decref(s.made);
    json_decref(s.actions);
    return r;
}

static const QmpCommand commands[] = {
    {"disk-snapshot", &snapshot_args, &taken_types,
     "Makes points in time, of one disk or of several at one moment, while clients go on: what a "
     "disk shows at that moment is kept under a name, and what is written from then on goes to a "
     "new "
     "layer over it. All of them are made, or none.",
     disk_snapshot},
    {0},
};

const QmpFamily qmp_disk_snapshots_family = {.title = "Points in time of disks",
                                             .commands = commands};
