// SPDX-License-Identifier: LGPL-2.1-or-later
// What node.c, port.c and switch.c know together: walks over the graph, edges, and what follows a
// changed one. On the nodes' loop; only what takes a fiber suspends.
#pragma once

#include "chain-core/port.h"

// What was written ends at `end`: the node, and filters above it, do not end before. -ENOMEM: its
// dirty bitmaps cannot follow, and it ends where it did.
int node_note_end(Node *node, uint64_t end);

// Visits `node` and every node from which it can be reached, each once. `fn` changes no edge.
void node_for_each_above(Node *node, NodeVisitFn *fn, void *arg);
// The same for `node` and every node that can be reached from it.
void node_for_each_below(Node *node, NodeVisitFn *fn, void *arg);

// node_unlock_writing() of what `node`, which is not written any more, lies in.
void node_unlock_writing_below(Fiber *self, Node *node);

// Whatever was kept of its content as it was belongs to another identity from now on.
void node_begin_generation(Node *node);

// Makes `backing` (NULL: nothing; takes a new reference) the backing child, and returns the
// reference on the old one. Tells nobody: node_edges_changed().
Node *node_exchange_backing(Node *node, Node *backing);
// Makes the edge from `parent` to `from` (its backing child, or another) one to `to`, with the
// reference; `from` is kept alive by the caller. Tells nobody.
void node_move_edge(Node *parent, Node *from, Node *to);

// Moves a port with the reference it holds; its old node is kept alive by the caller. Tells nobody.
void port_move(Port *port, Node *to);
// What kinds are in flight there.
RequestMask port_in_flight(const Port *port);

// An edge at or below `node`, or its mode, changed: tells the drivers above and recounts their
// ports' drains.
void node_edges_changed(Node *node);
// Sets what is stopped at each port above `node` to what is drained below it now; lets in requests
// that are no longer.
void node_update_ports_above(Node *node);

// Stops `kinds` there, in one step with whatever else is stopped before anybody suspends, or lets
// them in again.
void node_add_drain(Node *node, RequestMask kinds);
void node_remove_drain(Node *node, RequestMask kinds);
void port_add_hold(Port *port, RequestMask kinds);
void port_remove_hold(Port *port, RequestMask kinds);
bool node_is_drained(const Node *node); // of anything
// Until it is not, were it only for a moment. The caller has a reference, and looks again.
void node_wait_undrained(Fiber *self, Node *node);
// Waits until nothing of `kinds`, stopped before, is in flight at the ports above `node`, or at
// this port. With a deadline (UINT64_MAX: none) it can be cancelled, too: 0, -ECANCELED,
// -ETIMEDOUT; the drain or hold stays. NULL: as long as it takes.
int node_wait_drained(Fiber *self, Node *node, RequestMask kinds, const uint64_t *deadline_ns);
int port_wait_drained(Fiber *self, Port *port, RequestMask kinds, const uint64_t *deadline_ns);

// Drains in tries, as switch_drain_in_tries() says. `try_drain` keeps requests out and returns 0
// once that is done, or lets them in again: -ETIMEDOUT at the deadline, or another error.
typedef int DrainTryFn(Fiber *self, void *arg, uint64_t deadline_ns);
int drain_in_tries(Fiber *self, DrainTryFn *try_drain, void *arg, uint64_t deadline_ns);
