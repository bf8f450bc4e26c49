// SPDX-License-Identifier: LGPL-2.1-or-later
// What node.c and port.c know together: walks over the graph, and what follows a changed edge. On
// the nodes' loop; none of these suspends.
#pragma once

#include "chain-core/node.h"

// Visits `node` and every node from which it can be reached, each once. `fn` changes no edge.
void node_for_each_above(Node *node, NodeVisitFn *fn, void *arg);

// An edge at or below `node`, or its mode, changed: tells the drivers above and recounts their ports' drains.
void node_edges_changed(Node *node);
// Sets n_drains of each port above `node` to what is drained below it now; lets in requests where
// that became 0.
void node_update_ports_above(Node *node);
