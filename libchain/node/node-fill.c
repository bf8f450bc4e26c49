// SPDX-License-Identifier: LGPL-2.1-or-later
// Filling a node, whatever its driver: which parts of a range it lacks, what of those is data below
// and what zeros, and how the data comes up. The driver gives places, and links them
// (NodeFillOps). In a fiber on the node's loop.
//
// Data comes up by file_copy() where layers below hold it as plain ranges of files, which are
// pinned meanwhile; compressed clusters as they are, where the node has such, too; else through a
// buffer. No lock is held, and what lies below shows the same all
// the while: the caller's port is entered.
#include "chain-core/node-fill.h"

#include <errno.h>
#include <string.h>

#include "chain-core/io-buffers.h"
#include "chain-core/mutant.h"
#include "chain-core/node-compressed.h"

enum { MAX_RUN_BYTES = 1 << 20 };

// A node_fill() under way.
typedef struct Fill {
    Node *node;
    const NodeFillOps *ops;
    uint64_t granularity;
    NodeFillFlags flags;
    NodeCompression compression; // of the node
    NodeFillResult *result;
    const uint8_t *data; // what the node shows from `data_off` on, when the caller has it
    uint64_t data_off;
} Fill;

static Node *unfiltered(Node *node)
{
    while (node->ops->is_filter && node->backing)
        node = node->backing;
    return node;
}

uint64_t node_fill_granularity(Node *node)
{
    const NodeFillOps *ops = unfiltered(node)->ops->fill;
    return ops ? ops->granularity(unfiltered(node)) : 1;
}

// --- what lies below -----------------------------------------------------------------------------

// Zeros or not, and how far. `pins`: as node_status_pinned() has it; or NULL.
static int look_below(Fiber *self, const Fill *f, uint64_t off, uint64_t len, IoBatch *pins,
                      NodeExtent *ret_extent)
{
    Node *below = f->node->backing;
    if (!below || off >= below->size_bytes) {
        *ret_extent = (NodeExtent){.len = len, .kind = NODE_EXTENT_ZERO};
        return 0;
    }
    int r = node_status_pinned(self, below, guest_off(off), MIN(len, below->size_bytes - off), pins,
                               ret_extent);
    f->result->failed_reading |= r < 0;
    return r;
}

static bool is_data(const NodeExtent *extent)
{
    return extent->kind == NODE_EXTENT_DATA || extent->kind == NODE_EXTENT_OPAQUE;
}

typedef struct Run {
    uint64_t len; // whole granules, or up to the end of the range
    bool is_zero;
} Run;

// How long it is zeros from `off` on: *ret_end is `end`, or where data begins.
static int find_data(Fiber *self, const Fill *f, uint64_t off, uint64_t end, uint64_t *ret_end)
{
    while (off < end) {
        NodeExtent e;
        int r = look_below(self, f, off, end - off, NULL, &e);
        if (r < 0)
            return r;
        if (is_data(&e))
            break;
        off += e.len;
    }
    *ret_end = off;
    return 0;
}

// Data up to the next whole granule of zeros. `off` is where data begins.
static int find_zeros(Fiber *self, const Fill *f, uint64_t off, uint64_t end, uint64_t *ret_end)
{
    uint64_t g = f->granularity;
    while (off < end) {
        NodeExtent e;
        int r = look_below(self, f, off, end - off, NULL, &e);
        if (r < 0)
            return r;
        if (is_data(&e)) {
            off += e.len;
            continue;
        }
        uint64_t zeros = (off + g - 1) / g * g, zeros_end;
        r = find_data(self, f, off, MIN(end, zeros + g), &zeros_end);
        if (r < 0)
            return r;
        if (zeros_end == MIN(end, zeros + g)) {
            off = zeros;
            break;
        }
        off = zeros_end;
    }
    *ret_end = MIN(off, end);
    return 0;
}

