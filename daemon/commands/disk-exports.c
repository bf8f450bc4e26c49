// SPDX-License-Identifier: LGPL-2.1-or-later
// The head of a disk, or a point in time beside it, under a name for clients. What is exported is
// remembered, and there again after a restart. Control loop.
#include "disk-exports.h"

#include <errno.h>

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-info.h"

// -- disk-export ----------------------------------------------------------------------------------

static const QmpType export_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"disk", &qmp_str, .doc = "the disk"},
            {"point", &qmp_str, true,
             "the point in time that is shown, read-only; the head, unless given"},
            {"name", &qmp_str, true,
             "what clients call it, and its id; DISK or DISK@POINT, unless given"},
            {"writable", &qmp_bool, true, "whether clients may write the head; false"},
            {"description", &qmp_str, true, "for clients; what it is, unless given"},
            {0}},
};

static int check_export(const Daemon *daemon, const Disk *disk, const DiskExport *as,
                        GError **error)
{
    const Point *point = as->point ? disk_get_point(disk, as->point, error) : NULL;
    if (as->point && !point)
        return -ENOENT;
    if (point && point->layer->is_merging)
        return qmp_fail(error, "the point '%s@%s' is on its way out: its layer is being merged",
                        disk->name, point->name);
    if (point && json_is_true(json_object_get(as->options, "writable")))
        return qmp_fail(error, "a point in time is read-only: for a disk on it use disk-clone");
    if (!nbd_server_get(daemon->nbd))
        return qmp_fail(error, "there is no NBD server: begin one with nbd-server-start");
    return 0;
}

static int start_export(Fiber *self, Daemon *daemon, Catalogue *catalogue, Disk *disk,
                        const DiskExport *as, GError **error)
{
    int r = check_export(daemon, disk, as, error);
    if (r < 0)
        return r;
    if (exports_find(daemon->exports, as->id))
        return qmp_fail(error, "there is an export '%s' already: give this one another name",
                        as->id);
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    r = disk_export_start(self, daemon, disk, as, error);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
    stop_point("disk-export: it is served");
    return r;
}

static void stop_export(Fiber *self, Daemon *daemon, const Disk *disk, const DiskExport *export)
{
    const Point *point = export->point ? disk_find_point(disk, export->point) : NULL;
    disk_export_stop(self, daemon, export);
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    disk_layer_close_unused(self, daemon, point ? point->layer : disk->head);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
}

static int export_as(Fiber *self, const QmpCall *call, Catalogue *catalogue, const json_t *args,
                     const DiskExport *as, json_t **ret_reply, GError **error)
{
    Disk *disk = qmp_disks_get(catalogue, args, "disk", error);
    if (!disk)
        return -ENOENT;
    if (disk->problem)
        return qmp_fail(error, "disk '%s' is not open: %s", disk->name, disk->problem);
    int r = start_export(self, call->daemon, catalogue, disk, as, error);
    if (r < 0)
        return r;
    DatabaseChange *change = database_change_new();
    DiskExport *export = disk_add_export(change, disk, as);
    r = database_write(self, catalogue->database, change, error);
    stop_point("disk-export: it is remembered");
    if (r == 0) {
        *ret_reply = qmp_describe_disk_export(call->daemon, export);
        return 0;
    }
    stop_export(self, call->daemon, disk, export);
    disk_remove_export(NULL, disk, export);
    return r;
}

static int disk_export(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                       GError **error)
{
    const char *disk = qmp_args_str(args, "disk"), *point = qmp_args_str(args, "point");
    const char *given = qmp_args_str(args, "name");
    g_autofree char *name = given   ? g_strdup(given)
                            : point ? g_strdup_printf("%s@%s", disk, point)
                                    : g_strdup(disk);
    json_t *options = json_pack("{s:b, s:s*}", "writable", qmp_args_bool(args, "writable", false),
                                "description", qmp_args_str(args, "description"));
    DiskExport as = {.id = name, .name = name, .point = (char *)point, .options = options};
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    int r = -ENOENT;
    if (catalogue) {
        r = export_as(self, call, catalogue, args, &as, ret_reply, error);
        qmp_disks_end(self, catalogue);
    }
    json_decref(options);
    return r;
}

// -- disk-unexport --------------------------------------------------------------------------------

static const QmpType unexport_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "the export"},
                                   {"clients", &qmp_disk_client_mode, true,
                                    "safe, unless given: refused while there are any"},
                                   {0}},
};

static int unexport(Fiber *self, const QmpCall *call, Catalogue *catalogue, const json_t *args,
                    GError **error)
{
    const char *id = qmp_args_str(args, "id");
    Disk *disk;
    DiskExport *export = catalogue_find_export(catalogue, id, &disk);
    if (!export)
        return qmp_disk_refuse(error, -ENOENT,
                               "no disk has an export '%s': query-disks lists those that there are",
                               id);
    if (!qmp_args_is_hard(args) && exports_have_clients(self, call->daemon->exports, id))
        return qmp_disk_refuse(
            error, -EBUSY,
            "export '%s' has clients: let them disconnect, or disconnect them with "
            "\"clients\": \"hard\"",
            id);
    DatabaseChange *change = database_change_new();
    database_change_add(change, "DELETE FROM exports WHERE id = %Q", id);
    int r = database_write(self, catalogue->database, change, error);
    stop_point("disk-unexport: it is forgotten");
    if (r < 0)
        return r;
    stop_export(self, call->daemon, disk, export);
    disk_remove_export(NULL, disk, export);
    return 0;
}

static int disk_unexport(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error)
{
    Catalogue *catalogue = qmp_disks_begin(self, call, error);
    if (!catalogue)
        return -ENOENT;
    int r = unexport(self, call, catalogue, args, error);
    qmp_disks_end(self, catalogue);
    return r;
}

static const QmpCommand commands[] = {
    {"disk-export", &export_args, &qmp_disk_export_info,
     "Exports the head of a disk once more, or one of its points in time beside it.", disk_export},
    {"disk-unexport", &unexport_args, NULL,
     "Ends an export of a disk. BLOCK_EXPORT_DELETED tells when it is gone.", disk_unexport},
    {0},
};

const QmpFamily qmp_disk_exports_family = {.title = "Exports of disks", .commands = commands};
