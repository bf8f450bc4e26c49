// SPDX-License-Identifier: LGPL-2.1-or-later
// In this order: the chain is opened, the export is there, the database has it. A crash before the
// last leaves no disk, and no client has been told of one.
#include "disk-birth.h"

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-nodes.h"
#include "daemon/state/stop-point.h"
#include "disk-info.h"

int disk_birth_check(const QmpCall *call, const Catalogue *catalogue, const json_t *args,
                     GError **error)
{
    const char *name = qmp_args_str(args, "name");
    int r = catalogue_check_disk_name(name, error);
    if (r == 0 && catalogue_find_disk(catalogue, name))
        r = qmp_fail(error, "there is a disk '%s' already: choose another name, or remove that",
                     name);
    if (r == 0 && qmp_args_bool(args, "export", true) && exports_find(call->daemon->exports, name))
        r = qmp_fail(
            error,
            "there is an export '%s' already: remove that, or add the disk with \"export\": "
            "false",
            name);
    return r;
}

static json_t *policy_of(const json_t *args)
{
    json_t *policy = json_object();
    static const char *const flags[] = {"direct", "read-only"};
    for (unsigned i = 0; i < G_N_ELEMENTS(flags); i++)
        if (qmp_args_bool(args, flags[i], false))
            json_object_set_new(policy, flags[i], json_true());
    return policy;
}

static void add_export(DatabaseChange *change, Disk *disk, const json_t *args)
{
    json_t *options = json_pack("{s:b, s:s*}", "writable", !qmp_args_bool(args, "read-only", false),
                                "description", qmp_args_str(args, "description"));
    if (qmp_args_bool(args, "export", true))
        disk_add_export(change, disk,
                        &(DiskExport){.id = disk->name, .name = disk->name, .options = options});
    json_decref(options);
}

// With the graph lock.
static int open_and_serve(Fiber *self, Daemon *daemon, Disk *disk, GError **error)
{
    int r = disk_open(self, daemon, disk, error);
    if (r < 0 || !disk->exports->len || !nbd_server_get(daemon->nbd))
        return r;
    r = disk_export_start(self, daemon, disk, disk->exports->pdata[0], error);
    if (r < 0)
        disk_close(self, daemon, disk);
    return r;
}

static void take_back(Fiber *self, Daemon *daemon, Catalogue *catalogue, Disk *disk)
{
    for (guint i = 0; i < disk->exports->len; i++)
        disk_export_stop(self, daemon, disk->exports->pdata[i]);
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    disk_close(self, daemon, disk);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
}

int disk_birth_finish(Fiber *self, const QmpCall *call, Catalogue *catalogue,
                      DatabaseChange *change, const json_t *args, DiskLayer *head,
                      json_t **ret_reply, GError **error)
{
    Daemon *daemon = call->daemon;
    Disk *disk =
        catalogue_add_disk(catalogue, change, qmp_args_str(args, "name"), head, policy_of(args));
    add_export(change, disk, args);
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    int r = open_and_serve(self, daemon, disk, error);
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
    stop_point("a new disk is open");
    if (r < 0) {
        database_change_free(change);
        catalogue_remove_disk(catalogue, NULL, disk);
        return r;
    }
    r = database_write(self, catalogue->database, change, error);
    stop_point("a new disk is remembered");
    if (r == 0) {
        *ret_reply = qmp_describe_disk(daemon, disk);
        return 0;
    }
    take_back(self, daemon, catalogue, disk);
    catalogue_remove_disk(catalogue, NULL, disk);
    return r;
}
