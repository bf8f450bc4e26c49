// SPDX-License-Identifier: LGPL-2.1-or-later
// A chunk enters the port, reads, holds the range of the target, writes if it is not stale, and
// leaves. Whoever holds a range waits for one write only: not for the read, nor for memory.
//
// Where the host takes bytes from file to file (node_write_extent()) the read is part of the write.
// It begins with the range held and the chunk not stale, so what it reads is as new as what a
// buffer would hold. The source is pinned then, and not before: a guest that holds the range may
// wait for pins to end. On the nodes' loop.
#include "copy-nodes.h"

#include <errno.h>

#include "chain-core/io-buffers.h"
#include "chain-core/mutant.h"
#include "chain-core/node-compressed.h"
#include "chain-core/node-fill.h"
#include "copy-verify.h"

static void end_put(const CopyNodes *nodes, RangeHold *hold)
{
    if (nodes->lock)
        range_lock_release(nodes->lock, hold);
}

// False: the chunk is stale, and the range not held.
static bool begin_put(Fiber *self, const CopyNodes *nodes, const CopyChunk *chunk, RangeHold *hold)
{
    if (nodes->broken && *nodes->broken && !MUTANT("copy-before-broken"))
        return false;
    if (nodes->lock)
        range_lock_take(self, nodes->lock, hold, chunk->off, chunk->len);
    if (!nodes->lock || !copy_chunk_is_stale(chunk))
        return true;
    end_put(nodes, hold);
    return false;
}

// What of a chunk of data is moved in one way, as far as that goes.
typedef struct Piece {
    CopyChunk *chunk;
    uint64_t off, len;
    uint64_t done;
} Piece;

// -- within the host ------------------------------------------------------------------------------

// A first part of what is left of the piece. 0; -ENOTSUP: it has to go through a buffer.
static int copy_some(Fiber *self, const CopyNodes *nodes, Piece *piece, uint64_t max_bytes)
{
    CopyChunk *chunk = piece->chunk;
    GuestOff off = guest_off(piece->off + piece->done);
    uint64_t len;
    NodeExtent extent;
    IoBatch pins;
    io_batch_init(&pins, self);
    int r = node_status_pinned(self, nodes->source, off, MIN(piece->len - piece->done, max_bytes),
                               &pins, &extent);
    chunk->failed_reading = r < 0;
    if (r == 0)
        r = extent.kind == NODE_EXTENT_DATA
                ? node_write_extent(self, nodes->target, off, &extent, &len)
                : -ENOTSUP;
    io_batch_wait(self, &pins);
    if (r < 0)
        return r;
    *(r ? &chunk->shared_bytes : &chunk->copied_bytes) += len;
    piece->done += len;
    return 0;
}

// As far as that goes.
static int move_within_host(Fiber *self, const CopyNodes *nodes, Piece *piece)
{
    const File *file = node_file(nodes->target);
    uint64_t turn = file && file_is_in_memory(file) ? IO_TURN_BYTES : UINT64_MAX;
    RangeHold hold;
    if (!file || nodes->uses_buffers || nodes->compresses || nodes->verifies)
        return 0;
    if (!begin_put(self, nodes, piece->chunk, &hold))
        return COPY_AGAIN;
    int r = copy_some(self, nodes, piece, turn);
    while (r == 0 && piece->done < piece->len) {
        fiber_sleep(self, 0);
        r = copy_some(self, nodes, piece, turn);
    }
    end_put(nodes, &hold);
    return r == -ENOTSUP ? 0 : r;
}

// -- through a buffer -----------------------------------------------------------------------------

static int read_data(Fiber *self, Node *source, GuestOff off, uint8_t *buf, uint64_t len)
{
    IoBatch batch;
    int r = 0;
    io_batch_init(&batch, self);
    for (uint64_t at = 0; r == 0 && at < len; at += IO_TURN_BYTES) {
        uint32_t n_pending = batch.pending;
        r = node_read_start(self, source, guest_off(off.v + at), buf + at,
                            MIN(IO_TURN_BYTES, len - at), &batch);
        if (batch.pending == n_pending && at + IO_TURN_BYTES < len)
            fiber_sleep(self, 0);
    }
    int waited = io_batch_wait(self, &batch);
    return r < 0 ? r : waited;
}

// What is compared soon is still in the processor's cache.
static int write_and_verify(Fiber *self, Node *target, GuestOff off, const uint8_t *buf,
                            uint64_t len)
{
    uint64_t turn = node_file(target) ? MAX(IO_TURN_BYTES, target->preferred_bytes) : len;
    int r = 0;
    for (uint64_t at = 0, n; r == 0 && at < len; at += n) {
        n = MIN(turn, len - at);
        r = node_write(self, target, guest_off(off.v + at), buf + at, n, 0);
        if (r == 0 && !MUTANT("verify-data"))
            r = copy_verify_data(self, target, guest_off(off.v + at), buf + at, n);
        if (r == 0 && at + n < len)
            fiber_sleep(self, 0);
    }
    return r;
}

