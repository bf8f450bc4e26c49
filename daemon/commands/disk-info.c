// SPDX-License-Identifier: LGPL-2.1-or-later
// Told of the catalogue and of the table of nodes: nobody is asked, so nothing waits for a disk.
#include "disk-info.h"

#include <errno.h>

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-nodes.h"

// -- types ----------------------------------------------------------------------------------------

const QmpType qmp_disk_client_mode = {
    .name = "DiskClientMode",
    .kind = QMP_ENUM,
    .doc = "What becomes of clients that would be in the way: `safe` refuses the command, `hard` "
           "disconnects them.",
    .values = (const char *const[]){"safe", "hard", NULL},
};

static const QmpType layer_info = {
    .name = "DiskLayerInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"node-name", &qmp_str, .doc = "its node, if it is open"},
            {"file", &qmp_str, .doc = "its file, or the name of an image elsewhere"},
            {"format", &qmp_str, .doc = "qcow2 or raw"},
            {"ours", &qmp_bool,
             .doc = "whether it is the daemon's to change and to remove when nobody needs it"},
            {"shared", &qmp_bool, .doc = "whether layers of other chains stand on it, too"},
            {"merging", &qmp_bool, true,
             "present and true once a commit into it has begun that is not over: by itself it is "
             "no "
             "state of the disk"},
            {0}},
};
static const QmpType layer_infos = {.kind = QMP_ARRAY, .element = &layer_info};

static const QmpType point_info = {
    .name = "DiskPointInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"name", &qmp_str, .doc = "of the point in time"},
            {"node-name", &qmp_str, .doc = "of the layer that shows it"},
            {"file", &qmp_str, .doc = "of that layer"},
            {"created", &qmp_int, .doc = "when, in seconds since 1970"},
            {"in-chain", &qmp_bool,
             .doc = "whether it lies below the head; it does not after a rollback that kept it, or "
                    "once the head was flattened"},
            {0}},
};
static const QmpType point_infos = {.kind = QMP_ARRAY, .element = &point_info};

const QmpType qmp_disk_export_info = {
    .name = "DiskExportInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"id", &qmp_str, .doc = "of the export, as in query-block-exports"},
            {"name", &qmp_str, .doc = "what clients call it"},
            {"point", &qmp_str, true, "the point in time that it shows; without it: the head"},
            {"writable", &qmp_bool, .doc = "whether clients may write"},
            {"served", &qmp_bool, .doc = "whether it is there for clients now"},
            {"clients", &qmp_int, .doc = "how many are connected"},
            {"uris", &qmp_str_array, .doc = "NBD URIs, one for each address of the server"},
            {0}},
};
static const QmpType export_infos = {.kind = QMP_ARRAY, .element = &qmp_disk_export_info};

static const QmpType checkpoint_info = {
    .name = "DiskCheckpointInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str, .doc = "of the checkpoint"},
                                   {"created", &qmp_int, .doc = "in seconds since 1970"},
                                   {"target", &qmp_str, true, "the backup that was made then"},
                                   {0}},
};
static const QmpType checkpoint_infos = {.kind = QMP_ARRAY, .element = &checkpoint_info};

const QmpType qmp_disk_info = {
    .name = "DiskInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"name", &qmp_str, .doc = "of the disk"},
                                   {"open", &qmp_bool, .doc = "whether its chain is open"},
                                   {"problem", &qmp_str, true, "why it is not"},
                                   {"node-name", &qmp_str, .doc = "the node of its head"},
                                   {"file", &qmp_str, .doc = "the head's file"},
                                   {"format", &qmp_str, .doc = "the head's format"},
                                   {"size", &qmp_int, true, "bytes that it shows, if it is open"},
                                   {"read-only", &qmp_bool, .doc = "whether nobody may write it"},
                                   {"direct", &qmp_bool,
                                    .doc = "whether its files are used past the page cache"},
                                   {"job", &qmp_str, true, "the job that is at work on its layers"},
                                   {"layers", &layer_infos, .doc = "from the head down"},
                                   {"points", &point_infos, .doc = "points in time, oldest first"},
                                   {"exports", &export_infos, .doc = "of the head and of points"},
                                   {"checkpoints", &checkpoint_infos,
                                    .doc = "from when on changes are known, oldest first"},
                                   {0}},
};

bool qmp_args_is_hard(const json_t *args)
{
    return g_strcmp0(qmp_args_str(args, "clients"), "hard") == 0;
}

// -- finding --------------------------------------------------------------------------------------

Catalogue *qmp_disks_begin(Fiber *self, const QmpCall *call, GError **error)
{
    Catalogue *catalogue = call->daemon->catalogue;
    if (catalogue)
        fiber_mutex_lock(self, &catalogue->lock);
    else
        qmp_fail(error, "there are no disks to remember: start chaind with --state DIR");
    return catalogue;
}

void qmp_disks_end(Fiber *self, Catalogue *catalogue)
{
    fiber_mutex_unlock(self, &catalogue->lock);
}

