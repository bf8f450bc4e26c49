// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's nodes by name: which name stands for which chain, and on which loop that lives. What
// opening did to an image, and what happens to its files later, is logged here, once. The table is
// the main thread's; a node's insides are its loop's.
#pragma once

#include <glib.h>

#include "chain-core/map-memory.h"
#include "chain-core/node.h"
#include "loops.h"

typedef struct Nodes Nodes;
typedef struct NamedNode NamedNode;

// `loops` and `memory` are borrowed and outlive the table.
Nodes *nodes_new(const Loops *loops, MapMemory *memory);
// When every node is closed and the loops have stopped. Accepts NULL.
void nodes_free(Nodes *nodes);

// What to open. Strings are borrowed for the call.
typedef struct NodeSpec {
    const char *name;  // unique; NULL: one is made up
    const char *label; // what the user calls it, for the log
    const char *file;  // a path or a json: name
    const char *format, *snapshot;
    bool read_only, direct, force_share;
} NodeSpec;

// Opens a chain on the next loop in turn, and logs what that did. NULL with a sentence that names
// the file. Waits for the loop: never from one.
NamedNode *nodes_open(Nodes *nodes, const NodeSpec *spec, GError **error);
// NULL: there is none of that name.
NamedNode *nodes_find(const Nodes *nodes, const char *name);

const char *named_node_name(const NamedNode *named);
Loop *named_node_loop(const NamedNode *named);
// "20 GiB qcow2, 4 layers, head, read-only"
const char *named_node_summary(const NamedNode *named);
// An image of it turned out to be corrupt. On its loop, or when that has ended its work on it.
bool named_node_is_corrupt(const NamedNode *named);

// On its loop. Borrowed until named_node_close().
Node *named_node_get(const NamedNode *named);
// On its loop, once no request is in flight: flushes what was written, and drops the table's
// reference. The result of the flush. `named` itself stays until nodes_free().
int named_node_close(Fiber *self, NamedNode *named);
