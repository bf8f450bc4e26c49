// SPDX-License-Identifier: LGPL-2.1-or-later
// Tables are looked at only where room is scarce.
#include "disk-space.h"

#include <errno.h>

#include "chain-core/chain-plan.h"
#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/node-instances.h"
#include "daemon/qmp/args.h"
#include "daemon/state/disk-nodes.h"
#include "disk-info.h"

const char disk_space_doc[] =
    "whether it is refused, with both figures, where there is less room than it may need; else it "
    "begins even so, and is paused once there is none, until job-resume. true, unless given";

bool disk_space_is_checked(const json_t *args)
{
    return qmp_args_bool(args, "check-space", true);
}

void disk_space_set_on_error(json_t *of_job, const char *name, const json_t *args)
{
    if (!disk_space_is_checked(args))
        json_object_set_new(of_job, name, json_string("enospc"));
}

static int refuse(const char *file, uint64_t needed, uint64_t available, GError **error)
{
    return qmp_disk_refuse(error, -ENOSPC,
                           "'%s' needs %" G_GUINT64_FORMAT
                           " bytes at most, and there are %" G_GUINT64_FORMAT
                           ": make room, or begin even so with \"check-space\": false",
                           file, needed, available);
}

uint64_t disk_space_free(Fiber *self, Node *node)
{
    uint64_t bytes;
    bool can_share;
    File *file = node_file(node);
    bool is_known = file && file_free_bytes(self, file, &bytes, &can_share) == 0 && !can_share;
    return is_known ? bytes : UINT64_MAX;
}

// -- copies ---------------------------------------------------------------------------------------

typedef struct Room {
    Node *target;
    uint64_t enough;
    NodeRoom room;
    uint64_t file_id[2];
    bool has_file;
    int result;
} Room;

static void look_at_target(Fiber *self, void *arg)
{
    Room *r = arg;
    File *file = node_file(r->target);
    r->has_file = file;
    if (file)
        file_identity(file, r->file_id);
    r->result = node_room(self, r->target, r->enough, &r->room);
}

typedef struct Shown {
    Node *head;
    const Room *room;
    uint64_t bytes, counted_to; // of it, in granules of the target
    bool may_be_shared;
    int result;
} Shown;

// Reflinks need no room.
static bool may_be_shared(const Shown *s)
{
    bool may = false;
    for (Node *node = s->head; node && s->room->room.can_share && s->room->has_file && !may;
         node = chain_backing(node)) {
        File *file = node_file(node);
        uint64_t id[2] = {0};
        if (file)
            file_identity(file, id);
        may = file && id[0] == s->room->file_id[0];
    }
    return may;
}

static bool takes_room(const NodeExtent *extent)
{
    bool is_compressed = extent->kind == NODE_EXTENT_OPAQUE && extent->node &&
                         g_str_equal(extent->node->ops->driver, "qcow2");
    return (extent->kind == NODE_EXTENT_DATA && !extent->is_host_hole) ||
           (extent->kind == NODE_EXTENT_OPAQUE && !is_compressed);
}

static void count(Shown *s, uint64_t off, uint64_t end)
{
    uint64_t granule = s->room->room.granule_bytes;
    uint64_t first = MAX(off / granule, s->counted_to), last = (end + granule - 1) / granule;
    if (last <= first)
        return;
    s->bytes += (last - first) * granule;
    s->counted_to = last;
}

static void look_at_head(Fiber *self, void *arg)
{
    enum { STEPS_AT_ONCE = 512 }; // then others get their turn
    Shown *s = arg;
    NodeExtent extent;
    uint64_t size = s->head->size_bytes;
    s->may_be_shared = may_be_shared(s);
    unsigned n = 0;
    for (uint64_t off = 0; s->result == 0 && !s->may_be_shared && off < size; off += extent.len) {
        s->result = node_status_of_host(self, s->head, guest_off(off), size - off, &extent);
        if (s->result < 0)
            break;
        if (takes_room(&extent))
            count(s, off, off + extent.len);
        if (++n % STEPS_AT_ONCE == 0)
            s->result = fiber_sleep(self, 0);
    }
}

int disk_space_check_copy(Fiber *self, NamedNode *head, NamedNode *target, uint64_t most,
                          GError **error)
{
    Room room = {.target = target->node, .enough = most};
    if (remote_call_fiber_reserve(self, named_node_loop(target), look_at_target, &room) < 0 ||
        room.result < 0 || room.room.most_bytes >= most)
        return 0;
    Shown shown = {.head = head->node, .room = &room};
    if (remote_call_fiber_reserve(self, named_node_loop(head), look_at_head, &shown) < 0 ||
        shown.result < 0 || shown.may_be_shared)
        return 0;
    uint64_t needed = MIN(shown.bytes, most);
    return needed > room.room.most_bytes
               ? refuse(named_node_file_name(target), needed, room.room.most_bytes, error)
               : 0;
}

// -- fills ----------------------------------------------------------------------------------------

typedef struct Fill {
    Node **layers; // from the lowest on
    unsigned n;
    uint64_t needed, available;
    int result;
} Fill;

static void look_at_layers(Fiber *self, void *arg)
{
    Fill *f = arg;
    Node *head = f->layers[f->n - 1];
    f->available = disk_space_free(self, head);
    if (f->available >= head->size_bytes)
        return;
    g_autofree ChainPlanCost *costs = g_new(ChainPlanCost, f->n);
    f->result = chain_plan(self, f->layers, f->n, costs);
    if (f->result == 0)
        f->needed = costs[f->n - 1].stream_space;
}

int disk_space_check_fill(Fiber *self, Daemon *daemon, const Disk *disk, const DiskLayer *base,
                          GError **error)
{
    FiberMutex *lock = nodes_graph_lock(daemon->nodes);
    NamedNode *head = disk_layer_node(daemon->nodes, disk->head);
    Fill fill = {0};
    for (const DiskLayer *l = disk->head; l != base; l = l->below)
        fill.n++;
    g_autofree Node **layers = fill.layers = g_new(Node *, fill.n);
    fiber_mutex_lock(self, lock);
    unsigned i = fill.n;
    for (const DiskLayer *l = disk->head; l != base; l = l->below)
        layers[--i] = node_instances_get(disk_layer_node(daemon->nodes, l), named_node_loop(head));
    fiber_mutex_unlock(self, lock);
    if (remote_call_fiber_reserve(self, named_node_loop(head), look_at_layers, &fill) < 0 ||
        fill.result < 0)
        return 0;
    return fill.needed > fill.available
               ? refuse(disk->head->file, fill.needed, fill.available, error)
               : 0;
}
