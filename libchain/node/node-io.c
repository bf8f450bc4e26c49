// SPDX-License-Identifier: LGPL-2.1-or-later
// Requests to nodes: bounds, read-only nodes, write hooks, and what a driver that lacks an
// operation gets instead. On the node's loop; everything may suspend.
//
// What a filter lacks goes on to the node it filters. A filter that has write() sees everything
// that changes content: a zero that it lacks is written through it.
#include "chain-core/mutant.h"
#include "chain-core/node-compressed.h"
#include "chain-core/node.h"
#include "chain-core/zeros.h"

#include "node/node-edge.h"

static inline void assert_inside(const Node *node, GuestOff off, uint64_t len)
{
    g_assert(off.v <= node->size_bytes && len <= node->size_bytes - off.v);
}

static inline void assert_may_change(const Node *node, GuestOff off, uint64_t len,
                                     NodeIoFlags flags)
{
    if (flags & NODE_IO_GROW)
        g_assert(off.v <= INT64_MAX && len <= INT64_MAX - off.v);
    else
        assert_inside(node, off, len);
}

// The node that a request goes on to where `node` lacks the operation.
static Node *filtered(const Node *node)
{
    g_assert(node->ops->is_filter && node->backing);
    return node->backing;
}

int node_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch)
{
    while (G_UNLIKELY(!node->ops->read_start))
        node = filtered(node);
    assert_inside(node, off, len);
    return node->ops->read_start(self, node, off, buf, len, batch);
}

int node_read(Fiber *self, Node *node, GuestOff off, void *buf, size_t len)
{
    IoBatch batch;
    io_batch_init(&batch, self);
    int r = node_read_start(self, node, off, buf, len, &batch);
    if (batch.pending || batch.n_pins || batch.error) {
        int waited = io_batch_wait(self, &batch);
        r = r < 0 ? r : waited;
    }
    return r;
}

// Before the caller hears of the result, and also when it is a failure: part of it may be on disk.
// A hook may take itself out. What did not become part of the node did not change it.
static void run_write_hooks(Node *node, GuestOff off, uint64_t len)
{
    if (off.v > node->size_bytes)
        return;
    len = MIN(len, node->size_bytes - off.v);
    for (NodeWriteHook *hook = node->write_hooks, *next; hook; hook = next) {
        next = hook->next;
        hook->fn(hook, off, len);
    }
}

// The end of a change that came to `r`: whoever counts changes is told.
static int end_change(Node *node, GuestOff off, uint64_t len, int r)
{
    if (r == 0 && G_UNLIKELY(off.v + len > node->size_bytes))
        r = node_note_end(node, off.v + len);
    node->n_changes++;
    if (node->write_hooks)
        run_write_hooks(node, off, len);
    return r;
}

static bool can_change(const Node *node)
{
    return !node->read_only && (node->ops->write || node->ops->is_filter);
}

int node_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
               NodeIoFlags flags)
{
    assert_may_change(node, off, len, flags);
    if (!can_change(node))
        return -EROFS;
    if (G_UNLIKELY(node->zero_detection) && len && bytes_are_zero(buf, len))
        return node_zero(self, node, off, len,
                         node->zero_detection == NODE_ZEROES_UNMAPPED ? flags
                                                                      : flags | NODE_IO_NO_UNMAP);
    bool is_early = MUTANT("bits-after-the-write");
    if (is_early)
        end_change(node, off, len, 0);
    int r = node->ops->write ? node->ops->write(self, node, off, buf, len, flags)
                             : node_write(self, filtered(node), off, buf, len, flags);
    return is_early ? r : end_change(node, off, len, r);
}

// A part that was tried in vain may have been written to: it counts as changed.
int node_write_extent(Fiber *self, Node *node, GuestOff off, const NodeExtent *from,
                      uint64_t *ret_len)
{
    assert_inside(node, off, from->len);
    g_assert(from->kind == NODE_EXTENT_DATA);
    if (!can_change(node))
        return -EROFS;
    if (node->zero_detection)
        return -ENOTSUP;
    int r = -ENOTSUP;
    if (node->ops->write_extent)
        r = node->ops->write_extent(self, node, off, from, ret_len);
    else if (!node->ops->write)
        r = node_write_extent(self, filtered(node), off, from, ret_len);
    return end_change(node, off, from->len, r);
}