// The run at `off`, the start of a granule.
static int find_run(Fiber *self, const Fill *f, uint64_t off, uint64_t end, Run *ret_run)
{
    uint64_t data, data_end;
    int r = find_data(self, f, off, end, &data);
    if (r < 0)
        return r;
    uint64_t zeros_end = data == end ? end : data - data % f->granularity;
    if (zeros_end > off) {
        *ret_run = (Run){zeros_end - off, true};
        return 0;
    }
    uint64_t most = MAX(MAX_RUN_BYTES, f->granularity);
    r = find_zeros(self, f, data, MIN(end, off + most), &data_end);
    if (r == 0)
        *ret_run = (Run){data_end - off, false};
    return r;
}

// --- moving --------------------------------------------------------------------------------------

// Others go first: those that are runnable, and whoever becomes so by what the kernel knows.
static void let_others_go(Fiber *self)
{
    fiber_sleep(self, 0);
}

static int read_below(Fiber *self, const Fill *f, uint64_t off, uint8_t *buf, size_t len)
{
    Node *below = f->node->backing;
    uint64_t size = below ? below->size_bytes : 0;
    size_t inside = off < size ? MIN(len, size - off) : 0;
    IoBatch batch;
    int r = 0;
    memset(buf + inside, 0, len - inside);
    io_batch_init(&batch, self);
    for (size_t at = 0; at < inside && r == 0; at += IO_TURN_BYTES) {
        uint32_t n_pending = batch.pending;
        r = node_read_start(self, below, guest_off(off + at), buf + at,
                            MIN(IO_TURN_BYTES, inside - at), &batch);
        if (batch.pending == n_pending && at + IO_TURN_BYTES < inside)
            let_others_go(self);
    }
    int waited = io_batch_wait(self, &batch);
    r = r < 0 ? r : waited;
    f->result->failed_reading |= r < 0;
    return r;
}

static int write_up(Fiber *self, const NodeFillPlace *place, uint64_t at, const uint8_t *buf,
                    size_t len)
{
    size_t turn = file_is_in_memory(place->file) ? IO_TURN_BYTES : len;
    int r = 0;
    for (size_t done = 0; done < len && r == 0; done += turn) {
        if (done)
            let_others_go(self);
        r = file_write(self, place->file, host_off(place->host.v + at + done), buf + done,
                       MIN(turn, len - done));
    }
    return r;
}

// A first part of what is left of `place` by file_copy(): *ret_done moves on. -ENOTSUP: that cannot
// be.
static int copy_some(Fiber *self, const Fill *f, const NodeFillPlace *place, uint64_t *ret_done)
{
    uint64_t done = *ret_done, len = place->len - done;
    NodeExtent e;
    IoBatch pins;
    if (file_is_in_memory(place->file))
        len = MIN(len, IO_TURN_BYTES);
    io_batch_init(&pins, self);
    int r = look_below(self, f, place->off.v + done, len, &pins, &e);
    if (r == 0)
        r = e.kind == NODE_EXTENT_DATA ? file_copy(self, e.file, e.host, place->file,
                                                   host_off(place->host.v + done), e.len)
                                       : -ENOTSUP;
    io_batch_wait(self, &pins);
    if (r < 0)
        return r;
    *(r ? &f->result->shared_bytes : &f->result->copied_bytes) += e.len;
    *ret_done = done + e.len;
    return 0;
}

static int copy_up(Fiber *self, const Fill *f, const NodeFillPlace *place, uint64_t *ret_done)
{
    *ret_done = 0;
    int r = copy_some(self, f, place, ret_done);
    while (r == 0 && *ret_done < place->len) {
        let_others_go(self);
        r = copy_some(self, f, place, ret_done);
    }
    return r == -ENOTSUP ? 0 : r;
}

// Brings what lies below to `place`, which was taken.
static int bring_up(Fiber *self, const Fill *f, const NodeFillPlace *place)
{
    uint64_t done;
    int r = copy_up(self, f, place, &done);
    if (r < 0 || done == place->len)
        return r;
    size_t len = place->len - done;
    uint8_t *buf = io_buffer_take(fiber_loop(self), len);
    if (!buf)
        return -ENOMEM;
    r = read_below(self, f, place->off.v + done, buf, len);
    if (r == 0)
        r = write_up(self, place, done, buf, len);
    if (r == 0)
        f->result->copied_bytes += len;
    io_buffer_put(fiber_loop(self), buf, len);
    return r;
}

