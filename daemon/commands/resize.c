// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands that change the size of an open node, and watch how far it is written. Control loop; the
// work is done on the node's.
#include "resize.h"

#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "daemon/write-threshold.h"

// QEMU's way to name a node: `device` is one's that a guest device has, and here there is none.
static NamedNode *find_node(const Daemon *daemon, const char *device, const char *node_name,
                            GError **error)
{
    NamedNode *named = node_name ? nodes_find(daemon->nodes, node_name) : NULL;
    if (!named)
        qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", device ?: "",
                 node_name ?: "");
    return named;
}

static int out_of_memory(GError **error)
{
    qmp_fail(error, "Out of memory");
    return -ENOMEM;
}

// -- block_resize ---------------------------------------------------------------------------------

static const QmpType block_resize_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, true, "names no node here"},
                                   {"node-name", &qmp_str, true, "the node"},
                                   {"size", &qmp_int, .doc = "its new size in bytes"},
                                   {0}},
};

// A format relies on the length of its file, and an overlay on that of what lies below it. Jobs,
// and overlays that stand on the node itself, come first, as in QEMU.
static int check_resize(Fiber *self, Nodes *nodes, NamedNode *named, GError **error)
{
    NodePerms perms = {.held = NODE_PERM_RESIZE, .shared = NODE_PERM_ALL};
    NodeUse use = {.role = "root", .user = "an unnamed block device", .perms = &perms};
    int r = named_node_check_change(named, NODE_PERM_RESIZE, "another size", error);
    if (r == 0)
        r = named_node_check_no_overlay(named, error);
    if (r == 0)
        r = named_node_check_use(named, &use, error);
    for (const NamedNode *n = named; r == 0 && n; n = named_node_lower(n))
        if (n->driver->keeps_below)
            r = qmp_fail(error,
                         "'%s' cannot get another size, as '%s' keeps what there was: delete that "
                         "first",
                         named->name, n->name);
    return r == 0 ? nodes_make_single(self, nodes, named, error) : r;
}

typedef struct Resize {
    Node *node;
    uint64_t size_bytes;
    int result;
    GError *error;
} Resize;

static void resize_fiber(Fiber *self, void *arg)
{
    Resize *resize = arg;
    resize->result = node_check_idle(resize->node, &resize->error);
    if (resize->result == 0)
        resize->result = node_resize(self, resize->node, resize->size_bytes, &resize->error);
}

// Of a filter above the size has changed, too.
static void refresh_with_users(Fiber *self, NamedNode *named)
{
    nodes_refresh(self, named);
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by)
            refresh_with_users(self, use->by);
    }
}

int qmp_resize_node(Fiber *self, Nodes *nodes, NamedNode *named, uint64_t size_bytes,
                    GError **error)
{
    int r = check_resize(self, nodes, named, error);
    if (r < 0)
        return r;
    Resize resize = {.node = named->node, .size_bytes = size_bytes};
    if (remote_call_fiber(self, named_node_loop(named), resize_fiber, &resize) < 0)
        return out_of_memory(error);
    refresh_with_users(self, named);
    for (NamedNode *n = named_node_lower(named); n; n = named_node_lower(n)) // a raw node's image
        nodes_refresh(self, n);
    if (resize.result < 0)
        g_propagate_error(error, resize.error);
    return resize.result;
}

static int block_resize(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                        GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    int64_t size = qmp_args_int(args, "size", 0);
    fiber_mutex_lock(self, lock);
    NamedNode *named = find_node(call->daemon, qmp_args_str(args, "device"),
                                 qmp_args_str(args, "node-name"), error);
    int r = named ? 0 : -ENODEV;
    if (r == 0 && size < 0)
        r = qmp_fail(error, "Parameter 'size' expects a >0 size");
    if (r == 0)
        r = qmp_resize_node(self, call->daemon->nodes, named, (uint64_t)size, error);
    fiber_mutex_unlock(self, lock);
    return r;
}

// -- block-set-write-threshold --------------------------------------------------------------------

static const QmpType threshold_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node-name", &qmp_str, .doc = "the node"},
                                   {"write-threshold", &qmp_uint64,
                                    .doc = "bytes from the node's start; 0: none"},
                                   {0}},
};

static int block_set_write_threshold(Fiber *self, QmpCall *call, const json_t *args,
                                     json_t **ret_reply, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    const char *name = qmp_args_str(args, "node-name");
    fiber_mutex_lock(self, lock);
    NamedNode *named = nodes_find(call->daemon->nodes, name);
    int r = named ? 0 : qmp_fail(error, "Device '%s' not found", name);
    if (r == 0)
        write_threshold_set(self, named, (uint64_t)qmp_args_int(args, "write-threshold", 0));
    fiber_mutex_unlock(self, lock);
    return r;
}

// -- the family -----------------------------------------------------------------------------------

static const QmpCommand commands[] = {
    {"block_resize", &block_resize_args, NULL,
     "Changes the size of a node and its image or file, also while it is served: clients that "
     "connect from now on see the new size, the others keep the one that they were told. What "
     "comes new reads as zeros; an image with internal snapshots does not shrink, and what an "
     "overlay stands on keeps its size. Of a block device it takes up the size that the device "
     "has.",
     block_resize},
    {"block-set-write-threshold", &threshold_args, NULL,
     "Has an event sent when something is written beyond that offset of a node. For an image on a "
     "block device that grows with it: set on the device's node.",
     block_set_write_threshold},
    {0},
};

static const QmpType threshold_data = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node-name", &qmp_str, .doc = "the node"},
                                   {"amount-exceeded", &qmp_uint64, .doc = "bytes beyond it"},
                                   {"write-threshold", &qmp_uint64, .doc = "where it was"},
                                   {0}},
};

static const QmpEvent events[] = {
    {"BLOCK_WRITE_THRESHOLD", &threshold_data,
     "Something is written beyond the threshold of a node, which then has none any more."},
    {0},
};

const QmpFamily qmp_resize_family = {.title = "Sizes", .commands = commands, .events = events};
