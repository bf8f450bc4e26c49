// SPDX-License-Identifier: LGPL-2.1-or-later
// After a crash the bitmaps of a head are not to be trusted; those of layers below it, which nobody
// writes, are. So the latest checkpoint that can be used may be an older one.
#include "disk-changed.h"

#include <errno.h>

#include "daemon/bitmap-difference.h"
#include "daemon/bitmaps.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/qmp/table.h"
#include "daemon/state/disk-files.h"
#include "daemon/state/disk-nodes.h"
#include "disk-info.h"

char *disk_changed_bitmap_name(const char *checkpoint)
{
    return g_strdup_printf("checkpoint-%s", checkpoint);
}

Checkpoint *disk_changed_find_checkpoint(const Disk *disk, const char *name)
{
    for (guint i = disk->checkpoints->len; i-- > 0;) {
        Checkpoint *checkpoint = disk->checkpoints->pdata[i];
        if (g_str_equal(name, "last") || g_str_equal(name, checkpoint->name))
            return checkpoint;
    }
    return NULL;
}

bool disk_changed_can_note(const Disk *disk)
{
    return g_str_equal(disk->head->format, "qcow2") &&
           !json_is_true(json_object_get(disk->policy, "read-only"));
}

int disk_changed_check_new(const Disk *disk, const char *name, GError **error)
{
    int r = catalogue_check_point_name(name, error);
    if (r == 0 && (disk_changed_find_checkpoint(disk, name) || g_str_equal(name, "last")))
        r = qmp_fail(error, "disk '%s' has a checkpoint '%s' already: choose another name",
                     disk->name, name);
    return r;
}

void disk_changed_remove_bitmap(Fiber *self, const QmpCall *call, const Disk *disk,
                                const char *name)
{
    char node[LAYER_NODE_NAME_BYTES];
    g_autoptr(GError) error = NULL;
    disk_layer_node_name(disk->head, node);
    if (name &&
        qmp_table_run_by_name(self, call, "block-dirty-bitmap-remove",
                              json_pack("{s:s, s:s}", "node", node, "name", name), &error) < 0)
        log_line(LOG_WARNING, "disk '%s': %s", disk->name, error->message);
}

// -- which checkpoint -----------------------------------------------------------------------------

// Why it cannot be used; NULL: it can. Owned.
static char *problem_of(Fiber *self, const Daemon *daemon, const Disk *disk,
                        const Checkpoint *checkpoint, bool needs_file)
{
    if (!disk_has_layer(disk, checkpoint->layer))
        return g_strdup_printf("the checkpoint '%s' is of a state that disk '%s' has left by a "
                               "rollback, or by moving",
                               checkpoint->name, disk->name);
    if (needs_file && !checkpoint->target)
        return g_strdup_printf(
            "the backup of the checkpoint '%s' was pulled, or another file has its "
            "name since, so there is no image that this one could lie over",
            checkpoint->name);
    if (needs_file && !disk_files_exist(self, checkpoint->target))
        return g_strdup_printf("the backup '%s', over which this one would lie, is not there",
                               checkpoint->target);
    const NamedNode *named = disk_layer_node(daemon->nodes, checkpoint->layer);
    g_autofree char *name = disk_changed_bitmap_name(checkpoint->name);
    const DirtyBitmap *bitmap = named ? bitmaps_of(named, name) : NULL;
    const char *reason =
        bitmap ? dirty_bitmap_reason(bitmap) : "was lost when the daemon ended without storing it";
    return reason ? g_strdup_printf("what has changed since the checkpoint '%s' is not known: its "
                                    "bitmap %s",
                                    checkpoint->name, reason)
                  : NULL;
}

static int choose(Fiber *self, const Daemon *daemon, const Disk *disk, const char *since,
                  bool needs_file, DiskChanges *changes, GError **error)
{
    const Checkpoint *first = disk_changed_find_checkpoint(disk, since);
    if (!first)
        return qmp_disk_refuse(error, -ENOENT,
                               "disk '%s' has no checkpoint '%s': make a full backup first",
                               disk->name, since);
    changes->reason = problem_of(self, daemon, disk, first, needs_file);
    if (!changes->reason)
        changes->since = first;
    else if (!g_str_equal(since, "last"))
        return qmp_disk_refuse(error, -EINVAL, "%s: choose another, or make a full backup",
                               changes->reason);
    for (guint i = disk->checkpoints->len; i-- > 0 && !changes->since;) {
        g_autofree char *problem =
            problem_of(self, daemon, disk, disk->checkpoints->pdata[i], needs_file);
        if (!problem)
            changes->since = disk->checkpoints->pdata[i];
    }
    return 0;
}

