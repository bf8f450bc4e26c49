// SPDX-License-Identifier: LGPL-2.1-or-later
// Moving a component. In a fiber of the old loop, except attach_all(), which is one step on the new
// loop:
//
//     collect ──▶ park ports ──▶ drain ──▶ detach nodes ──▶ attach nodes, ports ──▶ resume ports
//       │ refused   │ refused                               end the drains
//       ▼           ▼ (those that are parked are resumed)
//
// Once all ports are parked nothing can fail: nobody is inside, and nobody waits to be.
#include "chain-core/component.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/remote-call.h"
#include "node/node-edge.h"

typedef struct Move {
    const ComponentMove *as;
    GPtrArray *nodes, *ports; // of the component
    GHashTable *seen;         // nodes
    Node **stay;              // of each edge: what lay below
    int result;
    GError *error;
} Move;

static bool is_changed(const Move *m, const Node *above)
{
    for (unsigned i = 0; i < m->as->n_edges; i++)
        if (m->as->edges[i].above == above)
            return true;
    return false;
}

static void see(Node *node, void *arg)
{
    Move *m = arg;
    if (g_hash_table_add(m->seen, node))
        g_ptr_array_add(m->nodes, node);
}

static void collect(Move *m)
{
    for (unsigned i = 0; i < m->as->n_nodes; i++)
        see(m->as->nodes[i], m);
    for (guint i = 0; i < m->nodes->len; i++) {
        Node *node = m->nodes->pdata[i];
        if (node->backing && !is_changed(m, node))
            see(node->backing, m);
        for (guint c = 0; node->others && c < node->others->len; c++)
            see(node->others->pdata[c], m);
        for (guint p = 0; p < node->parents->len; p++)
            if (!is_changed(m, node->parents->pdata[p]))
                see(node->parents->pdata[p], m);
        if (node->ops->for_each_sibling)
            node->ops->for_each_sibling(node, see, m);
        for (guint p = 0; p < node->ports->len; p++)
            g_ptr_array_add(m->ports, node->ports->pdata[p]);
    }
}

static const Node *find_fixed(const Move *m)
{
    for (guint i = 0; i < m->nodes->len; i++) {
        const Node *node = m->nodes->pdata[i];
        if (!node->ops->detach || !node->ops->attach)
            return node;
    }
    return NULL;
}

// Whoever waited for the end of such work would keep requests out as long.
static int check_idle(const Move *m, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < m->nodes->len; i++)
        r = node_check_idle(m->nodes->pdata[i], error);
    return r;
}

static int check(Move *m)
{
    const Node *fixed = find_fixed(m);
    if (fixed)
        return error_set(&m->error, -ENOTSUP,
                         "%s cannot be moved to another loop: its driver, %s, stays where it is",
                         fixed->name, fixed->ops->driver);
    if (check_idle(m, &m->error) < 0)
        return -EBUSY;
    for (guint i = 0; i < m->nodes->len; i++) {
        const Node *node = m->nodes->pdata[i];
        if (node_is_drained(node))
            return error_set(&m->error, -EBUSY,
                             "%s cannot be moved to another loop: it is being changed", node->name);
    }
    for (unsigned i = 0; i < m->as->n_edges; i++) {
        const ComponentEdge *e = &m->as->edges[i];
        g_assert(g_hash_table_contains(m->seen, e->above) && e->below->loop == m->as->loop);
        if (g_hash_table_contains(m->seen, e->above->backing))
            return error_set(&m->error, -EBUSY,
                             "%s cannot be left behind by %s, which moves to another loop: others "
                             "that move use it",
                             e->above->backing->name, e->above->name);
    }
    for (guint i = 0; i < m->ports->len; i++) {
        const Port *port = m->ports->pdata[i];
        if (!port->move_ops)
            return error_set(&m->error, -ENOTSUP,
                             "%s cannot be moved to another loop: it is used by %s",
                             port->node->name, port->owner);
    }
    return 0;
}

static guint n_users_in(const Move *m, const Node *node)
{
    guint n = 0;
    for (guint i = 0; i < node->parents->len; i++)
        n += g_hash_table_contains(m->seen, node->parents->pdata[i]);
    return n;
}

static void count_down(GHashTable *n_users, GPtrArray *ordered, Node *node)
{
    guint n = GPOINTER_TO_UINT(g_hash_table_lookup(n_users, node));
    if (n == 1)
        g_ptr_array_add(ordered, node);
    if (n > 0)
        g_hash_table_insert(n_users, node, GUINT_TO_POINTER(n - 1));
}

