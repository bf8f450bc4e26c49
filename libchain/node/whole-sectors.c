// SPDX-License-Identifier: LGPL-2.1-or-later
// Every request is cut at the end of the node below; what lies after is answered here. On the
// node's loop, in a fiber. Writes nothing of its own.
#include "chain-core/whole-sectors.h"

#include <errno.h>
#include <string.h>

#include "chain-core/component.h"
#include "chain-core/zeros.h"

// How many of the bytes at `off` the node below has.
static uint64_t inside(const Node *node, GuestOff off, uint64_t len)
{
    uint64_t size = node->backing->size_bytes;
    return off.v < size ? MIN(len, size - off.v) : 0;
}

static int read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch)
{
    size_t n = inside(node, off, len);
    memset((uint8_t *)buf + n, 0, len - n);
    return n ? node_read_start(self, node->backing, off, buf, n, batch) : 0;
}

static int flush_if_fua(Fiber *self, Node *node, NodeIoFlags flags)
{
    return flags & NODE_IO_FUA ? node_flush(self, node->backing) : 0;
}

static int write_inside(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                        NodeIoFlags flags)
{
    size_t n = inside(node, off, len);
    if (!bytes_are_zero((const uint8_t *)buf + n, len - n))
        return -ENOSPC;
    return n ? node_write(self, node->backing, off, buf, n, flags)
             : flush_if_fua(self, node, flags);
}

static int zero_inside(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    uint64_t n = inside(node, off, len);
    return n ? node_zero(self, node->backing, off, n, flags) : flush_if_fua(self, node, flags);
}

static int discard_inside(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    uint64_t n = inside(node, off, len);
    return n ? node_discard(self, node->backing, off, n, flags) : flush_if_fua(self, node, flags);
}

static int flush(Fiber *self, Node *node)
{
    return node_flush(self, node->backing);
}

static uint64_t size_over(const Node *below)
{
    return (below->size_bytes + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
}

static const NodeOps ops = {
    .driver = "whole-sectors",
    .is_filter = true,
    .read_start = read_start,
    .write = write_inside,
    .zero = zero_inside,
    .discard = discard_inside,
    .flush = flush,
    .size_over = size_over,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
};

Node *whole_sectors_new(Fiber *self, Node *node)
{
    Node *filter = g_new0(Node, 1);
    node_init(filter, &ops, node->loop, node->name, size_over(node));
    filter->read_only = node->read_only;
    filter->preferred_bytes = node->preferred_bytes;
    node_set_backing(self, filter, node);
    return filter;
}
