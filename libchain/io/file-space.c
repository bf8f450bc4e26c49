// SPDX-License-Identifier: LGPL-2.1-or-later
// What changes where a file has space, and what tells it: zeroing with its fallback, reservations,
// discards, truncation, the memo of the last extent. On the file's loop.
#include <assert.h>
#include <errno.h>

#include "io/file-private.h"

enum { ZEROES_BYTES = 64 * 1024 };
static const uint8_t zeroes[ZEROES_BYTES] __attribute__((aligned(4096)));

static int write_zeroes(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    while (len) {
        struct iovec iov[FILE_MAX_IOV];
        unsigned n_iov = 0;
        uint64_t n = 0;
        while (n_iov < FILE_MAX_IOV && n < len) {
            size_t part = MIN(len - n, ZEROES_BYTES);
            iov[n_iov++] = (struct iovec){(void *)zeroes, part};
            n += part;
        }
        IoBatch batch;
        io_batch_init(&batch, self);
        file_write_start(file, host_off(off), iov, n_iov, &batch);
        int r = io_batch_wait(self, &batch);
        if (r < 0)
            return r;
        off += n;
        len -= n;
    }
    return 0;
}

typedef int ChangeFn(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags);

static int discard_op(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags)
{
    return file->ops->discard(self, file, off, len);
}

// One operation of the back end, seen by direct I/O as a write of the range.
static int change(Fiber *self, File *file, ChangeFn *fn, uint64_t off, uint64_t len,
                  FileZeroFlags flags)
{
    FileRange range;
    file_note_change(file, off, len);
    file->n_changing++;
    if (file->alignment > 1)
        file_range_lock(self, file, &range, off, len, false);
    int r = fn(self, file, off, len, flags);
    if (file->alignment > 1)
        file_range_unlock(file, &range);
    file->n_changing--;
    file_note_change(file, off, len);
    return file_space_error(r);
}

int file_zero(Fiber *self, File *file, HostOff off, uint64_t len, FileZeroFlags flags)
{
    assert(file->is_writable);
    uint64_t end;
    if (__builtin_add_overflow(off.v, len, &end) || end > INT64_MAX)
        return -EFBIG;
    if (len == 0)
        return 0;
    // The part that the back end can do, and the odd ends.
    uint64_t a = file->zero_alignment;
    uint64_t start = (off.v + a - 1) / a * a, stop = end / a * a;
    if (start >= stop)
        return write_zeroes(self, file, off.v, len);

    int r = change(self, file, file->ops->zero, start, stop - start, flags);
    if (r == -ENOTSUP && (flags & FILE_ZERO_FAST))
        return r;
    if (r == -ENOTSUP)
        return write_zeroes(self, file, off.v, len);
    if (r < 0)
        return file_told(file, FILE_EVENT_ZERO_FAILED, start, r);
    file_note_end(file, stop);
    if (start > off.v)
        r = write_zeroes(self, file, off.v, start - off.v);
    if (r == 0 && end > stop)
        r = write_zeroes(self, file, stop, end - stop);
    return r;
}

static int reserve_op(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags)
{
    return file->ops->reserve(self, file, off, len);
}

int file_reserve(Fiber *self, File *file, HostOff off, uint64_t len)
{
    assert(file->is_writable);
    uint64_t end;
    if (__builtin_add_overflow(off.v, len, &end) || end > INT64_MAX)
        return -EFBIG;
    int r = len ? change(self, file, reserve_op, off.v, len, 0) : 0;
    file_told(file, FILE_EVENT_WRITE_FAILED, off.v, r);
    if (r == 0 && len)
        file_note_end(file, end);
    return r;
}

int file_discard(Fiber *self, File *file, HostOff off, uint64_t len)
{
    assert(file->is_writable);
    uint64_t end;
    if (__builtin_add_overflow(off.v, len, &end) || end > INT64_MAX)
        return -EINVAL;
    uint64_t a = file->zero_alignment;
    uint64_t start = (off.v + a - 1) / a * a, stop = end / a * a;
    if (start >= stop)
        return 0;
    int r = change(self, file, discard_op, start, stop - start, 0);
    return r == -ENOTSUP ? 0 : file_told(file, FILE_EVENT_DISCARD_FAILED, start, r);
}

int file_truncate(Fiber *self, File *file, uint64_t size)
{
    assert(file->is_writable);
    FileRange range;
    if (size > INT64_MAX)
        return -EFBIG;
    file_note_change(file, 0, UINT64_MAX);
    file->n_changing++;
    if (file->alignment > 1)
        file_range_lock(self, file, &range, 0, UINT64_MAX, true);
    int r = file->ops->truncate(self, file, size);
    if (r == 0 && !file->is_block_device)
        file->size = size;
    if (file->alignment > 1)
        file_range_unlock(file, &range);
    file->n_changing--;
    file_note_change(file, 0, UINT64_MAX);
    return file_told(file, FILE_EVENT_TRUNCATE_FAILED, size, file_space_error(r));
}

int file_find_extent(Fiber *self, File *file, HostOff off, uint64_t len, bool *ret_is_data,
                     uint64_t *ret_len)
{
    assert(len && off.v < file->size);
    bool is_data = true;
    uint64_t n = MIN(len, file->size - off.v);
    if (off.v >= file->extent_start && off.v < file->extent_end) {
        is_data = file->extent_is_data;
        n = file->extent_end - off.v;
    } else {
        uint64_t n_changes = file->n_changes;
        uint64_t to_end = file->size - off.v;
        int r = file->ops->find_extent(self, file, off.v, to_end, &is_data, &n);
        if (r == -ENOTSUP) {
            is_data = true;
            n = to_end;
        } else if (r < 0) {
            return file_told(file, FILE_EVENT_MAP_FAILED, off.v, r);
        }
        if (file->n_changes == n_changes) {
            file->extent_start = off.v;
            file->extent_end = off.v + n;
            file->extent_is_data = is_data;
        }
    }
    *ret_is_data = is_data;
    *ret_len = MIN(n, len);
    return 0;
}

int file_allocated_bytes(Fiber *self, File *file, uint64_t *ret_bytes)
{
    return file->ops->get_allocated ? file->ops->get_allocated(self, file, ret_bytes) : -ENOTSUP;
}

int file_free_bytes(Fiber *self, File *file, uint64_t *ret_bytes, bool *ret_can_share)
{
    if (!file->ops->get_free || file_has_write_threshold(file))
        return -ENOTSUP;
    return file->ops->get_free(self, file, ret_bytes, ret_can_share);
}
