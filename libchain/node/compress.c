// SPDX-License-Identifier: LGPL-2.1-or-later
// compress: a filter that compresses whole clusters that are written, where that makes them
// smaller. What is no whole cluster is written as it is; so what a guest writes in small pieces, or
// again, is never lost or refused, and takes the space that it would without the filter. On the
// node's loop, in fibers.
#include <errno.h>

#include "base/error.h"
#include "chain-core/component.h"
#include "chain-core/node-compressed.h"
#include "chain-core/node-drivers.h"

// A first part of it: *ret_len bytes.
static int write_some(Fiber *self, Node *below, GuestOff off, const void *buf, size_t len,
                      uint64_t *ret_len)
{
    CompressedClusters c;
    int r = node_compress(self, below, off, buf, len, &c, ret_len);
    if (r == 0)
        r = c.n ? node_write_compressed(self, below, &c)
                : node_write(self, below, off, buf, *ret_len, 0);
    compressed_clusters_done(&c, fiber_loop(self));
    return r;
}

static int compress_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                          NodeIoFlags flags)
{
    int r = 0;
    for (uint64_t n; r == 0 && len; off.v += n, buf = (const uint8_t *)buf + n, len -= n)
        r = write_some(self, node->backing, off, buf, len, &n);
    return r == 0 && (flags & NODE_IO_FUA) ? node_flush(self, node->backing) : r;
}

static int compress_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    return node_zero(self, node->backing, off, len, flags);
}

static int compress_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    return node_discard(self, node->backing, off, len, flags);
}

static int compress_write_compressed(Fiber *self, Node *node, const CompressedClusters *c)
{
    return node_write_compressed(self, node->backing, c);
}

static const NodeCompressedOps compressed_ops = {.write = compress_write_compressed};

static const NodeOps compress_ops = {
    .driver = "compress",
    .is_filter = true,
    .write = compress_write,
    .zero = compress_zero,
    .discard = compress_discard,
    .compressed = &compressed_ops,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
};

static int compress_make(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                         GError **error)
{
    if (!node_can_compress(child))
        return error_set(error, -ENOTSUP, "Compression is not supported for underlying format: %s",
                         child->ops->driver);
    Node *node = g_new0(Node, 1);
    node_init(node, &compress_ops, child->loop, options->name, child->size_bytes);
    node->read_only = !options->is_writable || child->read_only;
    node->preferred_bytes = child->preferred_bytes;
    node_set_backing(self, node, child);
    *ret_node = node;
    return 0;
}

static const DriverOption compress_options[] = {
    {.name = "file",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "The qcow2 node whose clusters are compressed: its name, or what to make one of."},
    {0},
};

const Driver compress_driver = {
    .name = "compress",
    .options = compress_options,
    .stays_as_made = true,
    .make = compress_make,
};
