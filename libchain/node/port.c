// SPDX-License-Identifier: LGPL-2.1-or-later
// Admission of requests, and drains. On the nodes' loop.
//
// One rule holds whenever nobody runs between two lines of this file: a kind of request is stopped
// at a port exactly when the port itself is held for it, or a node below it is drained of it. Every
// changed edge counts it again, so that drains nest and may begin and end around any change of the
// graph. A drain first stops, in one step, and then waits for requests only; those wait for no
// drain any more, so drains never wait for each other.
#include "chain-core/port.h"

#include <errno.h>

#include "chain-core/mutant.h"
#include "node/node-edge.h"

static RequestMask mask_of(const uint32_t *counts)
{
    RequestMask mask = 0;
    for (unsigned kind = 0; kind < REQUEST_KINDS; kind++)
        mask |= counts[kind] ? 1u << kind : 0;
    return mask;
}

static void count_kinds(uint32_t *counts, RequestMask kinds, int step)
{
    for (unsigned kind = 0; kind < REQUEST_KINDS; kind++) {
        if (!(kinds >> kind & 1))
            continue;
        g_assert(step > 0 || counts[kind] > 0);
        counts[kind] += step;
    }
}

typedef struct Below {
    RequestMask drained;
    bool reads_write;
} Below;

static void look_at(Node *node, void *arg)
{
    Below *below = arg;
    below->drained |= mask_of(node->n_drains);
    below->reads_write |= node->ops->reads_write;
}

static Below look_below(Node *node)
{
    Below below = {0};
    while (node && !node->others) {
        look_at(node, &below);
        node = node->backing;
    }
    if (node)
        node_for_each_below(node, look_at, &below);
    return below;
}

// What has to be stopped and waited for at this port, for `kinds` to be.
static RequestMask kinds_at(const Port *port, RequestMask kinds)
{
    bool is_read_too =
        port->reads_write && kinds & REQUESTS_THAT_WRITE && !MUTANT("reads-that-write-are-drained");
    return is_read_too ? kinds | 1 << REQUEST_READ : kinds;
}

// Those whose kind is still stopped wait again.
static void update_port(Port *port)
{
    RequestMask before = port->stopped;
    Below below = look_below(port->node);
    port->reads_write = below.reads_write;
    port->stopped = kinds_at(port, mask_of(port->n_holds) | below.drained);
    if (before & ~port->stopped)
        fiber_queue_wake_all(&port->waiting);
}

static void update_ports_of(Node *node, void *arg)
{
    for (guint i = 0; i < node->ports->len; i++)
        update_port(node->ports->pdata[i]);
}

void node_update_ports_above(Node *node)
{
    node_for_each_above(node, update_ports_of, NULL);
}

void port_init(Port *port, Node *node, const char *owner)
{
    *port = (Port){
        .node = node_ref(node),
        .owner = owner,
        .perms = node_perms_of(NODE_USER_OUTSIDE, !node->read_only),
    };
    g_ptr_array_add(node->ports, port);
    if (!MUTANT("new-ports-inherit-drains"))
        update_port(port);
}

void port_done(Fiber *self, Port *port)
{
    g_assert(!port_in_flight(port) && fiber_queue_is_empty(&port->waiting));
    Node *node = port->node;
    port->node = NULL;
    g_ptr_array_remove_fast(node->ports, port);
    node_unref_close(self, node);
}

void port_move(Port *port, Node *to)
{
    Node *from = port->node;
    g_ptr_array_remove_fast(from->ports, port);
    g_assert(from->n_refs > 1);
    from->n_refs--;
    port->node = node_ref(to);
    g_ptr_array_add(to->ports, port);
}

RequestMask port_in_flight(const Port *port)
{
    return mask_of(port->n_in_flight);
}

Node *port_enter_slow(Fiber *self, Port *port, RequestKind kind)
{
    while (port->stopped >> kind & 1 && !MUTANT("drained-keeps-out"))
        fiber_queue_wait(self, &port->waiting, false, "port: drained");
    port->n_in_flight[kind]++;
    return port->node;
}

int port_enter_until(Fiber *self, Port *port, RequestKind kind, uint64_t deadline_ns,
                     Node **ret_node)
{
    while (port->stopped >> kind & 1) {
        int r = fiber_queue_wait_until(self, &port->waiting, deadline_ns, "port: drained");
        if (r < 0)
            return r;
    }
    port->n_in_flight[kind]++;
    *ret_node = port->node;
    return 0;
}

void port_wake_drainers(Port *port)
{
    fiber_queue_wake_all(&port->drainers);
}

static void add_load(Node *node, void *arg)
{
    PortLoad *load = arg;
    for (guint i = 0; i < node->ports->len; i++) {
        const Port *port = node->ports->pdata[i];
        for (unsigned kind = 0; kind < REQUEST_KINDS && !port->is_background; kind++)
            load->n_in_flight += port->n_in_flight[kind];
        load->n_ended += port->is_background ? 0 : port->n_ended;
    }
}

