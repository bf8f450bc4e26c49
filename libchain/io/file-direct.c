// SPDX-License-Identifier: LGPL-2.1-or-later
// Direct I/O of any alignment. Aligned transfers go straight to the back end. Others are bounced,
// piece by piece through an aligned buffer: a read with its transfer's completion; a write, in a
// helper fiber, as read, change, write of the whole blocks. While a block is rewritten so, nothing
// else may change it: each change of a direct file has a FileRange, and an exclusive one excludes
// all that overlap. On the file's loop.
//
// A block that would reach past the end of the file is not rewritten: the file would be longer for
// a moment, and for good if we were killed in it. What such a write has for its last block goes
// through the page cache instead (FileOps.write_tail), which takes any number of bytes.
//
// Only so many of a file's transfers bounce at a time, the rest wait in a queue, so that fibers and
// buffers are bounded however much a guest asks for. Nobody waits in a circle:
// - A queued bounce holds nothing. One that is started waits for its own transfers, and a write for
//   one range at a time.
// - Ranges have one order, that of their arrival, and one waits only for ranges before it.
// - Who holds a range holds one, and waits for nothing but I/O while it does: a transfer of the
//   back end, a started bounce, or a call of the back end (zero, truncate, write_tail, …). In
//   particular none waits for a queued bounce, and none for a second range.
// So the first range in order always ends, and with it the bounces that are started, in turn.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "io/file-private.h"
#include "io/iov.h"
#include "loop/fiber-private.h"

enum {
    // At a time, of one file.
    BOUNCES_MAX = 32,
    BOUNCE_BYTES = 1024 * 1024, // of its buffer
    // No page cache keeps track of larger pieces than this: it is a file system's block or a page,
    // and Linux knows none above 64 KiB.
    CACHE_UNIT_MAX = 64 * 1024,
    // Fibers above the loop's limit for bounced writes: those of all files, and what a file may
    // have beyond them when it has no bounce under way whose end would start the next one.
    RESERVE = 1024,
    RESERVE_FOR_FIRST = 16 * 1024,
};

static uint64_t round_down(uint64_t v, uint64_t alignment)
{
    return v / alignment * alignment;
}

static uint64_t round_up(uint64_t v, uint64_t alignment)
{
    return v > UINT64_MAX - alignment ? UINT64_MAX : round_down(v + alignment - 1, alignment);
}

// --- the mode ------------------------------------------------------------------------------------

bool file_is_direct(const File *file)
{
    return file->is_direct;
}

int file_set_direct(Fiber *self, File *file, bool is_direct, GError **error)
{
    assert(!file->n_changing && !file->is_flushing && !file->first_range && !file->n_bouncing);
    if (file->is_direct == is_direct)
        return 0;
    if (!file->ops->set_direct)
        return error_set(error, -ENOTSUP, "%s: it stays as it was opened, %s the page cache",
                         file->path, file->is_direct ? "past" : "through");
    int r = file->ops->set_direct(self, file, is_direct, error);
    if (r == 0)
        file->is_direct = is_direct;
    return r;
}

// --- ranges --------------------------------------------------------------------------------------

static bool overlaps(const FileRange *range, uint64_t start, uint64_t end)
{
    return range->start < end && start < range->end;
}

// With a range that came before it, held or waiting: were later ones let past those that wait, a
// wide one might wait for ever.
static bool range_conflicts(const File *file, const FileRange *range)
{
    if (!range->is_exclusive && !file->n_exclusive_ranges)
        return false;
    for (const FileRange *r = range->previous; r; r = r->previous)
        if ((r->is_exclusive || range->is_exclusive) && overlaps(r, range->start, range->end))
            return !MUTANT("blocks-of-direct-files");
    return false;
}

