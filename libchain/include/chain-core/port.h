// SPDX-License-Identifier: LGPL-2.1-or-later
// A port is where requests enter the graph: an export's or a job's attachment to a node. It counts
// requests in flight, stops admission while drained, and can be moved to another node. On the
// node's loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/node.h"

typedef struct Port Port;

// How whoever enters through a port goes to another loop with it (component.h).
typedef struct PortMoveOps {
    // On the port's loop: nobody is inside, or waits to be, when it returns 0, until resume().
    // Negative with a sentence: not within a reasonable time; resume() will not be called.
    int (*park)(Fiber *self, Port *port, GError **error);
    // On the new loop, while it is parked. Does not suspend, and cannot fail.
    void (*attach)(Port *port, Loop *loop);
    // On the loop on which it was parked, whether it was attached to another or not. Likewise.
    void (*resume)(Port *port);
} PortMoveOps;

struct Port {
    Node *node; // current target; valid between port_enter() and port_leave()
    uint32_t n_in_flight;
    uint32_t n_drains;  // >0: admission stopped; drains of nodes below, plus n_holds
    uint32_t n_holds;   // port_replace() under way
    FiberQueue waiting; // requests kept out
    FiberQueue drainers;
    const char *owner;
    const PortMoveOps *move_ops; // set after port_init(); NULL: it cannot be moved
};

// Takes a new reference on `node`. `owner` (a literal or owned elsewhere) is for messages.
void port_init(Port *port, Node *node, const char *owner);
// Nothing may be in flight. Drops the reference (may close the node: I/O).
void port_done(Fiber *self, Port *port);

// Enter before the request's first disk I/O, leave after its last completion; never held over
// socket time. Enter waits while drained and returns the node to use.
Node *port_enter_slow(Fiber *self, Port *port);
void port_wake_drainers(Port *port);
static inline Node *port_enter(Fiber *self, Port *port)
{
    if (__builtin_expect(port->n_drains != 0, 0))
        return port_enter_slow(self, port);
    port->n_in_flight++;
    return port->node;
}
static inline void port_leave(Port *port)
{
    if (--port->n_in_flight == 0 && __builtin_expect(port->n_drains != 0, 0))
        port_wake_drainers(port);
}

// Stops admission at every port from which `node` can be reached and waits until none of their
// requests is in flight. Nests. End resumes. Never while holding a port entered. Ports and edges
// that appear below a drain inherit it.
void node_drain_begin(Fiber *self, Node *node);
void node_drain_end(Fiber *self, Node *node);

// Puts `filter` (whose backing child must be NULL) between `node` and all its parents and ports;
// drains, switches in one step, resumes. The removal is the reverse.
void node_insert_filter(Fiber *self, Node *node, Node *filter);
void node_remove_filter(Fiber *self, Node *filter);
// Moves one port to `node`, drained.
void port_replace(Fiber *self, Port *port, Node *node);
