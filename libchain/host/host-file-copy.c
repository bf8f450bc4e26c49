// SPDX-License-Identifier: LGPL-2.1-or-later
// Copying from one host file to another without the bytes passing through this program. Sharing
// extents (FICLONERANGE) moves nothing at all, so it is tried wherever blocks are aligned. The
// kernel's own copying moves the bytes once where reading and writing moves them twice, but page by
// page: that is cheaper in memory-backed file systems and dearer elsewhere (docs/performance.md).
// In a fiber.
#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
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

bool host_file_may_copy(const File *from, uint64_t from_off, const File *to, uint64_t len)
{
    return moves_in_memory(from, to) || (may_share((const HostFile *)from, (const HostFile *)to) &&
                                         !((from_off | len) % MIN_SHARED_BYTES));
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

int host_file_copy(Fiber *self, File *from, uint64_t from_off, File *to, uint64_t to_off,
                   uint64_t len)
{
    CopyCall c = {(HostFile *)from, (HostFile *)to, from_off, to_off, len};
    if (moves_in_memory(from, to))
        return move_call(&c);
    bool is_aligned = !((from_off | to_off | len) % MIN_SHARED_BYTES);
    return is_aligned && may_share(c.from, c.to) ? host_file_call(self, c.to, share_call, &c)
                                                 : -ENOTSUP;
}
