// SPDX-License-Identifier: LGPL-2.1-or-later
// A file that is a node is locked for all who use it together. Whoever comes adds what it needs;
// what is still needed when somebody goes, or does not write any more, is found by looking at who
// is left. On the node's loop.
#include "chain-core/file.h"
#include "chain-core/node-hold.h"
#include "chain-core/port.h"
#include "node/node-edge.h"

int node_lock(Fiber *self, Node *node, unsigned held, unsigned unshared, GError **error)
{
    while (!node->ops->lock && node->ops->is_filter)
        node = node->backing;
    return node->ops->lock ? node->ops->lock(self, node, held, unshared, error) : 0;
}

static bool is_written(const Node *node);

static bool is_written_by(const Node *node, const Node *parent)
{
    if (parent->backing == node)
        return parent->ops->is_filter && is_written(parent); // an overlay reads
    if (parent->ops->is_view)
        return false;
    return parent->ops->is_filter || !parent->read_only || parent->is_becoming_writable;
}

// Does one of its users write it, or will in a moment?
static bool is_written(const Node *node)
{
    for (guint i = 0; i < node->parents->len; i++)
        if (is_written_by(node, node->parents->pdata[i]))
            return true;
    for (guint i = 0; i < node->ports->len; i++) {
        const Port *port = node->ports->pdata[i];
        if (port->perms.held & NODE_PERM_WRITE)
            return true;
    }
    return node_is_held(node, NODE_PERM_WRITE);
}

void node_unlock_writing(Fiber *self, Node *node)
{
    while (node->ops->is_filter)
        node = node->backing;
    if (node->ops->is_file && !is_written(node))
        file_lock_only(self, node_file(node), ~(FILE_PERM_WRITE | FILE_PERM_RESIZE), ~0u);
}

void node_unlock_writing_below(Fiber *self, Node *node)
{
    g_autoptr(GPtrArray) files = g_ptr_array_new();
    for (guint i = 0; node->others && i < node->others->len; i++)
        g_ptr_array_add(files, node_ref(node->others->pdata[i]));
    for (guint i = 0; i < files->len; i++) {
        node_unlock_writing(self, files->pdata[i]);
        node_unref_close(self, files->pdata[i]);
    }
}
