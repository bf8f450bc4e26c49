// SPDX-License-Identifier: LGPL-2.1-or-later
// Nodes that are open while another program writes what they lie in. On the node's loop.
#include "chain-core/node.h"

#include "node/node-edge.h"

static int deactivate(Fiber *self, Node *node, GError **error)
{
    int r = 0;
    if (node->ops->is_filter)
        node_set_filter_mode(node, false);
    else if (node->ops->set_writable)
        r = node_set_writable(self, node, false, error);
    else
        node_stop_writes(node);
    return r == 0 && node->ops->set_active ? node->ops->set_active(self, node, false, error) : r;
}

int node_set_active(Fiber *self, Node *node, bool is_active, GError **error)
{
    if (!is_active)
        return deactivate(self, node, error);
    uint64_t old_bytes = node->size_bytes;
    int r = node->ops->set_active ? node->ops->set_active(self, node, true, error) : 0;
    if (r < 0)
        return r;
    node_begin_generation(node);
    if (node->size_bytes != old_bytes)
        node_size_changed(node);
    else
        node_edges_changed(node);
    return 0;
}
