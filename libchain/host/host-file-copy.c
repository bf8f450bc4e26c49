// SPDX-License-Identifier: LGPL-2.1-or-later
// Copying from one host file to another without the bytes passing through this program. Sharing
// extents (FICLONERANGE) moves nothing at all, so it is tried wherever blocks are aligned. The
// kernel's own copying moves the bytes once where reading and writing moves them twice, but page by
// page: that is cheaper in memory-backed file systems and dearer elsewhere (docs/performance.md).
// There the write job of the target reads what the page cache has and writes it, in pieces that its
// processor's cache still holds then. What has to come from a disk is the caller's to read: many
// reads at a time. In a fiber, but for what the write job runs.
#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "host/host-file.h"

typedef struct CopyCall {
    HostFile *from, *to;
    uint64_t from_off, to_off, len;
} CopyCall;

// No file system shares less. One with larger blocks says EINVAL.
enum { MIN_SHARED_BYTES = 4096 };

static bool may_share(const HostFile *from, const HostFile *to)
{
    dev_t refused = atomic_load_explicit(&to->no_sharing_with, memory_order_relaxed);
    return !from->file.is_block_device && !to->file.is_block_device &&
           !(refused && refused == from->file.identity[0]);
}

static bool moves_in_memory(const File *from, const File *to)
{
    return from->is_in_memory && to->is_in_memory;
}

static bool moves_cached(const HostFile *from, uint64_t from_off, const HostFile *to, uint64_t len)
{
    return !to->file.is_in_memory && to->file.alignment == 1 && from->file.alignment == 1 &&
           from->inline_reads == HOST_FILE_INLINE_CACHED && !from->misses_block &&
           host_file_is_cached(from, from_off, len);
}

bool host_file_may_copy(const File *from, uint64_t from_off, const File *to, uint64_t len)
{
    const HostFile *a = (const HostFile *)from, *b = (const HostFile *)to;
    return moves_in_memory(from, to) ||
           (may_share(a, b) && !((from_off | len) % MIN_SHARED_BYTES)) ||
           moves_cached(a, from_off, b, len);
}

static int share_call(void *arg)
{
    const CopyCall *c = arg;
    struct file_clone_range range = {
        .src_fd = c->from->fd,
        .src_offset = c->from_off,
        .src_length = c->len,
        .dest_offset = c->to_off,
    };
    int r;
    do
        r = ioctl(c->to->fd, FICLONERANGE, &range);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 1;
    if (errno == ENOSPC || errno == EDQUOT || errno == EIO)
        return -errno;
    if (errno == EOPNOTSUPP || errno == ENOTTY || errno == EXDEV || errno == ENOSYS)
        atomic_store_explicit(&c->to->no_sharing_with, (dev_t)c->from->file.identity[0],
                              memory_order_relaxed);
    return -ENOTSUP;
}

// Of a part that failed, nothing is known: it is a write.
static int move_call(void *arg)
{
    const CopyCall *c = arg;
    loff_t from = (loff_t)c->from_off, to = (loff_t)c->to_off;
    uint64_t left = c->len;
    while (left) {
        ssize_t n = copy_file_range(c->from->fd, &from, c->to->fd, &to, left, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO || errno == ENOMEM))
            return -errno;
        if (n <= 0)
            return -ENOTSUP; // another mount; or the source ends here, behind our back
        left -= (uint64_t)n;
    }
    return 0;
}

// -- by the target's write job --------------------------------------------------------------------

enum { PIECE_BYTES = 256 << 10 };

typedef struct HostCopy {
    FileTransfer transfer; // first
    int from_fd;
    uint64_t from_off, len;
    Fiber *fiber;
    bool is_done;
    int result;
} HostCopy;

// -ENOTSUP: not all of it is in the page cache any more. Reading it again tells what else there
// was.
static int read_cached(int fd, uint8_t *buf, size_t len, uint64_t off)
{
    struct iovec iov = {buf, len};
    return preadv2(fd, &iov, 1, (off_t)off, RWF_NOWAIT) == (ssize_t)len ? 0 : -ENOTSUP;
}

ssize_t host_file_copy_run(FileTransfer *x)
{
    const HostCopy *c = (HostCopy *)x;
    const HostFile *to = (HostFile *)x->file;
    int r = 0;
    for (uint64_t at = 0, n; r == 0 && at < c->len; at += n) {
        n = MIN(PIECE_BYTES, c->len - at);
        r = read_cached(c->from_fd, to->copy_buffer, n, c->from_off + at);
        if (r == 0)
            r = host_file_write_all(to->fd, to->copy_buffer, n, x->off + at);
    }
    return r < 0 ? r : (ssize_t)c->len;
}

void host_file_copy_end(FileTransfer *x, int result)
{
    HostCopy *c = (HostCopy *)x;
    c->is_done = true;
    c->result = MIN(result, 0);
    fiber_wake(c->fiber);
}

static int move_cached(Fiber *self, const CopyCall *call)
{
    HostFile *to = call->to;
    if (!to->copy_buffer)
        to->copy_buffer = aligned_alloc(PIECE_BYTES, PIECE_BYTES);
    if (!to->copy_buffer)
        return -ENOTSUP;
    HostCopy c = {
        .transfer = {.file = &to->file, .off = call->to_off, .is_write = true, .is_copy = true},
        .from_fd = call->from->fd,
        .from_off = call->from_off,
        .len = call->len,
        .fiber = self,
    };
    host_file_add_write(to, &c.transfer);
    while (!c.is_done)
        fiber_suspend(self, "copy by a worker");
    return c.result;
}

static int share(Fiber *self, CopyCall *c)
{
    bool is_aligned = !((c->from_off | c->to_off | c->len) % MIN_SHARED_BYTES);
    return is_aligned && may_share(c->from, c->to) ? host_file_call(self, c->to, share_call, c)
                                                   : -ENOTSUP;
}

int host_file_copy(Fiber *self, File *from, uint64_t from_off, File *to, uint64_t to_off,
                   uint64_t len)
{
    CopyCall c = {(HostFile *)from, (HostFile *)to, from_off, to_off, len};
    if (moves_in_memory(from, to))
        return move_call(&c);
    int r = share(self, &c);
    return r == -ENOTSUP && moves_cached(c.from, from_off, c.to, len) ? move_cached(self, &c) : r;
}