int node_write_compressed(Fiber *self, Node *node, const CompressedClusters *c)
{
    assert_inside(node, c->off, 1);
    uint64_t len = MIN(compressed_clusters_len(c), node->size_bytes - c->off.v);
    if (!can_change(node))
        return -EROFS;
    int r = node->ops->compressed ? node->ops->compressed->write(self, node, c)
                                  : node_write_compressed(self, filtered(node), c);
    return end_change(node, c->off, len, r);
}

static int zero_by_writing(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    enum { CHUNK_BYTES = 64 << 10 };
    static const uint8_t zeros[CHUNK_BYTES];
    if (flags & NODE_IO_FAST_ZERO)
        return -ENOTSUP;
    while (len) {
        size_t n = MIN(len, CHUNK_BYTES);
        int r = node->ops->write(self, node, off, zeros, n, flags);
        if (r < 0)
            return r;
        off.v += n;
        len -= n;
    }
    return 0;
}

int node_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    assert_may_change(node, off, len, flags);
    if (!can_change(node))
        return -EROFS;
    if (node->ignores_discards)
        flags |= NODE_IO_NO_UNMAP;
    int r = node->ops->zero    ? node->ops->zero(self, node, off, len, flags)
            : node->ops->write ? zero_by_writing(self, node, off, len, flags)
                               : node_zero(self, filtered(node), off, len, flags);
    return end_change(node, off, len, r);
}

bool node_ignores_discards(const Node *node)
{
    while (!node->ignores_discards && node->ops->is_filter)
        node = node->backing;
    return node->ignores_discards;
}

int node_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    assert_inside(node, off, len);
    if (!can_change(node))
        return -EROFS;
    if (node->ignores_discards)
        return flags & NODE_IO_FUA ? node_flush(self, node) : 0;
    int r = 0;
    if (node->ops->discard)
        r = node->ops->discard(self, node, off, len, flags);
    else if (!node->ops->write)
        r = node_discard(self, filtered(node), off, len, flags);
    else if (flags & NODE_IO_FUA)
        r = node_flush(self, node);
    return end_change(node, off, len, r);
}

int node_uncover(Fiber *self, Node *node, GuestOff off, uint64_t len)
{
    assert_inside(node, off, len);
    if (!can_change(node))
        return -EROFS;
    if (!node->ops->uncover)
        return -ENOTSUP;
    return end_change(node, off, len, node->ops->uncover(self, node, off, len));
}

static int flush_one(Fiber *self, Node *node)
{
    uint64_t n_changes = node->n_changes;
    int r = node->ops->flush ? node->ops->flush(self, node) : 0;
    if (r == 0)
        node->n_flushed =
            MAX(node->n_flushed,
                MUTANT("flush-covers-what-ended-before") ? node->n_changes : n_changes);
    return r;
}

// The graph may change whenever a layer is flushed, so the next one is held.
static int flush_layers_below(Fiber *self, Node *node)
{
    int result = 0;
    for (Node *n = node->backing ? node_ref(node->backing) : NULL, *next; n; n = next) {
        int r = n->n_flushed < n->n_changes ? flush_one(self, n) : 0;
        result = result ? result : r;
        next = n->backing ? node_ref(n->backing) : NULL;
        node_unref_close(self, n);
    }
    if (result == 0)
        node->owes_flush_below = false;
    return result;
}

// docs/ordering.md §14: what was written below before the switch is durable, too.
int node_flush(Fiber *self, Node *node)
{
    while (!node->ops->flush && node->ops->is_filter)
        node = filtered(node);
    int r = flush_one(self, node);
    if (G_UNLIKELY(node->owes_flush_below)) {
        int below = flush_layers_below(self, node);
        r = r < 0 ? r : below;
    }
    return r;
}

int node_map_pinned(Fiber *self, Node *node, GuestOff off, uint64_t len, IoBatch *batch,
                    NodeExtent *ret_extent)
{
    assert_inside(node, off, len);
    g_assert(len > 0);
    NodeExtent extent = {.len = len};
    int r = 0;
    if (batch && node->ops->pin && !MUTANT("map-pins")) // before the look
        node->ops->pin(self, node, batch);
    if (node->ops->map)
        r = node->ops->map(self, node, off, len, &extent);
    else if (node->ops->is_filter)
        extent.kind = NODE_EXTENT_BELOW;
    else
        extent = (NodeExtent){.len = len, .kind = NODE_EXTENT_OPAQUE, .node = node};
    if (r < 0)
        return r;
    g_assert(extent.len > 0 && extent.len <= len);
    *ret_extent = extent;
    return 0;
}