// -- how much -------------------------------------------------------------------------------------

// A temporary bitmap of what the head shows otherwise than `layer` (NULL: than nothing).
static int add_difference(Fiber *self, const QmpCall *call, const Disk *disk, const char *layer,
                          DiskChanges *changes, GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    FiberMutex *lock = nodes_graph_lock(nodes);
    fiber_mutex_lock(self, lock);
    NamedNode *head = disk_layer_node(nodes, disk->head);
    const DirtyBitmapSpec spec = {
        .name = changes->bitmap,
        .node_name = head->name,
        .granularity_bits = dirty_bitmap_default_granularity_bits(head->node),
    };
    int r = bitmap_add_difference(self, nodes, head, &spec, layer, error);
    nodes_refresh(self, head);
    fiber_mutex_unlock(self, lock);
    if (r == 0)
        changes->temporary = g_strdup(changes->bitmap);
    return r;
}

static int add_since(Fiber *self, const QmpCall *call, const Disk *disk, const char *id,
                     DiskChanges *changes, GError **error)
{
    char head[LAYER_NODE_NAME_BYTES], layer[LAYER_NODE_NAME_BYTES];
    g_autofree char *own = disk_changed_bitmap_name(changes->since->name);
    disk_layer_node_name(disk->head, head);
    disk_layer_node_name(changes->since->layer, layer);
    if (changes->since->layer == disk->head) {
        changes->bitmap = g_steal_pointer(&own);
        return 0;
    }
    changes->bitmap = g_strdup_printf("%s-changed", id);
    int r = add_difference(self, call, disk, layer, changes, error);
    if (r == 0)
        r = qmp_table_run_by_name(self, call, "block-dirty-bitmap-merge",
                                  json_pack("{s:s, s:s, s:[{s:s, s:s}]}", "node", head, "target",
                                            changes->bitmap, "bitmaps", "node", layer, "name", own),
                                  error);
    return r;
}

static void count(const QmpCall *call, const Disk *disk, DiskChanges *changes)
{
    const NamedNode *head = disk_layer_node(call->daemon->nodes, disk->head);
    const DirtyBitmap *bitmap = bitmaps_of(head, changes->bitmap);
    DirtyBitmapInfo info;
    if (!bitmap)
        return;
    dirty_bitmap_info(bitmap, &info);
    changes->bytes =
        MIN(info.dirty_granules << dirty_bitmap_granularity_bits(bitmap), head->facts.size_bytes);
}

static int count_all(Fiber *self, const QmpCall *call, const Disk *disk, const char *id,
                     DiskChanges *changes, GError **error)
{
    changes->bitmap = g_strdup_printf("%s-all", id);
    int r = add_difference(self, call, disk, NULL, changes, error);
    if (r < 0)
        return r;
    count(call, disk, changes);
    disk_changed_remove_bitmap(self, call, disk, changes->temporary);
    g_clear_pointer(&changes->temporary, g_free);
    g_clear_pointer(&changes->bitmap, g_free);
    return 0;
}

int disk_changes_find(Fiber *self, const QmpCall *call, Disk *disk, const char *since,
                      const char *id, bool needs_file, DiskChanges *ret_changes, GError **error)
{
    DiskChanges changes = {0};
    int r = since ? choose(self, call->daemon, disk, since, needs_file, &changes, error) : 0;
    if (r == 0 && changes.since) {
        r = add_since(self, call, disk, id, &changes, error);
        if (r == 0)
            count(call, disk, &changes);
    } else if (r == 0) {
        r = count_all(self, call, disk, id, &changes, error);
    }
    if (r == 0)
        *ret_changes = changes;
    else
        disk_changes_done(self, call, disk, &changes);
    return r;
}

void disk_changes_done(Fiber *self, const QmpCall *call, const Disk *disk, DiskChanges *changes)
{
    disk_changed_remove_bitmap(self, call, disk, changes->temporary);
    g_free(changes->bitmap);
    g_free(changes->temporary);
    g_free(changes->reason);
    *changes = (DiskChanges){0};
}
