// SPDX-License-Identifier: LGPL-2.1-or-later
// Direct I/O of any alignment. Aligned transfers go straight to the back end. Others are bounced by
// a helper fiber: a read through an aligned buffer; a write as read, change, write of the whole
// blocks. While a block is rewritten so, nothing else may change it: each change of a direct file
// holds a FileRange, and an exclusive one excludes all that overlap. On the file's loop.
//
// A file whose size is not a multiple of the block is cut back to its size after a rewrite of its
// last block; that rewrite excludes every change from its block on, so that nobody's growth is cut.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "file-private.h"
#include "iov.h"
#include "loop-private.h"

static uint64_t round_down(uint64_t v, uint64_t alignment)
{
    return v / alignment * alignment;
}

static uint64_t round_up(uint64_t v, uint64_t alignment)
{
    return v > UINT64_MAX - alignment ? UINT64_MAX : round_down(v + alignment - 1, alignment);
}

// --- ranges --------------------------------------------------------------------------------------

static bool range_conflicts(const File *file, const FileRange *range)
{
    for (const FileRange *r = file->ranges; r; r = r->next)
        if ((r->is_exclusive || range->is_exclusive) && r->start < range->end &&
            range->start < r->end)
            return true;
    return false;
}

static void range_fill(const File *file, FileRange *range, uint64_t off, uint64_t len,
                       bool is_exclusive)
{
    uint64_t end = len > UINT64_MAX - off ? UINT64_MAX : off + len;
    *range = (FileRange){
        .start = round_down(off, file->alignment),
        .end = round_up(end, file->alignment),
        .is_exclusive = is_exclusive,
    };
}

static void range_add(File *file, FileRange *range)
{
    range->previous = NULL;
    range->next = file->ranges;
    if (file->ranges)
        file->ranges->previous = range;
    file->ranges = range;
}

void file_range_lock(Fiber *self, File *file, FileRange *range, uint64_t off, uint64_t len,
                     bool is_exclusive)
{
    range_fill(file, range, off, len, is_exclusive);
    while (range_conflicts(file, range))
        fiber_queue_wait(self, &file->range_waiters, false, "block under change");
    range_add(file, range);
}

void file_range_unlock(File *file, FileRange *range)
{
    if (range->previous)
        range->previous->next = range->next;
    else
        file->ranges = range->next;
    if (range->next)
        range->next->previous = range->previous;
    fiber_queue_wake_all(&file->range_waiters);
}

// --- bounced transfers ---------------------------------------------------------------------------

static bool is_aligned(const File *file, uint64_t off, const struct iovec *iov, unsigned n_iov)
{
    uint64_t bits = off, addresses = 0;
    for (unsigned i = 0; i < n_iov; i++) {
        bits |= iov[i].iov_len;
        addresses |= (uintptr_t)iov[i].iov_base;
    }
    return (bits & (file->alignment - 1)) == 0 && (addresses & (file->address_alignment - 1)) == 0;
}

typedef struct Bounce {
    File *file;
    IoBatch *batch; // of the caller
    bool is_write;
    uint64_t off;
    size_t len;
    unsigned n_iov;
    struct iovec iov[FILE_MAX_IOV];
} Bounce;

// Whole blocks, already locked when it is a write.
static int transfer_blocks(Fiber *self, File *file, bool is_write, uint64_t off, void *buf,
                           size_t len)
{
    IoBatch batch;
    struct iovec iov = {buf, len};
    io_batch_init(&batch, self);
    file->ops->submit(file_transfer_new(file, is_write, off, &iov, 1, &batch));
    return io_batch_wait(self, &batch);
}

static void copy(const Bounce *b, uint8_t *buf)
{
    for (unsigned i = 0; i < b->n_iov; i++) {
        if (b->is_write)
            memcpy(buf, b->iov[i].iov_base, b->iov[i].iov_len);
        else
            memcpy(b->iov[i].iov_base, buf, b->iov[i].iov_len);
        buf += b->iov[i].iov_len;
    }
}

