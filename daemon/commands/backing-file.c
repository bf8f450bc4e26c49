// SPDX-License-Identifier: LGPL-2.1-or-later
// change-backing-file. The graph stays as it is: only the header changes, of an image that is
// writable for as long as it takes. Control loop, with the graph lock held.
#include "backing-file.h"

#include <errno.h>

#include "chain-core/port.h"
#include "chain-core/qcow2.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"

static const QmpType change_backing_file_args = {
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"device", &qmp_str, .doc = "the top node of the chain"},
            {"image-node-name", &qmp_str, .doc = "the node whose image is changed"},
            {"backing-file", &qmp_str, .doc = "what its header is to name, as it stands"},
            {0}},
};

typedef struct Recording {
    Node *node;
    const char *name, *format;
    int result;
    GError *error;
} Recording;

static int set_writable(Fiber *self, Node *node, bool is_writable, GError **error)
{
    node_drain_begin(self, node, REQUESTS_ALL);
    int r = node_set_writable(self, node, is_writable, error);
    node_drain_end(node, REQUESTS_ALL);
    return r;
}

static void record(Fiber *self, void *arg)
{
    Recording *r = arg;
    bool was_read_only = r->node->read_only;
    if (was_read_only)
        r->result = set_writable(self, r->node, true, &r->error);
    if (r->result < 0)
        return;
    r->result = qcow2_set_backing_name(self, r->node, r->name, r->format, &r->error);
    if (!was_read_only)
        return;
    int restored = set_writable(self, r->node, false, r->error ? NULL : &r->error);
    if (r->result == 0)
        r->result = restored;
}

static bool is_in_chain(const NamedNode *wanted, const NamedNode *top)
{
    for (; top; top = named_node_child(top, top->driver->make ? "file" : "backing")) {
        if (top == wanted)
            return true;
    }
    return false;
}

static int change(Fiber *self, Nodes *nodes, const json_t *args, GError **error)
{
    const char *device = qmp_args_str(args, "device");
    const char *name = qmp_args_str(args, "backing-file");
    NamedNode *top = nodes_find(nodes, device);
    if (!top)
        return qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", device, device);
    if (named_node_check_root(top, error) < 0)
        return -EINVAL;
    NamedNode *image = nodes_get(nodes, qmp_args_str(args, "image-node-name"), error);
    if (!image)
        return -ENODEV;
    const NamedNode *backing = named_node_child(image, "backing");
    if (!backing)
        return qmp_fail(error, "not allowing backing file change on an image without a backing "
                               "file");
    if (!is_in_chain(image, top))
        return qmp_fail(error, "'%s' and image file are not in the same chain", device);
    if (named_node_check_active(image, error) < 0 ||
        named_node_check_change(image, NODE_PERM_BACKING, "another name there", error) < 0 ||
        nodes_make_single(self, nodes, image, error) < 0)
        return -EBUSY;
    Recording r = {.node = image->node, .name = name, .format = backing->driver->name};
    if (remote_call_fiber_reserve(self, named_node_loop(image), record, &r) < 0)
        return qmp_fail(error, "no memory for a fiber's stack");
    nodes_refresh(self, image);
    if (r.error)
        g_propagate_error(error, r.error);
    return r.result;
}

static int change_backing_file(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                               GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    int r = change(self, nodes, args, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    return r;
}

static const QmpCommand commands[] = {
    {"change-backing-file", &change_backing_file_args, NULL,
     "Records another name of the backing file in an image's header, with the format of the node "
     "that lies below it. What is open stays as it is.",
     change_backing_file},
    {0},
};

const QmpFamily qmp_backing_file_family = {.title = "Names of backing files", .commands = commands};