static int put_plain(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk, GuestOff off,
                     const uint8_t *buf, uint64_t len)
{
    RangeHold hold;
    if (!begin_put(self, nodes, chunk, &hold))
        return COPY_AGAIN;
    int r = nodes->verifies ? write_and_verify(self, nodes->target, off, buf, len)
                            : node_write(self, nodes->target, off, buf, len, 0);
    end_put(nodes, &hold);
    chunk->copied_bytes += r == 0 ? len : 0;
    return r;
}

// `buf` is what they show (NULL: not known, and not compared).
static int put_compressed(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk,
                          const CompressedClusters *c, const uint8_t *buf)
{
    RangeHold hold;
    if (nodes->lock && MUTANT("copy-stale-compressed"))
        range_lock_take(self, nodes->lock, &hold, chunk->off, chunk->len);
    else if (!begin_put(self, nodes, chunk, &hold))
        return COPY_AGAIN;
    int r = node_write_compressed(self, nodes->target, c);
    if (r == 0 && buf && nodes->verifies)
        r = copy_verify_data(self, nodes->target, c->off, buf,
                             MIN(compressed_clusters_len(c), nodes->target->size_bytes - c->off.v));
    end_put(nodes, &hold);
    chunk->copied_bytes += r == 0 ? c->n_bytes : 0;
    return r;
}

// Compressed first, which nobody waits for, where that makes it smaller.
static int compress_and_put(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk, GuestOff off,
                            const uint8_t *buf, uint64_t len)
{
    int r = 0;
    for (uint64_t n; r == 0 && len; off.v += n, buf += n, len -= n) {
        CompressedClusters c;
        r = node_compress(self, nodes->target, off, buf, len, &c, &n);
        if (r == 0)
            r = c.n ? put_compressed(self, nodes, chunk, &c, buf)
                    : put_plain(self, nodes, chunk, off, buf, n);
        compressed_clusters_done(&c, fiber_loop(self));
    }
    return r;
}

// The rest of the piece.
static int move_through_buffer(Fiber *self, const CopyNodes *nodes, const Piece *piece)
{
    uint64_t len = piece->len - piece->done;
    GuestOff off = guest_off(piece->off + piece->done);
    CopyChunk *chunk = piece->chunk;
    Loop *loop = fiber_loop(self);
    uint8_t *buf = io_buffer_take(loop, len);
    if (!buf)
        return -ENOMEM;
    int r = read_data(self, nodes->source, off, buf, len);
    chunk->failed_reading = r < 0;
    if (r == 0)
        r = nodes->compresses ? compress_and_put(self, nodes, chunk, off, buf, len)
                              : put_plain(self, nodes, chunk, off, buf, len);
    io_buffer_put(loop, buf, len);
    return r;
}

// -- zeros ----------------------------------------------------------------------------------------

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

// -- chunks ---------------------------------------------------------------------------------------

static int move_plain(Fiber *self, const CopyNodes *nodes, Piece *piece)
{
    int r = move_within_host(self, nodes, piece);
    return r || piece->done == piece->len ? r : move_through_buffer(self, nodes, piece);
}

// A first piece of it: *ret_len bytes.
static int move_piece(Fiber *self, const CopyNodes *nodes, Piece *piece, uint64_t *ret_len)
{
    CompressedClusters c = {0};
    if (!nodes->verifies) // streams are not read back as they were written
        c.how = node_compression(nodes->target);
    int r =
        node_read_compressed(self, nodes->source, guest_off(piece->off), piece->len, &c, ret_len);
    piece->chunk->failed_reading = r < 0;
    piece->len = *ret_len;
    if (r == 0)
        r = c.n ? put_compressed(self, nodes, piece->chunk, &c, NULL)
                : move_plain(self, nodes, piece);
    compressed_clusters_done(&c, fiber_loop(self));
    return r;
}

static int move_data(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk)
{
    uint64_t end = chunk->off + chunk->len, len = 0;
    int r = 0;
    for (uint64_t off = chunk->off; r == 0 && off < end; off += len) {
        Piece piece = {chunk, off, end - off, 0};
        r = move_piece(self, nodes, &piece, &len);
    }
    return r;
}

static int put_zeros(Fiber *self, const CopyNodes *nodes, const CopyChunk *chunk)
{
    RangeHold hold;
    if (!begin_put(self, nodes, chunk, &hold))
        return COPY_AGAIN;
    int r = write_zeros(self, nodes, chunk->off, chunk->len);
    if (r == 0 && nodes->verifies && !MUTANT("verify-zeros"))
        r = copy_verify_zeros(self, nodes->target, guest_off(chunk->off), chunk->len);
    end_put(nodes, &hold);
    return r;
}

int copy_nodes_move(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk)
{
    return chunk->kind == WORK_DATA ? move_data(self, nodes, chunk) : put_zeros(self, nodes, chunk);
}

int copy_nodes_chunk(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk)
{
    port_enter(self, nodes->port, REQUEST_WRITE);
    int r = copy_nodes_move(self, nodes, chunk);
    port_leave(nodes->port, REQUEST_WRITE);
    return r;
}
