// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening a chain: from a file name, or from the description of a node, to the top node of its
// graph, with every layer below opened, locked and joined by the merged map. On the calling fiber's
// loop.
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

// One of the nodes that were opened together: layers, filters, and the files they lie in.
typedef struct ChainNode {
    Node *node; // a reference
    const Driver *driver;
    const NodeConfig *config; // what it was made of; NULL: only an image's header speaks of it
    NodeConfig *own_config;   // the same, where that was made up from a header; owned
    unsigned parent;          // whose child it is, as an index; the top, 0, is nobody's
    const char *role;         // as which child: "file", "backing", …
} ChainNode;
void chain_nodes_close(Fiber *self, GArray *nodes);

// The same for any kind of node that `config` describes, which outlives the call: the top and all
// that was opened for it, parents first, as an array of ChainNode. Nodes that the config names are
// used and not in the array. Returned owned: chain_nodes_close(), or take what is in it.
int chain_open_nodes(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                     GArray **ret_nodes, GError **error);

// Makes `below` (NULL: nothing) the backing layer of `overlay`, with a merged map between them that
// answers for all that lies below. Takes new references. Drained, if requests can reach `overlay`.
void chain_set_backing(Fiber *self, Node *overlay, Node *below, MapMemory *memory);
// The node that goes between an overlay and `below` for that, for those who put it in by themselves
// (component.h). Returned owned.
Node *chain_below_new(Fiber *self, Node *below, MapMemory *memory);
// Has no other program changed a layer of the chain, from `top` (also if it is none) down, that
// nobody may write? -ESTALE with a sentence: nothing may be built on it. Nobody else closes `top`
// meanwhile.
int chain_check_unchanged(Fiber *self, Node *top, GError **error);
// The next layer or filter below `node`, merged maps skipped; NULL at the base. Borrowed.
Node *chain_backing(const Node *node);
