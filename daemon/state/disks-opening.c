// SPDX-License-Identifier: LGPL-2.1-or-later
// Disks that share layers are opened one after the other, so that each layer is opened once. The
// catalogue's lock is held by none that waits for another machine: commands go on, and find such a
// disk with its problem.
#include "disks-opening.h"

#include <errno.h>

#include "chain-core/loop.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/message-ids.h"
#include "disk-nodes.h"

#define RETRY_NS (UINT64_C(5) * 1000 * 1000 * 1000)
#define START_NS (UINT64_C(10) * 1000 * 1000 * 1000)

static bool needs_others(const Disk *disk)
{
    for (const DiskLayer *layer = disk->head; layer; layer = layer->below)
        if (disk_layer_is_remote(layer))
            return true;
    return false;
}

static const DiskLayer *lowest_layer(const Disk *disk)
{
    const DiskLayer *layer = disk->head;
    while (layer->below)
        layer = layer->below;
    return layer;
}

static void tell(const Disk *disk, const char *problem)
{
    log_about(LOG_ERROR, &(LogAbout){MESSAGE_ID_DISK_NOT_OPEN, .disk = disk->name},
              "disk '%s' is not open: %s", disk->name, problem);
}

// -- of this machine ------------------------------------------------------------------------------

static void open_local(Fiber *self, Daemon *daemon, Disk *disk)
{
    g_autoptr(GError) error = NULL;
    if (disk_open(self, daemon, disk, &error) < 0)
        tell(disk, error->message);
    else
        disk_serve(self, daemon, disk);
}

// -- of others ------------------------------------------------------------------------------------

typedef struct Group {
    Daemon *daemon;
    const DiskLayer *lowest;
    GPtrArray *names; // of disks on it; owned
} Group;

static void group_free(Group *group)
{
    g_ptr_array_unref(group->names);
    g_free(group);
}

// The lock of the graph is given up while the server is waited for. Meanwhile the disk stays, and
// what it stands on.
static int try_one(Fiber *self, Daemon *daemon, Disk *disk, GError **error)
{
    Catalogue *catalogue = daemon->catalogue;
    FiberMutex *graph = nodes_graph_lock(daemon->nodes);
    disk->is_opening = true;
    fiber_mutex_lock(self, graph);
    int r = disk_open(self, daemon, disk, error);
    fiber_mutex_unlock(self, graph);
    fiber_mutex_lock(self, &catalogue->lock);
    disk->is_opening = false;
    fiber_mutex_lock(self, graph);
    if (r == 0)
        disk_serve(self, daemon, disk);
    fiber_mutex_unlock(self, graph);
    fiber_mutex_unlock(self, &catalogue->lock);
    return r;
}

// Those that are not open yet; false: all are, or have been removed.
static bool try_all(Fiber *self, const Group *group)
{
    Catalogue *catalogue = group->daemon->catalogue;
    bool is_left = false;
    for (guint i = 0; i < group->names->len && !catalogue->is_ending; i++) {
        Disk *disk = catalogue_find_disk(catalogue, group->names->pdata[i]);
        g_autoptr(GError) error = NULL;
        if (!disk || !disk->problem)
            continue;
        g_autofree char *before = g_strdup(disk->problem);
        if (try_one(self, group->daemon, disk, &error) == 0)
            log_line(LOG_INFO, "disk '%s' is open", disk->name);
        else if (!g_str_equal(before, error->message) && !catalogue->is_ending)
            tell(disk, error->message);
        is_left |= disk->problem != NULL;
    }
    return is_left;
}

static void open_group(Fiber *self, void *arg)
{
    Group *group = arg;
    Catalogue *catalogue = group->daemon->catalogue;
    bool is_left = try_all(self, group);
    catalogue->n_untried--;
    fiber_queue_wake_all(&catalogue->opening);
    while (is_left && !catalogue->is_ending) {
        fiber_queue_wait_until(self, &catalogue->retrying, loop_now_ns(fiber_loop(self)) + RETRY_NS,
                               "disks: a server");
        is_left = try_all(self, group);
    }
    group_free(group);
    catalogue->n_opening--;
    fiber_queue_wake_all(&catalogue->opening);
}

static void begin_group(Fiber *self, Group *group)
{
    Catalogue *catalogue = group->daemon->catalogue;
    catalogue->n_opening++;
    catalogue->n_untried++;
    if (fiber_spawn_reserve(fiber_loop(self), "disks: open", open_group, group) == 0)
        return;
    log_line(LOG_ERROR, "disk '%s' is not opened: no memory for a fiber's stack",
             (const char *)group->names->pdata[0]);
    catalogue->n_opening--;
    catalogue->n_untried--;
    group_free(group);
}

static void add_to_group(GPtrArray *groups, Daemon *daemon, Disk *disk)
{
    const DiskLayer *lowest = lowest_layer(disk);
    Group *group = NULL;
    for (guint i = 0; i < groups->len && !group; i++)
        if (((Group *)groups->pdata[i])->lowest == lowest)
            group = groups->pdata[i];
    if (!group) {
        group = g_new(Group, 1);
        *group = (Group){daemon, lowest, g_ptr_array_new_with_free_func(g_free)};
        g_ptr_array_add(groups, group);
    }
    disk->problem = g_strdup("the server that it needs has not answered yet");
    g_ptr_array_add(group->names, g_strdup(disk->name));
}

// -- all ------------------------------------------------------------------------------------------

void disks_open_all(Fiber *self, Daemon *daemon)
{
    const Catalogue *catalogue = daemon->catalogue;
    g_autoptr(GPtrArray) groups = g_ptr_array_new();
    fiber_mutex_lock(self, nodes_graph_lock(daemon->nodes));
    for (guint i = 0; i < catalogue->disks->len; i++) {
        Disk *disk = catalogue->disks->pdata[i];
        if (needs_others(disk))
            add_to_group(groups, daemon, disk);
        else
            open_local(self, daemon, disk);
    }
    fiber_mutex_unlock(self, nodes_graph_lock(daemon->nodes));
    for (guint i = 0; i < groups->len; i++)
        begin_group(self, groups->pdata[i]);
}

void disks_wait_opened(Fiber *self, const Daemon *daemon)
{
    Catalogue *catalogue = daemon->catalogue;
    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + START_NS;
    int r = 0;
    while (r == 0 && catalogue->n_untried)
        r = fiber_queue_wait_until(self, &catalogue->opening, deadline_ns, "disks: servers");
    for (guint i = 0; r == -ETIMEDOUT && i < catalogue->disks->len; i++) {
        const Disk *disk = catalogue->disks->pdata[i];
        if (disk->is_opening)
            log_line(LOG_WARNING, "disk '%s' is not there yet: %s; the others are served",
                     disk->name, disk->problem);
    }
}

void disks_give_up_opening(Fiber *self, const Daemon *daemon)
{
    Catalogue *catalogue = daemon->catalogue;
    if (!catalogue)
        return;
    catalogue->is_ending = true;
    while (catalogue->n_opening) {
        fiber_queue_wake_all(&catalogue->retrying);
        nodes_give_up_opening(self, daemon->nodes);
        fiber_queue_wait_until(self, &catalogue->opening,
                               loop_now_ns(fiber_loop(self)) + RETRY_NS / 50, "disks: the end");
    }
}
