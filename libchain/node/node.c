// SPDX-License-Identifier: LGPL-2.1-or-later
// The edges, references and life of nodes. Requests are node-io.c, drains and filters port.c. Runs
// on the nodes' loop; closing does I/O, in a fiber.
#include "chain-core/node.h"

#include <string.h>

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

// A loop, not a recursion: chains are up to a thousand layers deep and fiber stacks are small.
void node_unref_close(Fiber *self, Node *node)
{
    while (node) {
        g_assert(node->n_refs > 0);
        if (--node->n_refs > 0)
            return;
        g_assert(node->parents->len == 0 && node->ports->len == 0 && node->n_drains == 0);

        // Before anything suspends: who walks up from below must not meet a node that is ending.
        Node *backing = node->backing;
        if (backing)
            g_ptr_array_remove_fast(backing->parents, node);
        if (node->ops->close)
            node->ops->close(self, node);
        g_clear_pointer(&node->bitmaps, g_ptr_array_unref);
        g_assert(!node->write_hooks);
        g_ptr_array_free(node->parents, TRUE);
        g_ptr_array_free(node->ports, TRUE);
        g_free(node->name);
        g_free(node);
        node = backing;
    }
}

// Visits `node` and every node above it once, through `fn`.
void node_for_each_above(Node *node, NodeVisitFn *fn, void *arg)
{
    g_autoptr(GPtrArray) todo = g_ptr_array_new();
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    g_ptr_array_add(todo, node);
    g_hash_table_add(seen, node);
    while (todo->len) {
        Node *n = g_ptr_array_steal_index_fast(todo, todo->len - 1);
        fn(n, arg);
        for (guint i = 0; i < n->parents->len; i++) {
            Node *parent = n->parents->pdata[i];
            if (g_hash_table_add(seen, parent))
                g_ptr_array_add(todo, parent);
        }
    }
}

static void notify_below_changed(Node *node, void *arg)
{
    if (node->ops->below_changed)
        node->ops->below_changed(node);
}

void node_edges_changed(Node *node)
{
    node_for_each_above(node, notify_below_changed, NULL);
    node_update_ports_above(node);
}

void node_set_backing(Fiber *self, Node *node, Node *backing)
{
    Node *old = node->backing;
    if (backing) {
        g_assert(backing->loop == node->loop);
        g_ptr_array_add(backing->parents, node);
        node_ref(backing);
    }
    node->backing = backing;
    if (old)
        g_ptr_array_remove_fast(old->parents, node);
    node_edges_changed(node);
    node_unref_close(self, old);
}

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
