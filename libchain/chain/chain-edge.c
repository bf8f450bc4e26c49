// SPDX-License-Identifier: LGPL-2.1-or-later
// The edge between an overlay and its backing layer: always with a merged map on it (merged-map.h
// has the picture). On the chain's loop.
#include "chain-core/chain.h"
#include "chain/merged-map.h"

Node *chain_below_new(Fiber *self, Node *below, MapMemory *memory)
{
    return merged_map_new(self, below, memory);
}

void chain_set_backing(Fiber *self, Node *overlay, Node *below, MapMemory *memory)
{
    Node *merged = below ? chain_below_new(self, below, memory) : NULL;
    node_set_backing(self, overlay, merged);
    node_unref_close(self, merged);
}

// The graph may change whenever it waits, so the next one is held.
int chain_check_unchanged(Fiber *self, Node *top, GError **error)
{
    int r = 0;
    for (Node *node = node_ref(top), *next; node; node = next) {
        if (r == 0)
            r = node_check_unchanged(self, node, error);
        next = r == 0 ? chain_backing(node) : NULL;
        if (next)
            node_ref(next);
        node_unref_close(self, node);
    }
    return r;
}

Node *chain_backing(const Node *node)
{
    Node *below = node->backing;
    while (below && below->ops->covers_below)
        below = below->backing;
    return below;
}
