// SPDX-License-Identifier: LGPL-2.1-or-later
// snapshot-access: a node that shows what a copy-before-write node showed when that was made. A
// discard lets go of what has been read: it is not saved any more, and the scratch image gets
// smaller. Nothing else can be changed. On the node's loop.
#include "jobs/node-drivers.h"

#include <errno.h>

#include "chain-core/component.h"
#include "filter-copy-before.h"

static Node *filter_of(const Node *node)
{
    return node->others->pdata[0];
}

static int access_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                             IoBatch *batch)
{
    return filter_copy_before_read(self, filter_of(node), off, buf, len);
}

static int access_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    return filter_copy_before_map(self, filter_of(node), node, off, len, ret_extent);
}

static int access_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                        NodeIoFlags flags)
{
    return -ENOTSUP;
}

static int access_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    return -ENOTSUP;
}

static int access_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    return filter_copy_before_forget(self, filter_of(node), off, len);
}

static const NodeOps access_ops = {
    .driver = "snapshot-access",
    .is_view = true,
    .read_start = access_read_start,
    .write = access_write,
    .zero = access_zero,
    .discard = access_discard,
    .map = access_map,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
};

static int access_make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                       GError **error)
{
    if (!filter_copy_before_is(child)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "'%s' is no copy-before-write node, so it shows only what it shows now",
                    child->name);
        return -EINVAL;
    }
    Node *node = g_new0(Node, 1);
    node_init(node, &access_ops, child->loop, options->name, child->size_bytes);
    node->read_only = !options->is_writable;
    node->preferred_bytes = child->preferred_bytes;
    node_add_child(node, child);
    *ret_node = node;
    return 0;
}

static char *access_exact_name(const json_t *values, const char *below)
{
    return g_strdup(below);
}

static const DriverOption access_options[] = {
    {.name = "file",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "The copy-before-write node whose past is shown: its name, or what to make one of."},
    {0},
};

const Driver snapshot_access_driver = {
    .name = "snapshot-access",
    .options = access_options,
    .is_view = true,
    .stays_as_made = true,
    .make = access_make,
    .exact_name = access_exact_name,
};
