// SPDX-License-Identifier: LGPL-2.1-or-later
// The filter that does nothing: each request goes on to the backing child. Filters of jobs begin as
// a copy of it, and the tests of insertion and removal use it. On the node's loop.
#include "chain-core/port.h"

static int pass_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                           IoBatch *batch)
{
    return node_read_start(self, node->backing, off, buf, len, batch);
}

static int pass_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    return node_write(self, node->backing, off, buf, len, flags);
}

static int pass_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    return node_zero(self, node->backing, off, len, flags);
}

static int pass_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    return node_discard(self, node->backing, off, len, flags);
}

static int pass_flush(Fiber *self, Node *node)
{
    return node_flush(self, node->backing);
}

static const NodeOps pass_ops = {
    .driver = "pass",
    .is_filter = true,
    .read_start = pass_read_start,
    .write = pass_write,
    .zero = pass_zero,
    .discard = pass_discard,
    .flush = pass_flush,
};

Node *pass_filter_new(Loop *loop, const char *name, uint64_t size_bytes)
{
    Node *node = g_new0(Node, 1);
    node_init(node, &pass_ops, loop, name, size_bytes);
    return node;
}
