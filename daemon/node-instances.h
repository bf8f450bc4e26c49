// SPDX-License-Identifier: LGPL-2.1-or-later
// Instances: a node that only shows what nobody changes is open once on each loop that uses it, by
// its description, with files of its own. NamedNode.node is the first; the others come with their
// first user on a loop, and go with the last. Control loop, with the graph lock held.
#pragma once

#include "chain-core/map-memory.h"
#include "named-node.h"

typedef struct NodeInstance NodeInstance;

// May it be? It and all below is read-only, and known by a description.
bool node_instances_are_possible(const NamedNode *named);
static inline bool node_instances_exist(const NamedNode *named)
{
    return named->instances && named->instances->len;
}

// Where a loop finds the nodes that are named there: an argument of LayerOptions.find_node.
typedef struct NodeFinder {
    GHashTable *by_name; // NamedNode
    Loop *loop;
    MapMemory *memory;
} NodeFinder;
Node *node_instances_find(void *finder, const char *name);
// The node on that loop, which is there. Borrowed.
Node *node_instances_get(const NamedNode *named, const Loop *loop);
// The node and its instances, by number: node_instances_nth(…, 0), …, NULL at the end. Borrowed.
Node *node_instances_nth(const NamedNode *named, unsigned n);
// Has it there, with all that its description names; at first use it is opened.
int node_instances_open(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error);
// One that has no user left on its loop, taken off the node; NULL: there is none. Where no node
// that is about to use it is still being opened.
NodeInstance *node_instances_take_unused(NamedNode *named);
// The one on the loop that the node itself has come to, for its users to be put over to the node.
NodeInstance *node_instances_take(NamedNode *named, const Loop *loop);
Node *node_instance_node(const NodeInstance *instance);
int node_instance_close(Fiber *self, NodeInstance *instance); // takes it
