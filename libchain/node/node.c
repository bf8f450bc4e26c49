// SPDX-License-Identifier: LGPL-2.1-or-later
// The edges, references and life of nodes. Requests are node-io.c, drains port.c, changes under
// load switch.c. On the nodes' loop; closing does I/O, in a fiber.
#include "chain-core/node.h"

#include <string.h>

#include "chain-core/mutant.h"
#include "node/node-edge.h"

void node_init(Node *node, const NodeOps *ops, Loop *loop, const char *name, uint64_t size_bytes)
{
    memset(node, 0, sizeof *node);
    node->ops = ops;
    node->loop = loop;
    node->name = g_strdup(name);
    node->size_bytes = size_bytes;
    node->preferred_bytes = 4096;
    node->n_refs = 1;
    node->parents = g_ptr_array_new();
    node->ports = g_ptr_array_new();
}

Node *node_ref(Node *node)
{
    g_assert(node->n_refs > 0);
    node->n_refs++;
    return node;
}

static void forget_parent(Node *child, Node *parent)
{
    if (child)
        g_ptr_array_remove_fast(child->parents, parent);
}

static void close_others(Fiber *self, GPtrArray *others)
{
    for (guint i = 0; others && i < others->len; i++)
        node_unref_close(self, others->pdata[i]);
    if (others)
        g_ptr_array_unref(others);
}

// A loop, not a recursion: chains are up to a thousand layers deep and fiber stacks are small.
void node_unref_close(Fiber *self, Node *node)
{
    while (node) {
        g_assert(node->n_refs > 0);
        if (--node->n_refs > 0)
            return;
        g_assert(node->parents->len == 0 && node->ports->len == 0 && !node->holds &&
                 !node_is_drained(node) && fiber_queue_is_empty(&node->undrained));

        // Before anything suspends: who walks up from below must not meet a node that is ending.
        Node *backing = node->backing;
        GPtrArray *others = g_steal_pointer(&node->others);
        forget_parent(backing, node);
        for (guint i = 0; others && i < others->len; i++)
            forget_parent(others->pdata[i], node);
        node_set_write_threshold(node, NULL);
        if (node->ops->close)
            node->ops->close(self, node);
        close_others(self, others);
        g_clear_pointer(&node->bitmaps, g_ptr_array_unref);
        g_assert(!node->write_hooks);
        g_ptr_array_free(node->parents, TRUE);
        g_ptr_array_free(node->ports, TRUE);
        g_free(node->name);
        g_free(node);
        node = backing;
    }
}

// -- walks ----------------------------------------------------------------------------------------

typedef struct Walk {
    GPtrArray *todo;
    GHashTable *seen;
} Walk;

static void walk_to(Walk *walk, Node *node)
{
    if (node && g_hash_table_add(walk->seen, node))
        g_ptr_array_add(walk->todo, node);
}

static void walk_from(Node *node, NodeVisitFn *fn, void *arg, void (*next)(Walk *, Node *))
{
    Walk walk = {g_ptr_array_new(), g_hash_table_new(NULL, NULL)};
    walk_to(&walk, node);
    while (walk.todo->len) {
        Node *n = g_ptr_array_steal_index_fast(walk.todo, walk.todo->len - 1);
        fn(n, arg);
        next(&walk, n);
    }
    g_ptr_array_unref(walk.todo);
    g_hash_table_unref(walk.seen);
}

static void walk_to_parents(Walk *walk, Node *node)
{
    for (guint i = 0; i < node->parents->len; i++)
        walk_to(walk, node->parents->pdata[i]);
}

static void walk_to_children(Walk *walk, Node *node)
{
    walk_to(walk, node->backing);
    for (guint i = 0; node->others && i < node->others->len; i++)
        walk_to(walk, node->others->pdata[i]);
}

void node_for_each_above(Node *node, NodeVisitFn *fn, void *arg)
{
    walk_from(node, fn, arg, walk_to_parents);
}

void node_for_each_below(Node *node, NodeVisitFn *fn, void *arg)
{
    walk_from(node, fn, arg, walk_to_children);
}

// -- edges ----------------------------------------------------------------------------------------

static void notify_below_changed(Node *node, void *arg)
{
    if (node->ops->below_changed)
        node->ops->below_changed(node);
}

void node_edges_changed(Node *node)
{
    if (!MUTANT("maps-hear-of-changes"))
        node_for_each_above(node, notify_below_changed, NULL);
    node_update_ports_above(node);
}

Node *node_exchange_backing(Node *node, Node *backing)
{
    Node *old = node->backing;
    if (backing) {
        g_assert(backing->loop == node->loop);
        g_ptr_array_add(backing->parents, node);
        node_ref(backing);
    }
    node->backing = backing;
    forget_parent(old, node);
    return old;
}

void node_move_edge(Node *parent, Node *from, Node *to)
{
    gpointer *place = (gpointer *)&parent->backing;
    guint i;
    if (parent->backing != from) {
        g_assert(g_ptr_array_find(parent->others, from, &i));
        place = &parent->others->pdata[i];
    }
    *place = node_ref(to);
    g_ptr_array_add(to->parents, parent);
    forget_parent(from, parent);
    g_assert(from->n_refs > 1);
    from->n_refs--;
}

void node_set_backing(Fiber *self, Node *node, Node *backing)
{
    Node *old = node_exchange_backing(node, backing);
    node_edges_changed(node);
    node_unref_close(self, old);
}

void node_add_child(Node *node, Node *child)
{
    g_assert(child->loop == node->loop);
    if (!node->others)
        node->others = g_ptr_array_new();
    g_ptr_array_add(node->others, node_ref(child));
    g_ptr_array_add(child->parents, node);
    node_update_ports_above(node);
}

Node *node_take_child(Node *node, Node *child)
{
    bool was_there = node->others && g_ptr_array_remove_fast(node->others, child);
    g_assert(was_there);
    if (node->others->len == 0)
        g_clear_pointer(&node->others, g_ptr_array_unref);
    forget_parent(child, node);
    node_update_ports_above(node);
    return child;
}

static void give_up(Node *node, void *arg)
{
    if (node->ops->give_up)
        node->ops->give_up(node);
}

void node_give_up(Node *node)
{
    node_for_each_below(node, give_up, NULL);
}

void node_give_up_own(Node *node)
{
    give_up(node, NULL);
    for (guint i = 0; node->others && i < node->others->len; i++)
        node_give_up_own(node->others->pdata[i]);
    if (node->backing && node->ops->is_filter)
        node_give_up_own(node->backing);
}

// -- write hooks ----------------------------------------------------------------------------------

void node_add_write_hook(Node *node, NodeWriteHook *hook)
{
    hook->next = node->write_hooks;
    node->write_hooks = hook;
}

void node_remove_write_hook(Node *node, NodeWriteHook *hook)
{
    NodeWriteHook **at = &node->write_hooks;
    while (*at != hook) {
        g_assert(*at);
        at = &(*at)->next;
    }
    *at = hook->next;
    hook->next = NULL;
}