Disk *qmp_disks_get(const Catalogue *catalogue, const json_t *args, const char *name,
                    GError **error)
{
    return catalogue_get_disk(catalogue, qmp_args_str(args, name), error);
}

int qmp_disk_refuse(GError **error, int r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *sentence = g_strdup_vprintf(format, args);
    va_end(args);
    qmp_fail(error, "%s", sentence);
    return r;
}

int qmp_disks_get_idle(const Catalogue *catalogue, const json_t *args, const char *name,
                       Disk **ret_disk, GError **error)
{
    Disk *disk = qmp_disks_get(catalogue, args, name, error);
    if (!disk)
        return -ENOENT;
    if (disk->problem)
        return qmp_fail(error, "disk '%s' is not open: %s", disk->name, disk->problem);
    if (disk->job)
        return qmp_disk_refuse(
            error, -EBUSY,
            "disk '%s' is busy: job '%s' is at work on it; wait for its end, or cancel it",
            disk->name, disk->job);
    *ret_disk = disk;
    return 0;
}

// -- describing -----------------------------------------------------------------------------------

static json_t *describe_layer(const DiskLayer *layer)
{
    char name[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(layer, name);
    json_t *info =
        json_pack("{s:s, s:s, s:s, s:b, s:b}", "node-name", name, "file", layer->file, "format",
                  layer->format, "ours", layer->is_ours, "shared", layer->n_users > 1);
    if (layer->is_merging)
        json_object_set_new(info, "merging", json_true());
    return info;
}

static json_t *describe_point(const Disk *disk, const Point *point)
{
    char name[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(point->layer, name);
    return json_pack("{s:s, s:s, s:s, s:I, s:b}", "name", point->name, "node-name", name, "file",
                     point->layer->file, "created", (json_int_t)point->created_s, "in-chain",
                     disk_has_layer(disk, point->layer));
}

json_t *qmp_describe_disk_export(const Daemon *daemon, const DiskExport *export)
{
    const Export *served = disk_export_served(daemon, export);
    NbdsExportStats stats = {0};
    bool is_served = served && exports_get_stats(served, &stats);
    json_t *uris = json_array();
    if (nbd_server_get(daemon->nbd)) {
        g_auto(GStrv) all = nbd_server_uris(daemon->nbd, export->name);
        for (char **uri = all; *uri; uri++)
            json_array_append_new(uris, json_string(*uri));
    }
    return json_pack("{s:s, s:s, s:s*, s:b, s:b, s:I, s:o}", "id", export->id, "name", export->name,
                     "point", export->point, "writable",
                     json_is_true(json_object_get(export->options, "writable")), "served",
                     is_served, "clients", (json_int_t)stats.n_clients, "uris", uris);
}

static json_t *describe_checkpoint(const Checkpoint *checkpoint)
{
    return json_pack("{s:s, s:I, s:s*}", "name", checkpoint->name, "created",
                     (json_int_t)checkpoint->created_s, "target", checkpoint->target);
}

static void add_state(json_t *info, const Daemon *daemon, const Disk *disk)
{
    const NamedNode *head = disk_layer_node(daemon->nodes, disk->head);
    if (disk->problem)
        json_object_set_new(info, "problem", json_string(disk->problem));
    else if (head)
        json_object_set_new(info, "size", json_integer((json_int_t)head->facts.size_bytes));
    if (disk->job)
        json_object_set_new(info, "job", json_string(disk->job));
}

json_t *qmp_describe_disk(const Daemon *daemon, const Disk *disk)
{
    json_t *layers = json_array(), *points = json_array(), *exports = json_array(),
           *checkpoints = json_array();
    for (const DiskLayer *layer = disk->head; layer; layer = layer->below)
        json_array_append_new(layers, describe_layer(layer));
    for (guint i = 0; i < disk->points->len; i++)
        json_array_append_new(points, describe_point(disk, disk->points->pdata[i]));
    for (guint i = 0; i < disk->exports->len; i++)
        json_array_append_new(exports, qmp_describe_disk_export(daemon, disk->exports->pdata[i]));
    for (guint i = 0; i < disk->checkpoints->len; i++)
        json_array_append_new(checkpoints, describe_checkpoint(disk->checkpoints->pdata[i]));
    char name[LAYER_NODE_NAME_BYTES];
    disk_layer_node_name(disk->head, name);
    json_t *info = json_pack(
        "{s:s, s:b, s:s, s:s, s:s, s:b, s:b, s:o, s:o, s:o, s:o}", "name", disk->name, "open",
        !disk->problem, "node-name", name, "file", disk->head->file, "format", disk->head->format,
        "read-only", json_is_true(json_object_get(disk->policy, "read-only")), "direct",
        json_is_true(json_object_get(disk->policy, "direct")), "layers", layers, "points", points,
        "exports", exports, "checkpoints", checkpoints);
    add_state(info, daemon, disk);
    return info;
}