static int write_in_place(Fiber *self, const Fill *f, const NodeFillPlace *place)
{
    uint8_t *buf = io_buffer_take(fiber_loop(self), place->len);
    if (!buf)
        return -ENOMEM;
    int r = read_below(self, f, place->off.v, buf, place->len);
    if (r == 0)
        r = f->ops->write(self, f->node, place->off, buf, place->len);
    if (r == 0)
        f->result->copied_bytes += place->len;
    io_buffer_put(fiber_loop(self), buf, place->len);
    return r;
}

// `written`: what writing there came to. The place is given back unless that is 0. 1: part of it is
// still missing.
static int link_place(Fiber *self, const Fill *f, const NodeFillPlace *place, int written)
{
    int r = f->ops->link(self, f->node, place, written == 0);
    return written < 0 ? written : r;
}

// docs/ordering.md §16: what was taken is written before anything names it.
static int fill_place(Fiber *self, const Fill *f, const NodeFillPlace *place)
{
    if (MUTANT("fill-written-before-linked")) {
        int r = link_place(self, f, place, 0);
        return r < 0 ? r : bring_up(self, f, place);
    }
    NodeFillResult before = *f->result;
    int r = link_place(self, f, place, bring_up(self, f, place));
    if (r > 0) { // what comes again counts then
        f->result->copied_bytes = before.copied_bytes;
        f->result->shared_bytes = before.shared_bytes;
    }
    return r;
}

// --- filling -------------------------------------------------------------------------------------

static int fill_plain(Fiber *self, const Fill *f, uint64_t off, uint64_t end)
{
    while (off < end) {
        NodeFillPlace place;
        int r = f->ops->take(self, f->node, guest_off(off), end - off, &place);
        if (r == 0 && place.kind == NODE_FILL_TAKEN)
            r = fill_place(self, f, &place);
        else if (r == 0 && place.kind == NODE_FILL_IN_PLACE)
            r = write_in_place(self, f, &place);
        if (r < 0)
            return r;
        if (r == 0)
            off += place.len;
    }
    return 0;
}

// Compressed clusters that begin at `off`, or none: how far it goes is *ret_len then, too.
static int read_compressed_below(Fiber *self, const Fill *f, uint64_t off, uint64_t len,
                                 CompressedClusters *c, uint64_t *ret_len)
{
    Node *below = f->node->backing;
    *ret_len = len;
    if (!below || off >= below->size_bytes)
        return 0;
    uint64_t inside = MIN(len, below->size_bytes - off), n;
    int r = node_read_compressed(self, below, guest_off(off), inside, c, &n);
    // Granules are whole, also at the end of what lies below.
    *ret_len = n == inside && !c->n ? len : n;
    f->result->failed_reading |= r < 0;
    return r;
}

// As they are, or in part: what is missing then is filled as other data is.
static int fill_compressed(Fiber *self, const Fill *f, const CompressedClusters *c)
{
    uint64_t off = c->off.v;
    int r = f->node->ops->compressed->fill(self, f->node, c);
    if (r > 0)
        return fill_plain(self, f, off, off + compressed_clusters_len(c));
    f->result->copied_bytes += r == 0 ? c->n_bytes : 0;
    return r;
}

static int fill_data(Fiber *self, const Fill *f, uint64_t off, uint64_t end)
{
    uint64_t len;
    int r = 0;
    for (; r == 0 && off < end; off += len) {
        CompressedClusters c = {.how = f->compression};
        r = read_compressed_below(self, f, off, end - off, &c, &len);
        if (r == 0)
            r = c.n ? fill_compressed(self, f, &c) : fill_plain(self, f, off, off + len);
        compressed_clusters_done(&c, fiber_loop(self));
        if (r == 0 && off + len < end)
            let_others_go(self);
    }
    return r;
}

static int fill_zeros(Fiber *self, const Fill *f, uint64_t off, uint64_t end)
{
    int r = 0;
    if (!(f->flags & NODE_FILL_ZEROS_STAY))
        r = f->ops->zero(self, f->node, guest_off(off), end - off);
    if (r == 0)
        f->result->zero_bytes += end - off;
    return r;
}