int node_find_kind(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtentKind *ret_kind,
                   uint64_t *ret_len)
{
    NodeExtent extent;
    assert_inside(node, off, len);
    if (node->ops->find_kind)
        return node->ops->find_kind(self, node, off, len, ret_kind, ret_len);
    int r = node_map(self, node, off, len, &extent);
    if (r < 0)
        return r;
    *ret_len = extent.len;
    *ret_kind = extent.kind == NODE_EXTENT_BELOW    ? NODE_EXTENT_BELOW
                : extent.kind == NODE_EXTENT_DATA   ? NODE_EXTENT_DATA
                : extent.kind == NODE_EXTENT_OPAQUE ? NODE_EXTENT_DATA
                                                    : NODE_EXTENT_ZERO;
    return 0;
}

int node_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    return node_map_pinned(self, node, off, len, NULL, ret_extent);
}

// Where to go on after `extent` of `node`, or NULL when it is the answer. An extent that names
// another node to read (a barrier, or a compressed cluster found by the merged map) is followed
// into that.
static Node *status_next(Node *node, const NodeExtent *extent, uint32_t *depth)
{
    if (extent->kind == NODE_EXTENT_OPAQUE && extent->node != node)
        return extent->node;
    if (extent->kind != NODE_EXTENT_BELOW || node->ops->covers_below || !node->backing)
        return NULL;
    if (!node->ops->is_filter)
        ++*depth;
    return node->backing;
}

int node_status_pinned(Fiber *self, Node *node, GuestOff off, uint64_t len, IoBatch *batch,
                       NodeExtent *ret_extent)
{
    assert_inside(node, off, len);
    NodeExtent extent = {.len = len};
    uint32_t depth = 0;
    Node *reader = NULL; // who is to see each read
    for (Node *next = node; next; next = status_next(node, &extent, &depth)) {
        node = next;
        if (!reader && node->ops->is_filter && node->ops->read_start)
            reader = node;
        if (off.v >= node->size_bytes) {
            extent = (NodeExtent){.len = extent.len, .kind = NODE_EXTENT_ZERO};
            break;
        }
        uint64_t inside = MIN(extent.len, node->size_bytes - off.v);
        int r = node_map_pinned(self, node, off, inside, batch, &extent);
        if (r < 0)
            return r;
        depth += extent.depth;
    }
    bool is_read = extent.kind == NODE_EXTENT_DATA || extent.kind == NODE_EXTENT_OPAQUE;
    if (batch && reader && is_read)
        extent = (NodeExtent){.len = extent.len, .kind = NODE_EXTENT_OPAQUE, .node = reader};
    extent.depth = depth;
    *ret_extent = extent;
    return 0;
}

int node_status(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    return node_status_pinned(self, node, off, len, NULL, ret_extent);
}

// What lies past the file's end was never written either.
static int find_hole(Fiber *self, NodeExtent *extent)
{
    uint64_t size = file_size(extent->file), n = extent->len;
    bool is_data = false;
    if (extent->host.v < size) {
        int r = file_find_extent(self, extent->file, extent->host, n, &is_data, &n);
        if (r < 0)
            return r;
    }
    extent->len = MIN(extent->len, n);
    extent->is_host_hole = !is_data;
    return 0;
}

int node_status_of_host(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    NodeExtent extent;
    int r = node_status(self, node, off, len, &extent);
    if (r < 0)
        return r;
    if (extent.kind == NODE_EXTENT_DATA && extent.node && extent.node->ops->data_may_be_hole &&
        extent.node->ops->data_may_be_hole(self, extent.node))
        find_hole(self, &extent); // a failure leaves it plain data
    *ret_extent = extent;
    return 0;
}

// -- as a file ------------------------------------------------------------------------------------

bool node_can_grow(Node *node)
{
    while (!node->ops->can_grow && node->ops->is_filter)
        node = filtered(node);
    return node->ops->can_grow && node->ops->can_grow(node);
}

int node_reserve(Fiber *self, Node *node, GuestOff off, uint64_t len)
{
    assert_may_change(node, off, len, NODE_IO_GROW);
    if (!can_change(node))
        return -EROFS;
    int r = 0;
    if (node->ops->reserve)
        r = node->ops->reserve(self, node, off, len);
    else if (node->ops->is_filter)
        r = node_reserve(self, filtered(node), off, len);
    return r < 0 ? r : node_note_end(node, off.v + len);
}

int node_remeasure(Fiber *self, Node *node)
{
    while (!node->ops->remeasure && node->ops->is_filter)
        node = filtered(node);
    return node->ops->remeasure ? node->ops->remeasure(self, node) : 0;
}
