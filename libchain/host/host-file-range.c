// SPDX-License-Identifier: LGPL-2.1-or-later
// Zeroing, discarding, truncating and mapping of host files, and writes that direct I/O cannot
// make: calls that block, each on a worker of the file's device (inline on memory). In a fiber.
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "host/host-file.h"

typedef struct RangeCall {
    HostFile *file;
    uint64_t off, len;
    const void *buf;
    FileZeroFlags flags;
    bool is_data;    // find_extent
    bool is_sharing; // get_free
    uint64_t n;
} RangeCall;

static int allocate(const RangeCall *c, int mode)
{
    int r;
    do
        r = fallocate(c->file->fd, mode, (off_t)c->off, (off_t)c->len);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 0;
    return errno == EOPNOTSUPP || errno == ENOSYS ? -ENOTSUP : -errno;
}

int host_file_write_all(int fd, const uint8_t *buf, size_t len, uint64_t off)
{
    while (len) {
        ssize_t n = pwrite(fd, buf, len, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        buf += n;
        off += (size_t)n;
        len -= (size_t)n;
    }
    return 0;
}

// Through the page cache, by a descriptor of its own. The kernel keeps that and direct I/O in step:
// it writes pages back before a direct read or write of them, and a sync of either descriptor is
// one of the file. (The byte locks belong to the other descriptor and stay when this one goes.)
static int write_tail_call(void *arg)
{
    RangeCall *c = arg;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", c->file->fd);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = host_file_write_all(fd, c->buf, c->len, c->off);
    close(fd);
    return r;
}

int host_file_write_tail(Fiber *self, File *file, uint64_t off, const void *buf, size_t len)
{
    RangeCall c = {.file = (HostFile *)file, .off = off, .len = len, .buf = buf};
    return host_file_call(self, c.file, write_tail_call, &c);
}

// Extends the file to the end of the range. ftruncate() could cut off what another write adds
// meanwhile; allocating the last byte cannot, nor does it change data.
static int grow(const RangeCall *c)
{
    uint64_t size, end = c->off + c->len;
    if (c->file->file.is_block_device)
        return 0;
    int r = host_file_measure(c->file->fd, false, &size);
    if (r < 0 || size >= end)
        return r;
    RangeCall last = {.file = c->file, .off = end - 1, .len = 1};
    return allocate(&last, 0);
}

static int punch(RangeCall *c)
{
    if (atomic_load_explicit(&c->file->has_no_punch, memory_order_relaxed))
        return -ENOTSUP;
    int r = allocate(c, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    if (r == -ENOTSUP)
        atomic_store_explicit(&c->file->has_no_punch, true, memory_order_relaxed);
    return r;
}

static int zero_range(RangeCall *c)
{
    if (atomic_load_explicit(&c->file->has_no_zero_range, memory_order_relaxed))
        return -ENOTSUP;
    int r = allocate(c, FALLOC_FL_ZERO_RANGE);
    if (r == -ENOTSUP)
        atomic_store_explicit(&c->file->has_no_zero_range, true, memory_order_relaxed);
    return r;
}

// On a block device ZERO_RANGE may write zeros out, and a hole is only punched where that is fast.
static int zero_call(void *arg)
{
    RangeCall *c = arg;
    bool is_device = c->file->file.is_block_device;
    int r = -ENOTSUP;
    if (c->flags & FILE_ZERO_UNMAP) {
        r = punch(c);
        if (r == 0)
            r = grow(c);
    }
    if (r == -ENOTSUP && !(is_device && (c->flags & FILE_ZERO_FAST)))
        r = zero_range(c);
    if (r == -ENOTSUP && !is_device && !(c->flags & (FILE_ZERO_UNMAP | FILE_ZERO_FAST))) {
        r = punch(c); // and allocate again
        if (r == 0)
            r = allocate(c, 0);
    }
    return r;
}

int host_file_zero(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags)
{
    RangeCall c = {.file = (HostFile *)file, .off = off, .len = len, .flags = flags};
    if (file->is_block_device && off + len > file->size)
        return -ENOSPC;
    return host_file_call(self, c.file, zero_call, &c);
}

// Some file systems want room for the call itself before they see that the range has its space.
static bool is_stored(const RangeCall *c)
{
    off_t hole = lseek(c->file->fd, (off_t)c->off, SEEK_HOLE);
    return hole >= 0 && (uint64_t)hole >= c->off + c->len;
}

static int reserve_call(void *arg)
{
    const RangeCall *c = arg;
    int r = allocate(c, 0);
    return (r == -ENOSPC || r == -EDQUOT) && is_stored(c) ? 0 : r;
}

int host_file_reserve(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    RangeCall c = {.file = (HostFile *)file, .off = off, .len = len};
    if (file->is_block_device)
        return off + len > file->size ? -ENOSPC : 0;
    return host_file_call(self, c.file, reserve_call, &c);
}

static int discard_call(void *arg)
{
    return punch(arg);
}

int host_file_discard(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    RangeCall c = {.file = (HostFile *)file, .off = off, .len = len};
    return host_file_call(self, c.file, discard_call, &c);
}

static int truncate_call(void *arg)
{
    RangeCall *c = arg;
    int r;
    do
        r = ftruncate(c->file->fd, (off_t)c->len);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int host_file_truncate(Fiber *self, File *file, uint64_t size)
{
    RangeCall c = {.file = (HostFile *)file, .len = size};
    if (file->is_block_device)
        return -ENOTSUP;
    return host_file_call(self, c.file, truncate_call, &c);
}

static int find_extent_call(void *arg)
{
    RangeCall *c = arg;
    off_t data = lseek(c->file->fd, (off_t)c->off, SEEK_DATA);
    if (data < 0 && errno == ENXIO) { // a hole to the end
        c->is_data = false;
        c->n = c->len;
        return 0;
    }
    if (data < 0)
        return errno == EINVAL ? -ENOTSUP : -errno;
    c->is_data = (uint64_t)data == c->off;
    off_t end = c->is_data ? lseek(c->file->fd, (off_t)c->off, SEEK_HOLE) : data;
    if (end < 0)
        return errno == ENXIO ? -ENOTSUP : -errno;
    c->n = MIN((uint64_t)end - c->off, c->len);
    return c->n ? 0 : -ENOTSUP; // the file changes under us
}

int host_file_find_extent(Fiber *self, File *file, uint64_t off, uint64_t len, bool *ret_is_data,
                          uint64_t *ret_len)
{
    RangeCall c = {.file = (HostFile *)file, .off = off, .len = len};
    if (file->is_block_device)
        return -ENOTSUP;
    int r = host_file_call(self, c.file, find_extent_call, &c);
    if (r < 0)
        return r;
    *ret_is_data = c.is_data;
    *ret_len = c.n;
    return 0;
}

static int get_size_call(void *arg)
{
    RangeCall *c = arg;
    return host_file_measure(c->file->fd, c->file->file.is_block_device, &c->n);
}

int host_file_get_size(Fiber *self, File *file, uint64_t *ret_size)
{
    RangeCall c = {.file = (HostFile *)file};
    int r = host_file_call(self, c.file, get_size_call, &c);
    if (r == 0)
        *ret_size = c.n;
    return r;
}

typedef struct StampCall {
    HostFile *file;
    FileStamp *stamp;
} StampCall;

// The inode of a device's name does not know who writes to the device.
static int get_stamp_call(void *arg)
{
    const StampCall *c = arg;
    struct stat st;
    int r = host_file_measure(c->file->fd, c->file->file.is_block_device, &c->stamp->size);
    if (r < 0 || c->file->file.is_block_device)
        return r;
    if (fstat(c->file->fd, &st) < 0)
        return -errno;
    c->stamp->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    return 0;
}

int host_file_get_stamp(Fiber *self, File *file, FileStamp *ret_stamp)
{
    StampCall c = {(HostFile *)file, ret_stamp};
    return host_file_call(self, c.file, get_stamp_call, &c);
}

static int get_allocated_call(void *arg)
{
    RangeCall *c = arg;
    struct stat st;
    if (fstat(c->file->fd, &st) < 0)
        return -errno;
    c->n =
        (uint64_t)st.st_blocks * 512; // a block of stat(2) is 512 bytes, whatever st_blksize says
    return 0;
}

int host_file_get_allocated(Fiber *self, File *file, uint64_t *ret_bytes)
{
    RangeCall c = {.file = (HostFile *)file};
    if (file->is_block_device)
        return -ENOTSUP;
    int r = host_file_call(self, c.file, get_allocated_call, &c);
    if (r == 0)
        *ret_bytes = c.n;
    return r;
}

// Where a byte that is written takes a byte of what is free, unless it is shared.
static int get_free_call(void *arg)
{
    RangeCall *c = arg;
    struct statfs fs;
    if (fstatfs(c->file->fd, &fs) < 0)
        return -errno;
    switch (fs.f_type) {
    case XFS_SUPER_MAGIC:
    case EXT4_SUPER_MAGIC:
    case TMPFS_MAGIC:
        break;
    default:
        return -ENOTSUP;
    }
    if (!fs.f_blocks) // a tmpfs without a limit
        return -ENOTSUP;
    c->is_sharing = fs.f_type == XFS_SUPER_MAGIC;
    c->n = (uint64_t)fs.f_bfree * (uint64_t)fs.f_bsize; // what is set aside is some users' to use
    return 0;
}

int host_file_get_free(Fiber *self, File *file, uint64_t *ret_bytes, bool *ret_can_share)
{
    RangeCall c = {.file = (HostFile *)file};
    if (file->is_block_device)
        return -ENOTSUP;
    int r = host_file_call(self, c.file, get_free_call, &c);
    if (r < 0)
        return r;
    *ret_bytes = c.n;
    *ret_can_share = c.is_sharing;
    return 0;
}
