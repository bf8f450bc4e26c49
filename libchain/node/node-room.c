// SPDX-License-Identifier: LGPL-2.1-or-later
// What a node can still take: the driver knows. Filters add nothing to what they are written to. On
// the node's loop.
#include "chain-core/node.h"

#include <errno.h>

int node_room(Fiber *self, Node *node, uint64_t enough, NodeRoom *ret_room)
{
    NodeRoom room = {0};
    // Data may become zeros, or there is somebody who makes room as it is needed.
    while (!node->threshold && !node->zero_detection && node->ops->is_filter && node->backing)
        node = node->backing;
    if (node->threshold || node->zero_detection || !node->ops->room)
        return -ENOTSUP;
    int r = node->ops->room(self, node, enough, &room);
    if (r == 0)
        *ret_room = room;
    return r;
}