PortLoad port_load_above(Node *node)
{
    PortLoad load = {0};
    node_for_each_above(node, add_load, &load);
    return load;
}

// -- drains ---------------------------------------------------------------------------------------

static void tell_drained(Node *node, void *arg)
{
    const Port *held = arg;
    if (node->ops->drained)
        node->ops->drained(node, look_below(node).drained || (held && mask_of(held->n_holds)));
}

void node_add_drain(Node *node, RequestMask kinds)
{
    count_kinds(node->n_drains, kinds, 1);
    node_update_ports_above(node);
    node_for_each_above(node, tell_drained, NULL);
}

void node_remove_drain(Node *node, RequestMask kinds)
{
    count_kinds(node->n_drains, kinds, -1);
    if (!node_is_drained(node))
        fiber_queue_wake_all(&node->undrained);
    node_update_ports_above(node);
    node_for_each_above(node, tell_drained, NULL);
}

bool node_is_drained(const Node *node)
{
    return mask_of(node->n_drains);
}

void node_wait_undrained(Fiber *self, Node *node)
{
    if (node_is_drained(node))
        fiber_queue_wait(self, &node->undrained, false, "drained by others");
}

void port_add_hold(Port *port, RequestMask kinds)
{
    count_kinds(port->n_holds, kinds, 1);
    update_port(port);
    node_for_each_below(port->node, tell_drained, port);
}

void port_remove_hold(Port *port, RequestMask kinds)
{
    count_kinds(port->n_holds, kinds, -1);
    update_port(port);
    node_for_each_below(port->node, tell_drained, port);
}

// Once. The port may be gone then.
static int wait_at(Fiber *self, Port *port, const uint64_t *deadline_ns)
{
    return deadline_ns ? fiber_queue_wait_until(self, &port->drainers, *deadline_ns, "drain")
                       : fiber_queue_wait(self, &port->drainers, false, "drain");
}

int port_wait_drained(Fiber *self, Port *port, RequestMask kinds, const uint64_t *deadline_ns)
{
    int r = 0;
    while (r == 0 && port_in_flight(port) & kinds_at(port, kinds))
        r = wait_at(self, port, deadline_ns);
    return r;
}

typedef struct BusySearch {
    RequestMask kinds;
    Port *busy;
} BusySearch;

static void find_busy_port(Node *node, void *arg)
{
    BusySearch *search = arg;
    for (guint i = 0; i < node->ports->len && !search->busy; i++) {
        Port *port = node->ports->pdata[i];
        if (port_in_flight(port) & kinds_at(port, search->kinds) &&
            !MUTANT("drain-waits-for-requests"))
            search->busy = port;
    }
}

// Looks again from the start after each wait: ports may have come and gone meanwhile.
int node_wait_drained(Fiber *self, Node *node, RequestMask kinds, const uint64_t *deadline_ns)
{
    for (;;) {
        BusySearch search = {.kinds = kinds};
        node_for_each_above(node, find_busy_port, &search);
        if (!search.busy)
            return 0;
        int r = wait_at(self, search.busy, deadline_ns);
        if (r < 0)
            return r;
    }
}

void node_drain_begin(Fiber *self, Node *node, RequestMask kinds)
{
    node_add_drain(node, kinds);
    node_wait_drained(self, node, kinds, NULL);
}

void node_drain_start(Node *node, RequestMask kinds)
{
    node_add_drain(node, kinds);
}

int node_drain_wait(Fiber *self, Node *node, RequestMask kinds, uint64_t deadline_ns)
{
    return node_wait_drained(self, node, kinds, &deadline_ns);
}

int node_drain_begin_until(Fiber *self, Node *node, RequestMask kinds, uint64_t deadline_ns)
{
    node_drain_start(node, kinds);
    int r = node_drain_wait(self, node, kinds, deadline_ns);
    if (r < 0)
        node_drain_end(node, kinds);
    return r;
}

int drain_in_tries(Fiber *self, DrainTryFn *try_drain, void *arg, uint64_t deadline_ns)
{
    static const uint64_t first_try_ns = 10000000; // what a guest is to notice of a change at most
    Loop *loop = fiber_loop(self);
    for (uint64_t try_ns = first_try_ns;; try_ns *= 2) {
        int r = try_drain(self, arg, MIN(loop_now_ns(loop) + try_ns, deadline_ns));
        if (r != -ETIMEDOUT || loop_now_ns(loop) >= deadline_ns)
            return r;
        r = fiber_sleep(self, MIN(try_ns, deadline_ns - loop_now_ns(loop)));
        if (r < 0)
            return r;
    }
}

void node_drain_end(Node *node, RequestMask kinds)
{
    node_remove_drain(node, kinds);
}
