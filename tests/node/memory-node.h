// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: a node whose content is an array, and whose requests give way to other fibers in the
// middle, so that everything that may interleave does. It counts what reaches it.
#pragma once

#include <errno.h>
#include <string.h>

#include "chain-core/node.h"

typedef struct MemoryNode {
    Node node;
    uint8_t *data;
    unsigned n_yields;  // in the middle of each request
    unsigned n_running; // requests inside the driver
    unsigned n_flushes, n_closed;
    int fail_writes; // negative errno, 0: they work
    unsigned *ret_n_closed;
} MemoryNode;

static inline void memory_node_pause(Fiber *self, MemoryNode *m)
{
    m->n_running++;
    for (unsigned i = 0; i < m->n_yields; i++)
        fiber_yield(self);
    m->n_running--;
}

static inline int memory_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                                    IoBatch *batch)
{
    MemoryNode *m = (MemoryNode *)node;
    memory_node_pause(self, m);
    memcpy(buf, m->data + off.v, len);
    return 0;
}

static inline int memory_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                               NodeIoFlags flags)
{
    MemoryNode *m = (MemoryNode *)node;
    memory_node_pause(self, m);
    if (m->fail_writes)
        return m->fail_writes;
    memcpy(m->data + off.v, buf, len);
    return 0;
}

static inline int memory_flush(Fiber *self, Node *node)
{
    ((MemoryNode *)node)->n_flushes++;
    return 0;
}

static inline void memory_close(Fiber *self, Node *node)
{
    MemoryNode *m = (MemoryNode *)node;
    if (m->ret_n_closed)
        ++*m->ret_n_closed;
    g_free(m->data);
}

static const NodeOps memory_ops = {
    .driver = "memory",
    .read_start = memory_read_start,
    .write = memory_write,
    .flush = memory_flush,
    .close = memory_close,
};

static inline MemoryNode *memory_node_new(Loop *loop, uint64_t size_bytes)
{
    MemoryNode *m = g_new0(MemoryNode, 1);
    node_init(&m->node, &memory_ops, loop, "memory", size_bytes);
    m->data = g_malloc0(size_bytes);
    return m;
}
