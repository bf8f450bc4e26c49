// SPDX-License-Identifier: LGPL-2.1-or-later
// A component: all nodes that edges join, whatever else they share (the views of an image), and the
// ports on them. It lives on one loop, and goes to another as one thing: who enters through its
// ports is parked at a request boundary, it is drained, what belongs to the loop is let go of, and
// taken up again on the other one. Nothing is written, nothing that is cached is lost.
#pragma once

#include "chain-core/port.h"

// An edge that the move changes: `above`, of the component, gets `below` as its backing child,
// which is on the new loop already and outlives the move; what lay below it stays where it is. For
// layers that have an instance on each loop.
typedef struct ComponentEdge {
    Node *above, *below;
} ComponentEdge;

// What moves, and where: all that edges join to one of `nodes`, which live on one loop. Several
// where they share what the graph does not show: a file.
typedef struct ComponentMove {
    Node *const *nodes;
    unsigned n_nodes; // at least one
    Loop *loop;
    const ComponentEdge *edges;
    unsigned n_edges;
} ComponentMove;

// From a fiber of any loop, while nobody else changes the graph. 0 (also when it lives there
// already), or negative with a sentence, and nothing has changed: -EBUSY when somebody cannot be
// parked, or a node is at work by itself (node_check_idle()), -ENOTSUP when a driver or a port's
// owner cannot be moved.
int component_move(Fiber *self, const ComponentMove *move, GError **error);

// The component of `node`, quiesced: nothing is under way in it. On its loop, for a change of what
// a driver takes for granted while it is open. Requests are kept out, and drivers have ended what
// they do by themselves.
typedef struct ComponentStill ComponentStill;
// Can it be? With a sentence: -ENOTSUP where a driver cannot stop, -EBUSY where a job, or a node by
// itself, is at work. Memory only.
int component_check_still(Node *node, GError **error);
// Once nobody else keeps requests out. The caller has asked, and the graph has not changed since.
// What was written to `node` is flushed before, as far as it can be.
ComponentStill *component_still_begin(Fiber *self, Node *node);
// Everything goes on; before requests do, all above `node` hears that it is another one, or has
// another size.
void component_still_end(Fiber *self, ComponentStill *still);

// For NodeOps of nodes that keep nothing of their loop.
void component_detach_nothing(Fiber *self, Node *node);
void component_attach_nothing(Node *node);
