// SPDX-License-Identifier: LGPL-2.1-or-later
// Write thresholds of nodes: a hook among those that run after each write, or of a file, through
// which formats write past its node, one comparison in the file itself. On the node's loop.
#include "chain-core/node.h"

// It is no longer the node's. Told before it is dropped, if `beyond`.
static void end(NodeThreshold *t, uint64_t beyond)
{
    if (t->node->ops->is_file)
        file_set_write_threshold(node_file(t->node), 0, NULL, NULL);
    else
        node_remove_write_hook(t->node, &t->hook);
    t->node->threshold = NULL;
    if (beyond)
        t->crossed(t, beyond);
    t->drop(t);
}

static void after_write(NodeWriteHook *hook, GuestOff off, uint64_t len)
{
    NodeThreshold *t = (NodeThreshold *)hook;
    if (off.v + len > t->off)
        end(t, off.v + len - t->off);
}

static void file_crossed(void *arg, uint64_t beyond)
{
    end(arg, beyond);
}

void node_set_write_threshold(Node *node, NodeThreshold *threshold)
{
    if (node->threshold)
        end(node->threshold, 0);
    if (!threshold)
        return;
    threshold->node = node;
    node->threshold = threshold;
    threshold->hook.fn = after_write;
    if (node->ops->is_file)
        file_set_write_threshold(node_file(node), threshold->off, file_crossed, threshold);
    else
        node_add_write_hook(node, &threshold->hook);
}