// Takes a place in the order. It is held from now on, unless it is_waiting.
static void range_enter(File *file, FileRange *range, uint64_t off, uint64_t len, bool is_exclusive)
{
    uint64_t end = len > UINT64_MAX - off ? UINT64_MAX : off + len;
    *range = (FileRange){
        .start = round_down(off, file->alignment),
        .end = round_up(end, file->alignment),
        .is_exclusive = is_exclusive,
        .previous = file->last_range,
    };
    if (file->last_range)
        file->last_range->next = range;
    else
        file->first_range = range;
    file->last_range = range;
    file->n_exclusive_ranges += is_exclusive;
    range->is_waiting = range_conflicts(file, range);
    file->n_waiting_ranges += range->is_waiting;
}

static FileRange *find_grantable(File *file, uint64_t start, uint64_t end)
{
    for (FileRange *r = file->first_range; r; r = r->next)
        if (r->is_waiting && overlaps(r, start, end) && !range_conflicts(file, r))
            return r;
    return NULL;
}

void file_range_lock(Fiber *self, File *file, FileRange *range, uint64_t off, uint64_t len,
                     bool is_exclusive)
{
    range_enter(file, range, off, len, is_exclusive);
    range->fiber = self;
    while (range->is_waiting)
        fiber_suspend(self, "block under change");
}

void file_range_unlock(File *file, FileRange *range)
{
    uint64_t start = range->start, end = range->end;
    if (range->previous)
        range->previous->next = range->next;
    else
        file->first_range = range->next;
    if (range->next)
        range->next->previous = range->previous;
    else
        file->last_range = range->previous;
    file->n_exclusive_ranges -= range->is_exclusive;

    // Each from the start: a transfer that is submitted may end at once, and change the list.
    FileRange *next;
    while (file->n_waiting_ranges && (next = find_grantable(file, start, end))) {
        next->is_waiting = false;
        file->n_waiting_ranges--;
        if (next->fiber)
            fiber_wake(next->fiber);
        else
            file->ops->submit((FileTransfer *)((char *)next - offsetof(FileTransfer, range)));
    }
}

// --- bounced transfers ---------------------------------------------------------------------------

struct Bounce {
    File *file;
    IoBatch *batch; // of the caller
    Bounce *next;   // in the queue
    bool is_write;
    uint8_t *buf; // once started; of one piece
    // What is left.
    uint64_t off;
    size_t len;
    unsigned n_left_iov, first_iov;
    struct iovec iov[];
};

// What is transferred next: [off, last), within the whole blocks [start, end).
typedef struct Piece {
    uint64_t start, off, last, end;
} Piece;

static Piece next_piece(const Bounce *b)
{
    uint32_t block = b->file->alignment;
    uint64_t start = round_down(b->off, block);
    uint64_t last = MIN(b->off + b->len, start + BOUNCE_BYTES);
    return (Piece){start, b->off, last, round_up(last, block)};
}

// Between the caller's memory and the buffer.
static void copy_piece(const Bounce *b, const Piece *p)
{
    uint8_t *buf = b->buf + (p->off - p->start);
    size_t left = p->last - p->off;
    for (const struct iovec *iov = &b->iov[b->first_iov]; left; iov++) {
        size_t n = MIN(iov->iov_len, left);
        if (b->is_write)
            memcpy(buf, iov->iov_base, n);
        else
            memcpy(iov->iov_base, buf, n);
        buf += n;
        left -= n;
    }
}

static void end_piece(Bounce *b, const Piece *p)
{
    size_t n = p->last - p->off;
    unsigned used = iov_advance(b->iov + b->first_iov, b->n_left_iov, n);
    b->first_iov += used;
    b->n_left_iov -= used;
    b->off += n;
    b->len -= n;
}

// Whole blocks, already locked when it is a write.
static void start_blocks(Bounce *b, const Piece *p, bool is_write, uint64_t off, size_t len,
                         IoBatch *batch)
{
    struct iovec iov = {b->buf + (off - p->start), len};
    b->file->ops->submit(file_transfer_new(b->file, is_write, off, &iov, 1, batch));
}

