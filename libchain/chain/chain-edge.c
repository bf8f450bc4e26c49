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

Node *chain_backing(const Node *node)
{
    Node *below = node->backing;
    while (below && below->ops->covers_below)
        below = below->backing;
    return below;
}