// Users before what they use: an image that lies in a node may still be writing there by itself.
static void order_from_the_top(Move *m)
{
    g_autoptr(GHashTable) n_users = g_hash_table_new(NULL, NULL);
    GPtrArray *ordered = g_ptr_array_new();
    for (guint i = 0; i < m->nodes->len; i++) {
        guint n = n_users_in(m, m->nodes->pdata[i]);
        g_hash_table_insert(n_users, m->nodes->pdata[i], GUINT_TO_POINTER(n));
        if (n == 0)
            g_ptr_array_add(ordered, m->nodes->pdata[i]);
    }
    for (guint i = 0; i < ordered->len; i++) {
        Node *node = ordered->pdata[i];
        if (node->backing && !is_changed(m, node))
            count_down(n_users, ordered, node->backing);
        for (guint c = 0; node->others && c < node->others->len; c++)
            count_down(n_users, ordered, node->others->pdata[c]);
    }
    g_assert(ordered->len == m->nodes->len);
    g_ptr_array_unref(m->nodes);
    m->nodes = ordered;
}

// Those before `n`.
static void resume_ports(Move *m, guint n)
{
    for (guint i = 0; i < n; i++) {
        Port *port = m->ports->pdata[i];
        port->move_ops->resume(port);
    }
}

static int park_ports(Fiber *self, Move *m)
{
    for (guint i = 0; i < m->ports->len; i++) {
        Port *port = m->ports->pdata[i];
        int r = port->move_ops->park(self, port, &m->error);
        if (r < 0) {
            resume_ports(m, i);
            return r;
        }
    }
    return 0;
}

// Below which nothing of the component lies: their drains reach all of it.
static bool is_lowest(const Move *m, const Node *node)
{
    return !node->others && (!node->backing || is_changed(m, node));
}

static void drain_all(Fiber *self, const Move *m)
{
    for (guint i = 0; i < m->nodes->len; i++)
        if (is_lowest(m, m->nodes->pdata[i]))
            node_drain_begin(self, m->nodes->pdata[i], REQUESTS_ALL);
}

static void detach_nodes(Fiber *self, const Move *m)
{
    for (guint i = 0; i < m->nodes->len; i++) {
        Node *node = m->nodes->pdata[i];
        node->ops->detach(self, node);
    }
}

static void detach_all(Fiber *self, Move *m)
{
    drain_all(self, m);
    detach_nodes(self, m);
    for (unsigned i = 0; i < m->as->n_edges; i++) {
        Node *above = m->as->edges[i].above;
        m->stay[i] = g_steal_pointer(&above->backing);
        if (m->stay[i])
            g_ptr_array_remove_fast(m->stay[i]->parents, above);
    }
}

static void let_in(const Move *m)
{
    for (guint i = 0; i < m->nodes->len; i++)
        if (is_lowest(m, m->nodes->pdata[i]))
            node_drain_end(m->nodes->pdata[i], REQUESTS_ALL);
}

// On the new loop, outside any fiber.
static void attach_all(void *arg)
{
    Move *m = arg;
    for (guint i = 0; i < m->nodes->len; i++) {
        Node *node = m->nodes->pdata[i];
        node->loop = m->as->loop;
        node->ops->attach(node);
    }
    for (unsigned i = 0; i < m->as->n_edges; i++) {
        Node *above = m->as->edges[i].above;
        above->backing = node_ref(m->as->edges[i].below);
        g_ptr_array_add(above->backing->parents, above);
        node_edges_changed(above);
    }
    for (guint i = 0; i < m->ports->len; i++) {
        Port *port = m->ports->pdata[i];
        port->move_ops->attach(port, m->as->loop);
    }
    let_in(m);
}

static void move_fiber(Fiber *self, void *arg)
{
    Move *m = arg;
    collect(m);
    m->result = check(m);
    if (m->result == 0)
        m->result = park_ports(self, m);
    if (m->result < 0)
        return;
    order_from_the_top(m);
    detach_all(self, m);
    remote_call_plain(self, m->as->loop, attach_all, m);
    resume_ports(m, m->ports->len);
    for (unsigned i = 0; i < m->as->n_edges; i++)
        node_unref_close(self, m->stay[i]);
}

int component_move(Fiber *self, const ComponentMove *move, GError **error)
{
    const Node *first = move->nodes[0];
    if (first->loop == move->loop)
        return 0;
    for (unsigned i = 1; i < move->n_nodes; i++)
        g_assert(move->nodes[i]->loop == first->loop);
    Move m = {
        .as = move,
        .nodes = g_ptr_array_new(),
        .ports = g_ptr_array_new(),
        .seen = g_hash_table_new(NULL, NULL),
        .stay = g_new0(Node *, move->n_edges + 1),
    };
    if (remote_call_fiber_reserve(self, first->loop, move_fiber, &m) < 0)
        m.result = error_set(&m.error, -ENOMEM,
                             "%s cannot be moved to another loop: no memory for a fiber's stack",
                             first->name);
    if (m.error)
        g_propagate_error(error, m.error);
    g_ptr_array_unref(m.nodes);
    g_ptr_array_unref(m.ports);
    g_hash_table_unref(m.seen);
    g_free(m.stay);
    return m.result;
}

