// SPDX-License-Identifier: LGPL-2.1-or-later
// A chunk enters the port, reads, holds the range of the target, writes if it is not stale, and
// leaves. Whoever holds a range waits for one write only: not for the read, nor for memory. On the
// nodes' loop.
#include "copy-nodes.h"

#include <errno.h>

#include "chain-core/io-buffers.h"
#include "chain-core/node-fill.h"

// What is read without waiting (in memory, in the page cache) before others get their turn.
enum { TURN_BYTES = 128 << 10 };

static int read_data(Fiber *self, Node *source, const CopyChunk *chunk, uint8_t *buf)
{
    IoBatch batch;
    int r = 0;
    io_batch_init(&batch, self);
    for (uint64_t at = 0; r == 0 && at < chunk->len; at += TURN_BYTES) {
        uint32_t n_pending = batch.pending;
        r = node_read_start(self, source, guest_off(chunk->off + at), buf + at,
                            MIN(TURN_BYTES, chunk->len - at), &batch);
        if (batch.pending == n_pending && at + TURN_BYTES < chunk->len)
            fiber_sleep(self, 0);
    }
    int waited = io_batch_wait(self, &batch);
    return r < 0 ? r : waited;
}

// With no space of its own, and for good: nothing comes to lie below that shows something else.
static bool shows_zeros(const NodeExtent *extent)
{
    return extent->kind == NODE_EXTENT_ZERO || extent->kind == NODE_EXTENT_BELOW;
}

static int skip_zeros(Fiber *self, const CopyNodes *nodes, uint64_t off, uint64_t len)
{
    int r = 0;
    for (uint64_t end = off + len; r == 0 && off < end;) {
        NodeExtent extent;
        r = node_status(self, nodes->target, guest_off(off), end - off, &extent);
        if (r == 0 && !shows_zeros(&extent))
            r = node_zero(self, nodes->target, guest_off(off), extent.len, nodes->zero_flags);
        off += r == 0 ? extent.len : 0;
    }
    return r;
}

static int write_zeros(Fiber *self, const CopyNodes *nodes, uint64_t off, uint64_t len)
{
    NodeFillResult result = {0};
    if (nodes->skips_zeros)
        return skip_zeros(self, nodes, off, len);
    int r = node_zero(self, nodes->target, guest_off(off), len, nodes->zero_flags);
    return r < 0 || !nodes->owns_zeros
               ? r
               : node_fill(self, nodes->target, guest_off(off), len, 0, &result);
}

static int write_target(Fiber *self, const CopyNodes *nodes, const CopyChunk *chunk,
                        const uint8_t *data)
{
    GuestOff off = guest_off(chunk->off);
    return data ? node_write(self, nodes->target, off, data, chunk->len, 0)
                : write_zeros(self, nodes, chunk->off, chunk->len);
}

// `data` NULL: zeros.
static int put(Fiber *self, const CopyNodes *nodes, const CopyChunk *chunk, const uint8_t *data)
{
    if (!nodes->lock)
        return write_target(self, nodes, chunk, data);
    RangeHold hold;
    range_lock_take(self, nodes->lock, &hold, chunk->off, chunk->len);
    int r = copy_chunk_is_stale(chunk) ? COPY_AGAIN : write_target(self, nodes, chunk, data);
    range_lock_release(nodes->lock, &hold);
    return r;
}

static int move_data(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk)
{
    Loop *loop = fiber_loop(self);
    uint8_t *buf = io_buffer_take(loop, chunk->len);
    if (!buf)
        return -ENOMEM;
    int r = read_data(self, nodes->source, chunk, buf);
    chunk->failed_reading = r < 0;
    if (r == 0)
        r = put(self, nodes, chunk, buf);
    io_buffer_put(loop, buf, chunk->len);
    chunk->copied_bytes = r == 0 ? chunk->len : 0;
    return r;
}

int copy_nodes_chunk(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk)
{
    port_enter(self, nodes->port, REQUEST_WRITE);
    int r =
        chunk->kind == WORK_DATA ? move_data(self, nodes, chunk) : put(self, nodes, chunk, NULL);
    port_leave(nodes->port, REQUEST_WRITE);
    return r;
}
