// SPDX-License-Identifier: LGPL-2.1-or-later
// Admission of requests, drains, and the changes to the graph that need one. On the nodes' loop.
//
// One rule holds whenever nobody runs between two lines of this file: a port's n_drains is its own
// n_holds plus n_drains of each node below it. Every changed edge recounts it, so that drains nest
// and may begin and end around any change of the graph.
#include "chain-core/port.h"

#include "node/node-edge.h"

static void update_port(Port *port)
{
    bool was_drained = port->n_drains > 0;
    port->n_drains = port->n_holds;
    for (const Node *n = port->node; n; n = n->backing)
        port->n_drains += n->n_drains;
    if (was_drained && port->n_drains == 0)
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
    *port = (Port){.node = node_ref(node), .owner = owner};
    g_ptr_array_add(node->ports, port);
    update_port(port);
}

void port_done(Fiber *self, Port *port)
{
    g_assert(port->n_in_flight == 0 && fiber_queue_is_empty(&port->waiting));
    Node *node = port->node;
    port->node = NULL;
    g_ptr_array_remove_fast(node->ports, port);
    node_unref_close(self, node);
}

Node *port_enter_slow(Fiber *self, Port *port)
{
    while (port->n_drains)
        fiber_queue_wait(self, &port->waiting, false, "port: drained");
    port->n_in_flight++;
    return port->node;
}

void port_wake_drainers(Port *port)
{
    fiber_queue_wake_all(&port->drainers);
}

static void find_busy_port(Node *node, void *arg)
{
    Port **busy = arg;
    for (guint i = 0; i < node->ports->len && !*busy; i++) {
        Port *port = node->ports->pdata[i];
        if (port->n_in_flight)
            *busy = port;
    }
}

// Looks again from the start after each wait: ports may have come and gone meanwhile.
void node_drain_begin(Fiber *self, Node *node)
{
    node->n_drains++;
    node_update_ports_above(node);
    for (;;) {
        Port *busy = NULL;
        node_for_each_above(node, find_busy_port, &busy);
        if (!busy)
            return;
        fiber_queue_wait(self, &busy->drainers, false, "drain");
    }
}

void node_drain_end(Fiber *self, Node *node)
{
    g_assert(node->n_drains > 0);
    node->n_drains--;
    node_update_ports_above(node);
}

static void assert_idle(Node *node, void *arg)
{
    for (guint i = 0; i < node->ports->len; i++)
        g_assert(((Port *)node->ports->pdata[i])->n_in_flight == 0);
}

// Moves all parents but `except`, and all ports, with the references they hold. `from` must be kept
// alive by the caller.
static void move_users(Node *from, Node *to, Node *except)
{
    for (guint i = from->parents->len; i-- > 0;) {
        Node *parent = from->parents->pdata[i];
        if (parent == except)
            continue;
        g_ptr_array_remove_index_fast(from->parents, i);
        parent->backing = to;
        g_ptr_array_add(to->parents, parent);
        to->n_refs++;
        from->n_refs--;
    }
    while (from->ports->len) {
        Port *port = g_ptr_array_steal_index_fast(from->ports, from->ports->len - 1);
        port->node = to;
        g_ptr_array_add(to->ports, port);
        to->n_refs++;
        from->n_refs--;
    }
}

void node_insert_filter(Fiber *self, Node *node, Node *filter)
{
    g_assert(filter->ops->is_filter && !filter->backing && filter->loop == node->loop);
    g_assert(filter->size_bytes == node->size_bytes);
    node_drain_begin(self, node);
    node_for_each_above(node, assert_idle, NULL);
    filter->read_only = node->read_only;
    filter->preferred_bytes = node->preferred_bytes;
    filter->backing = node_ref(node);
    g_ptr_array_add(node->parents, filter);
    move_users(node, filter, filter);
    node_edges_changed(node);
    node_drain_end(self, node);
}

void node_remove_filter(Fiber *self, Node *filter)
{
    Node *node = filter->backing;
    g_assert(filter->ops->is_filter && node);
    node_drain_begin(self, node);
    node_for_each_above(node, assert_idle, NULL);
    node_ref(filter);
    move_users(filter, node, NULL);
    g_ptr_array_remove_fast(node->parents, filter);
    filter->backing = NULL;
    node_edges_changed(node);
    node_drain_end(self, node);
    node_unref_close(self, node);
    node_unref_close(self, filter);
}

void port_replace(Fiber *self, Port *port, Node *node)
{
    g_assert(node->loop == port->node->loop);
    port->n_holds++;
    update_port(port);
    while (port->n_in_flight)
        fiber_queue_wait(self, &port->drainers, false, "port: replace");
    Node *old = port->node;
    port->node = node_ref(node);
    g_ptr_array_remove_fast(old->ports, port);
    g_ptr_array_add(node->ports, port);
    port->n_holds--;
    update_port(port);
    node_unref_close(self, old);
}