static int bounce_write(Fiber *self, Bounce *b, uint8_t *buf, uint64_t start, uint64_t end)
{
    File *file = b->file;
    uint32_t block = file->alignment;
    uint64_t last = b->off + b->len;
    bool is_partial = b->off != start || last != end;
    FileRange range;
    int r = 0;

    // The size can change while we wait for the lock.
    for (;;) {
        bool is_at_end = end > file->size;
        file_range_lock(self, file, &range, start, is_at_end ? UINT64_MAX : end - start,
                        is_partial || is_at_end);
        if (is_at_end || end <= file->size)
            break;
        file_range_unlock(file, &range);
    }
    if (b->off != start)
        r = transfer_blocks(self, file, false, start, buf, block);
    if (r == 0 && last != end && (end - block != start || b->off == start))
        r = transfer_blocks(self, file, false, end - block, buf + (end - block - start), block);
    uint64_t size = MAX(file->size, last);
    if (r == 0) {
        copy(b, buf + (b->off - start));
        r = transfer_blocks(self, file, true, start, buf, end - start);
    }
    if (end > size && file->size > size && !file->is_block_device) {
        int r2 = file->ops->truncate(self, file, size);
        if (r2 == 0)
            file->size = size;
        else if (r == 0)
            r = r2;
    }
    file_range_unlock(file, &range);
    return r;
}

static void bounce_fiber(Fiber *self, void *arg)
{
    Bounce *b = arg;
    File *file = b->file;
    uint64_t start = round_down(b->off, file->alignment);
    uint64_t end = round_up(b->off + b->len, file->alignment);
    void *buf = NULL;

    int r = -posix_memalign(&buf, MAX(file->alignment, 4096), end - start);
    if (r == 0 && b->is_write) {
        r = bounce_write(self, b, buf, start, end);
    } else if (r == 0) {
        r = transfer_blocks(self, file, false, start, buf, end - start);
        if (r == 0)
            copy(b, (uint8_t *)buf + (b->off - start));
    }
    free(buf);
    io_batch_end(b->batch, r);
    g_free(b);
}

static void bounce_start(File *file, bool is_write, uint64_t off, const struct iovec *iov,
                         unsigned n_iov, size_t len, IoBatch *batch)
{
    Bounce *b = g_new(Bounce, 1);
    *b = (Bounce){file, batch, is_write, off, len, n_iov};
    memcpy(b->iov, iov, n_iov * sizeof(*iov));
    io_batch_begin(batch);
    int r = fiber_spawn_reserve(file->loop, "bounce", bounce_fiber, b);
    if (r < 0) {
        g_free(b);
        io_batch_end(batch, r);
    }
}

void file_direct_read_start(File *file, uint64_t off, void *buf, size_t len, IoBatch *batch)
{
    struct iovec iov = {buf, len};
    if (len == 0)
        return;
    if (off >= file->size)
        memset(buf, 0, len);
    else if (is_aligned(file, off, &iov, 1))
        file->ops->submit(file_transfer_new(file, false, off, &iov, 1, batch));
    else
        bounce_start(file, false, off, &iov, 1, len, batch);
}

void file_direct_write_start(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov,
                             IoBatch *batch)
{
    size_t len = iov_bytes(iov, n_iov);
    if (len == 0)
        return;
    file_note_change(file, off, len);
    FileRange range;
    range_fill(file, &range, off, len, false);
    // An aligned write that must wait for a block under change waits in a helper fiber.
    if (!is_aligned(file, off, iov, n_iov) || range_conflicts(file, &range)) {
        bounce_start(file, true, off, iov, n_iov, len, batch);
        return;
    }
    FileTransfer *x = file_transfer_new(file, true, off, iov, n_iov, batch);
    x->range = range;
    range_add(file, &x->range);
    file->ops->submit(x);
}