// The blocks that the piece covers in part.
static int read_edges(Fiber *self, Bounce *b, const Piece *p)
{
    uint32_t block = b->file->alignment;
    IoBatch batch;
    io_batch_init(&batch, self);
    if (p->off != p->start)
        start_blocks(b, p, false, p->start, block, &batch);
    if (p->last != p->end && (p->end - block != p->start || p->off == p->start))
        start_blocks(b, p, false, p->end - block, block, &batch);
    return io_batch_wait(self, &batch);
}

static int write_blocks(Fiber *self, Bounce *b, const Piece *p)
{
    IoBatch batch;
    io_batch_init(&batch, self);
    if (p->end > p->start)
        start_blocks(b, p, true, p->start, p->end - p->start, &batch);
    return io_batch_wait(self, &batch);
}

// Does the piece end within a block that reaches past the end of the file?
static bool has_tail(const File *file, const Piece *p)
{
    return p->last < p->end && p->end > file->size && !file->is_block_device;
}

// A tail dirties a whole unit of the page cache, whose other blocks no direct write may change
// meanwhile: that would be undone when the unit is written back.
static void lock_piece(Fiber *self, File *file, const Piece *p, FileRange *range)
{
    bool is_partial = p->off != p->start || p->last != p->end;
    for (;;) {
        bool takes_unit = has_tail(file, p);
        uint64_t start = p->start, end = p->end;
        if (takes_unit) {
            start = MIN(start, round_down(end - file->alignment, CACHE_UNIT_MAX));
            end = round_up(end, CACHE_UNIT_MAX);
        }
        file_range_lock(self, file, range, start, end - start, is_partial);
        // The size can have changed while we waited.
        if (takes_unit || !has_tail(file, p))
            return;
        file_range_unlock(file, range);
    }
}

// Leaves whole blocks in `p`; the rest, maybe nothing, is what write_tail is for.
static Piece split_tail(const File *file, Piece *p)
{
    if (!has_tail(file, p))
        return (Piece){p->end, p->end, p->end, p->end};
    uint64_t start = p->end - file->alignment;
    Piece tail = {start, MAX(p->off, start), p->last, p->end};
    p->last = p->end = start;
    p->off = MIN(p->off, start);
    return tail;
}

static int write_tail(Fiber *self, File *file, const Piece *tail, const uint8_t *data)
{
    if (tail->last == tail->off)
        return 0;
    file->n_changing++;
    int r = file->ops->write_tail(self, file, tail->off, data, tail->last - tail->off);
    file->n_changing--;
    if (r == 0)
        file_note_end(file, tail->last);
    file_note_change(file, tail->off, tail->last - tail->off);
    return file_write_result(file, tail->off, r);
}

static int write_piece(Fiber *self, Bounce *b)
{
    File *file = b->file;
    Piece p = next_piece(b), blocks = p;
    FileRange range;
    lock_piece(self, file, &p, &range);
    Piece tail = split_tail(file, &blocks);
    int r = read_edges(self, b, &blocks);
    if (r == 0) {
        copy_piece(b, &p);
        r = write_blocks(self, b, &blocks);
    }
    if (r == 0)
        r = write_tail(self, file, &tail, b->buf + (tail.off - p.start));
    file_range_unlock(file, &range);
    end_piece(b, &p);
    return r;
}

static void pump(File *file);

static void bounce_end(Bounce *b, int result)
{
    File *file = b->file;
    io_batch_end(b->batch, result);
    file_bounce_free(b);
    file->n_bouncing--;
    pump(file);
}

void file_bounce_free(Bounce *b)
{
    if (!b)
        return;
    free(b->buf);
    g_free(b);
}

static void write_fiber(Fiber *self, void *arg)
{
    Bounce *b = arg;
    int r = 0;
    while (r == 0 && b->len)
        r = write_piece(self, b);
    bounce_end(b, r);
}