// Zeros that must be written come in pieces like data: the run gets shorter.
static int fill_run(Fiber *self, const Fill *f, uint64_t off, Run *run)
{
    int r = run->is_zero ? fill_zeros(self, f, off, off + run->len) : -ENOTSUP;
    if (r != -ENOTSUP)
        return r;
    run->len = MIN(run->len, MAX(MAX_RUN_BYTES, f->granularity));
    return fill_data(self, f, off, off + run->len);
}

// The node has nothing in [off, end), or had when that was looked up.
static int fill_missing(Fiber *self, const Fill *f, uint64_t off, uint64_t end)
{
    while (off < end) {
        Run run;
        int r = find_run(self, f, off, end, &run);
        if (r < 0)
            return r;
        r = fill_run(self, f, off, &run);
        if (r < 0)
            return r;
        off += run.len;
        if (off < end)
            let_others_go(self);
    }
    return 0;
}

// Calls `fn` for each part of [off, end) that the node does not own.
typedef int MissingFn(Fiber *self, const Fill *f, uint64_t off, uint64_t end);

static int for_each_missing(Fiber *self, const Fill *f, uint64_t off, uint64_t end, MissingFn *fn)
{
    while (off < end) {
        NodeExtent own;
        int r = node_map(self, f->node, guest_off(off), end - off, &own);
        if (r == 0 && own.kind == NODE_EXTENT_BELOW && !f->ops)
            r = -ENOTSUP;
        if (r == 0 && own.kind == NODE_EXTENT_BELOW) {
            r = fn(self, f, off, off + own.len);
            f->node->n_changes++; // a flush has something to do, also where only a part was filled
        }
        if (r < 0)
            return r;
        off += own.len;
    }
    return 0;
}

int node_fill(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeFillFlags flags,
              NodeFillResult *result)
{
    node = unfiltered(node);
    Fill f = {
        .node = node,
        .ops = node->ops->fill,
        .granularity = node_fill_granularity(node),
        .flags = flags,
        .result = result,
    };
    if (f.ops && node->ops->compressed)
        f.compression = node->ops->compressed->compression(node);
    g_assert(off.v <= node->size_bytes && len <= node->size_bytes - off.v);
    if (node->read_only)
        return -EROFS;
    uint64_t start = off.v - off.v % f.granularity;
    uint64_t end = (off.v + len + f.granularity - 1) / f.granularity * f.granularity;
    return for_each_missing(self, &f, start, MIN(end, node->size_bytes), fill_missing);
}

static int fill_given(Fiber *self, const Fill *f, uint64_t off, uint64_t end)
{
    while (off < end) {
        NodeFillPlace place;
        const uint8_t *data = f->data + (off - f->data_off);
        int r = f->ops->take(self, f->node, guest_off(off), end - off, &place);
        if (r == 0 && place.kind == NODE_FILL_TAKEN)
            r = link_place(self, f, &place, write_up(self, &place, 0, data, place.len));
        else if (r == 0 && place.kind == NODE_FILL_IN_PLACE)
            r = f->ops->write(self, f->node, guest_off(off), data, place.len);
        if (r < 0)
            return r;
        if (r == 0)
            off += place.len;
    }
    return 0;
}

int node_fill_from(Fiber *self, Node *node, GuestOff off, const void *data, size_t len)
{
    node = unfiltered(node);
    NodeFillResult result = {0};
    Fill f = {
        .node = node,
        .ops = node->ops->fill,
        .granularity = node_fill_granularity(node),
        .result = &result,
        .data = data,
        .data_off = off.v,
    };
    uint64_t end = off.v + len;
    g_assert(end <= node->size_bytes && off.v % f.granularity == 0 &&
             (end % f.granularity == 0 || end == node->size_bytes));
    if (node->read_only)
        return -EROFS;
    return for_each_missing(self, &f, off.v, end, fill_given);
}

int node_unfill(Fiber *self, Node *node, GuestOff off, uint64_t len)
{
    node = unfiltered(node);
    g_assert(off.v <= node->size_bytes && len <= node->size_bytes - off.v);
    if (node->read_only)
        return -EROFS;
    if (!node->ops->uncover)
        return -ENOTSUP;
    int r = node->ops->uncover(self, node, off, len);
    node->n_changes++; // a flush has something to do
    return r;
}
