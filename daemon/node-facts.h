// SPDX-License-Identifier: LGPL-2.1-or-later
// What control knows of nodes without asking their loops (NodeFacts). Facts are taken on the nodes'
// loop, and put down by control, which may read them at any time.
#pragma once

#include "named-node.h"

// On the node's loop.
void node_facts_take(const Driver *driver, Node *node, NodeFacts *ret_facts);
void node_facts_clear(NodeFacts *facts);

// Nodes of one loop whose facts are taken anew.
typedef struct NodeRefresh {
    GPtrArray *nodes; // NamedNode
    GArray *facts;    // NodeFacts
} NodeRefresh;

void node_refresh_init(NodeRefresh *refresh);
// The node, and what it lies in; not the layers below.
void node_refresh_add(NodeRefresh *refresh, NamedNode *named);
// On the nodes' loop; a RemoteCall function of a NodeRefresh.
void node_refresh_take(Fiber *self, void *refresh);
// Control: puts them down, and frees what the refresh holds.
void node_refresh_end(NodeRefresh *refresh);