static void read_piece(Bounce *b)
{
    Piece p = next_piece(b);
    struct iovec iov = {b->buf, p.end - p.start};
    FileTransfer *x = file_transfer_new(b->file, false, p.start, &iov, 1, NULL);
    x->bounce = b;
    b->file->ops->submit(x);
}

void file_bounce_read_done(Bounce *b, int result)
{
    if (result == 0) {
        Piece p = next_piece(b);
        copy_piece(b, &p);
        end_piece(b, &p);
    }
    if (result == 0 && b->len)
        read_piece(b);
    else
        bounce_end(b, result);
}

// On an error `b` is as before. When it returns 0, `b` may be gone.
static int bounce_start(Bounce *b)
{
    File *file = b->file;
    uint64_t blocks =
        round_up(b->off + b->len, file->alignment) - round_down(b->off, file->alignment);
    void *buf = NULL;
    int r = -posix_memalign(&buf, MAX(file->alignment, 4096), MIN(blocks, BOUNCE_BYTES));
    if (r < 0)
        return r;
    b->buf = buf;
    if (!b->is_write) {
        read_piece(b);
        return 0;
    }
    unsigned reserve = file->n_bouncing > 1 ? RESERVE : RESERVE_FOR_FIRST;
    r = fiber_spawn_beyond(file->loop, "bounce", write_fiber, b, reserve);
    if (r < 0) {
        free(buf);
        b->buf = NULL;
    }
    return r;
}

// Starts what may be started. A bounce for which there is no memory waits for the end of another.
static void pump(File *file)
{
    if (file->is_pumping) // a bounce ended as soon as it was started
        return;
    file->is_pumping = true;
    while (file->first_bounce && file->n_bouncing < BOUNCES_MAX) {
        Bounce *b = file->first_bounce;
        file->first_bounce = b->next;
        file->n_bouncing++;
        int r = bounce_start(b);
        if (r < 0 && file->n_bouncing > 1) {
            file->n_bouncing--;
            file->first_bounce = b;
            break;
        }
        if (r < 0)
            bounce_end(b, r);
    }
    file->is_pumping = false;
}

static void bounce(File *file, bool is_write, uint64_t off, const struct iovec *iov, unsigned n_iov,
                   size_t len, IoBatch *batch)
{
    Bounce *b = g_malloc(sizeof(Bounce) + n_iov * sizeof(*iov));
    *b = (Bounce){
        .file = file,
        .batch = batch,
        .is_write = is_write,
        .off = off,
        .len = len,
        .n_left_iov = n_iov,
    };
    memcpy(b->iov, iov, n_iov * sizeof(*iov));
    io_batch_begin(batch);
    if (file->first_bounce)
        file->last_bounce->next = b;
    else
        file->first_bounce = b;
    file->last_bounce = b;
    pump(file);
}

// --- any transfer --------------------------------------------------------------------------------

static bool is_aligned(const File *file, uint64_t off, const struct iovec *iov, unsigned n_iov)
{
    uint64_t bits = off, addresses = 0;
    for (unsigned i = 0; i < n_iov; i++) {
        bits |= iov[i].iov_len;
        addresses |= (uintptr_t)iov[i].iov_base;
    }
    return (bits & (file->alignment - 1)) == 0 && (addresses & (file->address_alignment - 1)) == 0;
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
        bounce(file, false, off, &iov, 1, len, batch);
}

void file_direct_write_start(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov,
                             IoBatch *batch)
{
    size_t len = iov_bytes(iov, n_iov);
    if (len == 0)
        return;
    file_note_change(file, off, len);
    if (!is_aligned(file, off, iov, n_iov)) {
        bounce(file, true, off, iov, n_iov, len, batch);
        return;
    }
    FileTransfer *x = file_transfer_new(file, true, off, iov, n_iov, batch);
    range_enter(file, &x->range, off, len, false);
    if (!x->range.is_waiting)
        file->ops->submit(x);
}
