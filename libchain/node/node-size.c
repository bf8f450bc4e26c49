// SPDX-License-Identifier: LGPL-2.1-or-later
// The size of a node that is open, and that everybody above hears of a change. On the node's loop.
#include "chain-core/node.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/port.h"
#include "node/node-edge.h"

// QEMU's: what a request adds to an offset does not overflow.
static const uint64_t MAX_SIZE_BYTES = (uint64_t)INT64_MAX & ~(((uint64_t)1 << 30) - 1);

static int resize_bitmaps(Node *node, uint64_t size_bytes)
{
    return node->bitmaps ? node->resize_bitmaps(node, size_bytes) : 0;
}

static void tell_ports(const Node *node)
{
    for (guint i = 0; i < node->ports->len; i++) {
        Port *port = node->ports->pdata[i];
        if (port->resized)
            port->resized(port);
    }
}

// Filters show the same as `node`, whose size has changed; the merged maps over them are told by
// whoever calls this.
static void resize_filters_above(Node *node)
{
    tell_ports(node);
    for (guint i = 0; i < node->parents->len; i++) {
        Node *parent = node->parents->pdata[i];
        if (!parent->ops->is_filter || parent->backing != node)
            continue;
        parent->size_bytes =
            parent->ops->size_over ? parent->ops->size_over(node) : node->size_bytes;
        resize_bitmaps(parent, parent->size_bytes); // without memory they stay as they are
        resize_filters_above(parent);
    }
}

int node_note_end(Node *node, uint64_t end)
{
    if (end <= node->size_bytes)
        return 0;
    if (resize_bitmaps(node, end) < 0)
        return -ENOMEM;
    node->size_bytes = end;
    resize_filters_above(node);
    return 0;
}

void node_size_changed(Node *node)
{
    node_edges_changed(node);
    resize_filters_above(node);
}

// Bitmaps need memory to grow, which comes first, and none to shrink.
static int resize_drained(Fiber *self, Node *node, uint64_t size_bytes, GError **error)
{
    uint64_t old = node->size_bytes;
    if (size_bytes > old && resize_bitmaps(node, size_bytes) < 0)
        return error_set(error, -ENOMEM, "%s: no memory for its dirty bitmaps", node->name);
    int r = node->ops->resize(self, node, size_bytes, error);
    if (node->size_bytes != MAX(size_bytes, old))
        resize_bitmaps(node, node->size_bytes);
    if (node->size_bytes != old)
        node_size_changed(node);
    return r;
}

int node_resize(Fiber *self, Node *node, uint64_t size_bytes, GError **error)
{
    if (size_bytes > MAX_SIZE_BYTES)
        return error_set(error, -EINVAL,
                         "offset(%" G_GUINT64_FORMAT ") exceeds maximum(%" G_GUINT64_FORMAT ")",
                         size_bytes, MAX_SIZE_BYTES);
    while (!node->ops->resize && node->ops->is_filter)
        node = node->backing;
    if (!node->ops->resize)
        return error_set(error, -ENOTSUP, "Image format driver does not support resize");
    if (node->read_only)
        return error_set(error, -EACCES, "Image is read-only");
    node_flush(self, node); // ahead, so that the drain is short; its failure comes again
    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS;
    int r = node_drain_begin_until(self, node, REQUESTS_ALL, deadline_ns);
    if (r < 0)
        return error_set(error, r, "%s: not resized, as requests under way do not end: %s",
                         node->name, g_strerror(-r));
    r = resize_drained(self, node, size_bytes, error);
    node_drain_end(node, REQUESTS_ALL);
    return r;
}
