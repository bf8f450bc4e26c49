// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening a chain: from a file name to the top node of its graph, with every layer below opened,
// locked and joined by the merged map. On the calling fiber's loop.
#pragma once

#include "chain-core/layer.h"
#include "chain-core/map-memory.h"
#include "chain-core/node.h"

typedef struct ChainInfo {
    unsigned n_layers;      // 1 = no backing
    const char *top_format; // literal
} ChainInfo;

// Opens `path` (or a json: name) and all below; `options` are those of the top, and the same but
// read-only for what lies below. Returns a node with one reference. The error is one sentence:
// file, offset where it applies, reason, remedy. Bound: CHAIN_MAX_LAYERS.
enum { CHAIN_MAX_LAYERS = 1000 };
int chain_open(Fiber *self, const char *path, const LayerOptions *options, Node **ret_node,
               ChainInfo *ret_info, GError **error);

// Makes `below` (NULL: nothing) the backing layer of `overlay`, with a merged map between them that
// answers for all that lies below. Takes new references. Drained, if requests can reach `overlay`.
void chain_set_backing(Fiber *self, Node *overlay, Node *below, MapMemory *memory);
// The node that goes between an overlay and `below` for that, for those who put it in by themselves
// (component.h). Returned owned.
Node *chain_below_new(Fiber *self, Node *below, MapMemory *memory);
// The next layer or filter below `node`, merged maps skipped; NULL at the base. Borrowed.
Node *chain_backing(const Node *node);