// -- a component that stands still ----------------------------------------------------------------

struct ComponentStill {
    Move move;
    ComponentMove as;
    Node *node; // a reference
    uint64_t size_bytes;
    GPtrArray *drained; // those whose drains are to be ended
};

static ComponentStill *still_new(Node *node)
{
    ComponentStill *still = g_new0(ComponentStill, 1);
    still->node = node_ref(node);
    still->size_bytes = node->size_bytes;
    still->as = (ComponentMove){.nodes = &still->node, .n_nodes = 1, .loop = node->loop};
    still->move = (Move){
        .as = &still->as,
        .nodes = g_ptr_array_new(),
        .ports = g_ptr_array_new(),
        .seen = g_hash_table_new(NULL, NULL),
    };
    collect(&still->move);
    return still;
}

static void still_free(ComponentStill *still)
{
    g_ptr_array_unref(still->move.nodes);
    g_ptr_array_unref(still->move.ports);
    g_hash_table_unref(still->move.seen);
    g_free(still);
}

// Of a job: it works beside requests, too, and puts filters in. It stays where it is.
static const Port *find_job(const Move *m)
{
    for (guint i = 0; i < m->ports->len; i++) {
        const Port *port = m->ports->pdata[i];
        if (port->is_background && !port->move_ops)
            return port;
    }
    return NULL;
}

static int check_still(const ComponentStill *still, GError **error)
{
    const Node *node = still->node, *fixed = find_fixed(&still->move);
    const Port *job = find_job(&still->move);
    if (job)
        return error_set(
            error, -EBUSY,
            "%s cannot be changed while a job (%s) is at work on %s: wait for its end, "
            "or cancel it",
            node->name, job->owner, job->node->name);
    if (fixed)
        return error_set(error, -ENOTSUP,
                         "%s cannot be changed while it is in use: the driver of %s, %s, does "
                         "not stop",
                         node->name, fixed->name, fixed->ops->driver);
    return check_idle(&still->move, error);
}

int component_check_still(Node *node, GError **error)
{
    ComponentStill *still = still_new(node);
    int r = check_still(still, error);
    still->node->n_refs--;
    still_free(still);
    return r;
}

static void still_drain(Fiber *self, ComponentStill *still, Node *node)
{
    node_drain_begin(self, node, REQUESTS_ALL);
    g_ptr_array_add(still->drained, node_ref(node));
}

static Node *find_drained(const Move *m)
{
    for (guint i = 0; i < m->nodes->len; i++)
        if (node_is_drained(m->nodes->pdata[i]))
            return m->nodes->pdata[i];
    return NULL;
}

// Whoever keeps requests out may change the graph.
static ComponentStill *collect_undrained(Fiber *self, Node *node)
{
    for (;;) {
        ComponentStill *still = still_new(node);
        Node *drained = find_drained(&still->move);
        if (!drained)
            return still;
        node_ref(drained);
        still->node->n_refs--;
        still_free(still);
        node_wait_undrained(self, drained);
        node_unref_close(self, drained);
    }
}

ComponentStill *component_still_begin(Fiber *self, Node *node)
{
    node_flush(self, node); // ahead, so that the drain is short
    ComponentStill *still = collect_undrained(self, node);
    Move *m = &still->move;
    still->drained = g_ptr_array_new();
    still_drain(self, still, node); // whatever becomes of what lies below it
    for (guint i = 0; i < m->nodes->len; i++)
        if (is_lowest(m, m->nodes->pdata[i]))
            still_drain(self, still, m->nodes->pdata[i]);
    node_flush(self, node); // a failure sticks to the file
    order_from_the_top(m);
    detach_nodes(self, m);
    return still;
}

static void still_attach(const ComponentStill *still)
{
    for (guint i = 0; i < still->move.nodes->len; i++) {
        Node *node = still->move.nodes->pdata[i];
        node->ops->attach(node);
    }
    if (still->node->size_bytes != still->size_bytes)
        node_size_changed(still->node);
    else
        node_edges_changed(still->node);
}

void component_still_end(Fiber *self, ComponentStill *still)
{
    still_attach(still);
    for (guint i = 0; i < still->drained->len; i++)
        node_drain_end(still->drained->pdata[i], REQUESTS_ALL);
    for (guint i = 0; i < still->drained->len; i++)
        node_unref_close(self, still->drained->pdata[i]);
    g_ptr_array_unref(still->drained);
    node_unref_close(self, still->node);
    still_free(still);
}

void component_detach_nothing(Fiber *self, Node *node)
{
}

void component_attach_nothing(Node *node)
{
}
