// SPDX-License-Identifier: LGPL-2.1-or-later
// block_set_io_throttle for exports: what QEMU limits is a guest's device, which an export is here.
// An export is in a group, by default of its own; limits are the group's. Those of disks' exports
// are remembered: each member has all of its group's, so any of them can make it again. Control
// loop.
#include "io-throttle.h"

#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/throttle-policy.h"
#include "disk-info.h"
#include "throttle-limits.h"

#define RATE_DOC(what) "limit of " what " a second; 0: none"
#define MAX_DOC "the same in bursts"
#define LENGTH_DOC "how many seconds a burst may last; 1"

static const QmpType set_args = {
    .name = "BlockIOThrottle",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"id", &qmp_str, .doc = "the export"},
            {"bps", &qmp_int, .doc = RATE_DOC("bytes")},
            {"bps_rd", &qmp_int, .doc = RATE_DOC("bytes read")},
            {"bps_wr", &qmp_int, .doc = RATE_DOC("bytes written")},
            {"iops", &qmp_int, .doc = RATE_DOC("requests")},
            {"iops_rd", &qmp_int, .doc = RATE_DOC("reads")},
            {"iops_wr", &qmp_int, .doc = RATE_DOC("writes, zeroes and discards")},
            {"bps_max", &qmp_int, true, MAX_DOC},
            {"bps_rd_max", &qmp_int, true, MAX_DOC},
            {"bps_wr_max", &qmp_int, true, MAX_DOC},
            {"iops_max", &qmp_int, true, MAX_DOC},
            {"iops_rd_max", &qmp_int, true, MAX_DOC},
            {"iops_wr_max", &qmp_int, true, MAX_DOC},
            {"bps_max_length", &qmp_int, true, LENGTH_DOC},
            {"bps_rd_max_length", &qmp_int, true, LENGTH_DOC},
            {"bps_wr_max_length", &qmp_int, true, LENGTH_DOC},
            {"iops_max_length", &qmp_int, true, LENGTH_DOC},
            {"iops_rd_max_length", &qmp_int, true, LENGTH_DOC},
            {"iops_wr_max_length", &qmp_int, true, LENGTH_DOC},
            {"iops_size", &qmp_int, true,
             "a longer request counts as several of so many bytes; 0: as one"},
            {"group", &qmp_str, true,
             "whose members share the limits: other exports, and nodes of the driver throttle. The "
             "export's id, unless given"},
            {0}},
};

// As ThrottleLimits have it.
static json_t *rename_members(const json_t *args)
{
    static const struct {
        const char *ours, *theirs;
    } names[] = {
        {"bps", "bps-total"},   {"bps_rd", "bps-read"},   {"bps_wr", "bps-write"},
        {"iops", "iops-total"}, {"iops_rd", "iops-read"}, {"iops_wr", "iops-write"},
    };
    static const char *const suffixes[][2] = {
        {"", ""}, {"_max", "-max"}, {"_max_length", "-max-length"}};
    json_t *limits = json_object();
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        for (unsigned s = 0; s < G_N_ELEMENTS(suffixes); s++) {
            g_autofree char *from = g_strconcat(names[i].ours, suffixes[s][0], NULL);
            g_autofree char *to = g_strconcat(names[i].theirs, suffixes[s][1], NULL);
            json_object_set(limits, to, json_object_get(args, from)); // nothing for NULL
        }
    json_object_set(limits, "iops-size", json_object_get(args, "iops_size"));
    return limits;
}

// The group that this export is to be in changes its limits, wherever it is remembered.
static int remember(Fiber *self, Catalogue *catalogue, const char *id,
                    const ExportThrottle *throttle, GError **error)
{
    DatabaseChange *change = database_change_new();
    for (guint d = 0; d < catalogue->disks->len; d++) {
        const Disk *disk = catalogue->disks->pdata[d];
        for (guint e = 0; e < disk->exports->len; e++) {
            DiskExport *export = disk->exports->pdata[e];
            const char *group = export_throttle_group(json_object_get(export->options, "throttle"));
            bool is_it = g_str_equal(export->id, id);
            if (is_it || (throttle && g_strcmp0(group, throttle->group) == 0))
                disk_export_set_option(change, export, "throttle",
                                       throttle ? export_throttle_to_json(throttle) : NULL);
        }
    }
    return database_note(self, catalogue->database, change, error);
}

// A group that was there before takes the limits, too.
static void set_group_limits(const Daemon *daemon, const ExportThrottle *throttle)
{
    g_autoptr(ThrottleGroup) group = throttle_groups_find(daemon->throttle_groups, throttle->group);
    if (group)
        throttle_group_set_limits(group, &throttle->limits);
}

static int set(Fiber *self, QmpCall *call, Catalogue *catalogue, const char *id,
               const ExportThrottle *throttle, GError **error)
{
    Daemon *daemon = call->daemon;
    Disk *disk;
    bool is_known = catalogue && catalogue_find_export(catalogue, id, &disk);
    if (!is_known && !exports_find(daemon->exports, id)) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", id);
        return -ENODEV;
    }
    int r = catalogue ? remember(self, catalogue, id, throttle, error) : 0;
    if (throttle)
        set_group_limits(daemon, throttle);
    exports_set_throttle(self, daemon->exports, id, throttle); // one that is not served has none
    return r;
}

static int set_io_throttle(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                           GError **error)
{
    const char *id = qmp_args_str(args, "id");
    ExportThrottle throttle = {.group = qmp_args_str(args, "group") ?: id};
    json_auto_t *limits = rename_members(args);
    throttle_limits_init(&throttle.limits);
    int r = throttle_limits_from_json(limits, &throttle.limits, error);
    if (r < 0)
        return r;
    bool is_none = throttle_limits_are_none(&throttle.limits);
    r = is_none ? 0 : throttle_policy_check_not_its_group(call->daemon, throttle.group, error);
    if (r < 0)
        return r;
    Catalogue *catalogue = call->daemon->catalogue;
    if (catalogue)
        fiber_mutex_lock(self, &catalogue->lock);
    r = set(self, call, catalogue, id, is_none ? NULL : &throttle, error);
    if (catalogue)
        fiber_mutex_unlock(self, &catalogue->lock);
    return r;
}

static const QmpCommand commands[] = {
    {"block_set_io_throttle", &set_args, NULL,
     "Limits what the clients of an export may do, from now on, also those that it has. Of a "
     "disk's "
     "export it is remembered. Limits are those of the group: all of them change, for all members. "
     "Without any limit the export is in no group, or in that which the configuration has for it, "
     "whose limits change there only. Requests wait before they enter the graph, so "
     "nothing that changes the graph waits for them; WRITE_ZEROES and TRIM count as a request, not "
     "by their bytes. query-export-stats tells what holds. As in QEMU, but that `id` is an export.",
     set_io_throttle},
    {0},
};

const QmpFamily qmp_io_throttle_family = {.title = "Limits of exports", .commands = commands};
