// SPDX-License-Identifier: LGPL-2.1-or-later
// The memory node. Unallocated blocks hold zeros, so reading is one copy.
#include "memory-node.h"

#include <errno.h>
#include <string.h>

#include "chain-core/component.h"

static int begin(Fiber *self, MemoryNode *m)
{
    while (m->is_held) {
        m->n_waiting++;
        fiber_queue_wait(self, &m->held, false, "test: held");
        m->n_waiting--;
    }
    return m->fail_with;
}

static int read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch)
{
    MemoryNode *m = (MemoryNode *)node;
    m->n_reads++;
    int result = begin(self, m);
    if (result >= 0)
        memcpy(buf, m->data + off.v, len);
    return result;
}

static void set_kind(MemoryNode *m, uint64_t off, uint64_t len, NodeExtentKind kind, bool whole)
{
    uint64_t first = off / MEMORY_NODE_BLOCK;
    uint64_t end = (off + len + MEMORY_NODE_BLOCK - 1) / MEMORY_NODE_BLOCK;
    if (whole) { // only blocks that lie inside, or reach the end of the node
        first = (off + MEMORY_NODE_BLOCK - 1) / MEMORY_NODE_BLOCK;
        if (off + len < m->node.size_bytes)
            end = (off + len) / MEMORY_NODE_BLOCK;
    }
    if (first < end)
        memset(m->kinds + first, kind, end - first);
}

static int write_data(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    MemoryNode *m = (MemoryNode *)node;
    m->n_writes++;
    m->n_fua += !!(flags & NODE_IO_FUA);
    int result = begin(self, m);
    if (result < 0)
        return result;
    memcpy(m->data + off.v, buf, len);
    set_kind(m, off.v, len, NODE_EXTENT_OPAQUE, false);
    return 0;
}

static int zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    MemoryNode *m = (MemoryNode *)node;
    m->n_zeroes++;
    m->n_fua += !!(flags & NODE_IO_FUA);
    int result = begin(self, m);
    if (result < 0)
        return result;
    if (flags & NODE_IO_FAST_ZERO && m->no_fast_zero)
        return -ENOTSUP;
    memset(m->data + off.v, 0, len);
    set_kind(m, off.v, len,
             flags & NODE_IO_NO_UNMAP ? NODE_EXTENT_ZERO_ALLOCATED : NODE_EXTENT_ZERO, true);
    return 0;
}

static int discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    MemoryNode *m = (MemoryNode *)node;
    m->n_discards++;
    m->n_fua += !!(flags & NODE_IO_FUA);
    int result = begin(self, m);
    if (result < 0)
        return result;
    memset(m->data + off.v, 0, len);
    set_kind(m, off.v, len, NODE_EXTENT_BELOW, true);
    return 0;
}

static int flush(Fiber *self, Node *node)
{
    MemoryNode *m = (MemoryNode *)node;
    m->n_flushes++;
    return begin(self, m);
}

static int map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    MemoryNode *m = (MemoryNode *)node;
    m->n_maps++;
    int result = begin(self, m);
    if (result < 0)
        return result;
    uint64_t block = off.v / MEMORY_NODE_BLOCK, end = block + 1;
    while (end * MEMORY_NODE_BLOCK < off.v + len && m->kinds[end] == m->kinds[block])
        end++;
    *ret_extent = (NodeExtent){
        .len = MIN(len, end * MEMORY_NODE_BLOCK - off.v),
        .kind = m->kinds[block],
        .node = node,
    };
    return 0;
}

static void close_node(Fiber *self, Node *node)
{
    MemoryNode *m = (MemoryNode *)node;
    g_free(m->data);
    g_free(m->kinds);
}

static void detach(Fiber *self, Node *node)
{
    g_assert(fiber_queue_is_empty(&((MemoryNode *)node)->held));
}

static const NodeOps memory_ops = {
    .detach = detach,
    .attach = component_attach_nothing,
    .driver = "memory",
    .read_start = read_start,
    .write = write_data,
    .zero = zero,
    .discard = discard,
    .flush = flush,
    .map = map,
    .close = close_node,
};

MemoryNode *memory_node_new(Loop *loop, uint64_t size_bytes)
{
    MemoryNode *m = g_new0(MemoryNode, 1);
    node_init(&m->node, &memory_ops, loop, "memory", size_bytes);
    m->node.preferred_bytes = MEMORY_NODE_BLOCK;
    m->data = g_malloc0(size_bytes + 1);
    m->kinds = g_malloc0(size_bytes / MEMORY_NODE_BLOCK + 1); // BELOW
    return m;
}

void memory_node_hold(MemoryNode *m)
{
    m->is_held = true;
}

void memory_node_release(MemoryNode *m)
{
    m->is_held = false;
    fiber_queue_wake_all(&m->held);
}
