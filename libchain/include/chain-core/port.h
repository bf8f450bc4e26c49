// SPDX-License-Identifier: LGPL-2.1-or-later
// A port is where requests enter the graph: an export's or a job's attachment to a node. It counts
// requests in flight by kind, stops admission of the kinds that are drained, and can be moved to
// another node. On the node's loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/node-perm.h"
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
    Node *node;          // current target; valid between port_enter() and port_leave()
    RequestMask stopped; // kinds not admitted: drained at a node below, or held here
    bool reads_write;    // NodeOps.reads_write of a node below
    bool is_background;  // set after port_init(): a job's, which gives way to guests
    uint32_t n_in_flight[REQUEST_KINDS];
    uint64_t n_ended;                // requests, of any kind
    uint32_t n_holds[REQUEST_KINDS]; // drains of this port alone
    FiberQueue waiting;              // requests kept out
    FiberQueue drainers;
    const char *owner;
    NodePerms perms; // what comes through it may do (node-hold.h): set by port_init(), or after
    void (*resized)(
        Port *port); // set after port_init(): the node's size has changed. NULL: no matter
    const PortMoveOps *move_ops; // set after port_init(); NULL: it cannot be moved
};

// Takes a new reference on `node`. `owner` (a literal or owned elsewhere) is for messages: "export
// 'a'". Its permissions are those of an export that may write what can be written now.
void port_init(Port *port, Node *node, const char *owner);
// Nothing may be in flight. Drops the reference (may close the node: I/O).
void port_done(Fiber *self, Port *port);

// Enter before the request's first disk I/O, leave (with the same kind) after its last completion;
// never held over socket time, nor while waiting for a limit. Enter waits while its kind is drained
// and returns the node to use.
Node *port_enter_slow(Fiber *self, Port *port, RequestKind kind);
void port_wake_drainers(Port *port);
static inline Node *port_enter(Fiber *self, Port *port, RequestKind kind)
{
    if (__builtin_expect(port->stopped >> kind & 1, 0))
        return port_enter_slow(self, port, kind);
    port->n_in_flight[kind]++;
    return port->node;
}
// For a part of a request that is inside another port, above the same nodes: whether the kind is
// drained or not. It may stay longer than that request.
static inline void port_enter_within(Port *port, RequestKind kind)
{
    port->n_in_flight[kind]++;
}

static inline void port_leave(Port *port, RequestKind kind)
{
    port->n_ended++;
    if (--port->n_in_flight[kind] == 0 && __builtin_expect(port->stopped >> kind & 1, 0))
        port_wake_drainers(port);
}
// For those who may give up: 0 (and inside), -ECANCELED once the fiber is cancelled, -ETIMEDOUT
// once loop_now_ns() has reached `deadline_ns` (UINT64_MAX: no limit).
int port_enter_until(Fiber *self, Port *port, RequestKind kind, uint64_t deadline_ns,
                     Node **ret_node);

// What guests do at all ports from which `node` can be reached.
typedef struct PortLoad {
    uint64_t n_in_flight;
    uint64_t n_ended; // so far; less than before where a port has gone
} PortLoad;
PortLoad port_load_above(Node *node);

// Stops admission of `kinds` at every port from which `node` can be reached, through whatever edge,
// and waits until none of them is in flight. Nests. End resumes. Never while holding a port
// entered. Ports and edges that appear below a drain inherit it.
void node_drain_begin(Fiber *self, Node *node, RequestMask kinds);
void node_drain_end(Node *node, RequestMask kinds);
// A drain for a change that somebody asks for gives up after that time: shorter than the time after
// which guests give up their disk (30 s and more).
#define PORT_MAX_STALL_NS UINT64_C(20000000000)
// The two parts of it, for those who have something to do between them: after the first, which does
// not suspend, the node cannot move to another loop. As long as it is begun node_drain_end() ends
// it, also after a wait that gave up (-ETIMEDOUT, -ECANCELED).
void node_drain_start(Node *node, RequestMask kinds);
int node_drain_wait(Fiber *self, Node *node, RequestMask kinds, uint64_t deadline_ns);
// Both for one that may give up, as above; nothing is drained then.
int node_drain_begin_until(Fiber *self, Node *node, RequestMask kinds, uint64_t deadline_ns);
