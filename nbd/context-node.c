// SPDX-License-Identifier: LGPL-2.1-or-later
// From node_status_of_host() to flags.
#include "context-node.h"

enum { STATE_HOLE = 1 << 0, STATE_ZERO = 1 << 1 };

typedef struct NodeContext {
    NbdsContext context;
    uint64_t (*flags)(const NodeExtent *extent);
} NodeContext;

// As QEMU: a hole is where no image holds data, so also a zero cluster that keeps its space. Data
// that the host's file does not store is no hole, but zero.
uint64_t nbds_context_allocation_flags(const NodeExtent *extent)
{
    switch (extent->kind) {
    case NODE_EXTENT_BELOW: // unallocated in every layer
    case NODE_EXTENT_ZERO:
    case NODE_EXTENT_ZERO_ALLOCATED:
        return STATE_HOLE | STATE_ZERO;
    case NODE_EXTENT_DATA:
        return extent->is_host_hole ? STATE_ZERO : 0;
    case NODE_EXTENT_OPAQUE:
        break;
    }
    return 0;
}

uint64_t nbds_context_depth_flags(const NodeExtent *extent)
{
    return extent->kind == NODE_EXTENT_BELOW ? 0 : (uint64_t)extent->depth + 1;
}

// False when every list is full.
static bool add_extent(NbdsWalk *walk, const NodeExtent *extent, uint64_t length)
{
    bool is_wanted = false;
    for (unsigned i = 0; i < walk->n; i++) {
        const NodeContext *context = (const NodeContext *)walk->contexts[i];
        is_wanted |= nbds_extent_list_add(&walk->lists[i], length, context->flags(extent));
    }
    return is_wanted;
}

static int walk_node(Fiber *self, Node *node, NbdsWalk *walk)
{
    for (unsigned n = 0; n < NBDS_WALK_STEPS && walk->offset < walk->end; n++) {
        NodeExtent extent;
        uint64_t left = walk->end - walk->offset;
        int result = node_status_of_host(self, node, guest_off(walk->offset), left, &extent);
        if (result < 0)
            return result;
        uint64_t length = MIN(extent.len, left);
        if (!add_extent(walk, &extent, length))
            walk->end = walk->offset;
        else
            walk->offset += length;
    }
    return 0;
}

static const NbdsContextKind node_kind = {.walk = walk_node};

static void add(GPtrArray *contexts, const char *name, uint64_t (*flags)(const NodeExtent *))
{
    NodeContext *c = g_new0(NodeContext, 1);
    c->flags = flags;
    nbds_context_init(&c->context, &node_kind, name, contexts);
}

void nbds_context_node_add(GPtrArray *contexts, const NbdsExportConfig *config)
{
    add(contexts, "base:allocation", nbds_context_allocation_flags);
    if (!config || config->allocation_depth)
        add(contexts, "qemu:allocation-depth", nbds_context_depth_flags);
}
