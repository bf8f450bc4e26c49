// SPDX-License-Identifier: LGPL-2.1-or-later
// Copying from file to file within the host. For everybody else, and for direct I/O that completes
// partial blocks, it is a write of the target. On the files' loop.
#include <assert.h>
#include <errno.h>

#include "io/file-private.h"

static bool can_copy(const File *from, const File *to)
{
    return to->ops->copy && to->ops->copy == from->ops->copy;
}

bool file_may_copy(const File *from, HostOff from_off, const File *to, uint64_t len)
{
    return can_copy(from, to) && to->ops->may_copy(from, from_off.v, to, len);
}

int file_copy(Fiber *self, File *from, HostOff from_off, File *to, HostOff to_off, uint64_t len)
{
    assert(to->is_writable && from->loop == to->loop);
    FileRange range;
    uint64_t from_end, to_end;
    if (__builtin_add_overflow(from_off.v, len, &from_end) || from_end > from->size)
        return -ENOTSUP;
    if (__builtin_add_overflow(to_off.v, len, &to_end) || to_end > INT64_MAX)
        return -EFBIG;
    if (!can_copy(from, to) || !len)
        return -ENOTSUP;
    file_note_change(to, to_off.v, len);
    to->n_changing++;
    if (to->alignment > 1)
        file_range_lock(self, to, &range, to_off.v, len, true);
    int r = to->ops->copy(self, from, from_off.v, to, to_off.v, len);
    if (to->alignment > 1)
        file_range_unlock(to, &range);
    to->n_changing--;
    file_note_change(to, to_off.v, len);
    if (r == -ENOTSUP)
        return r;
    if (r < 0)
        return file_write_result(to, to_off.v, r);
    file_note_end(to, to_end);
    return r;
}
