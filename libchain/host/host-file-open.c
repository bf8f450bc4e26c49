// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening a file of the host and finding out what it can do: memory-backed or not, alignment of
// direct I/O, size. The blocking part runs on a worker.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "host/host-file.h"

typedef struct Alignments {
    uint32_t offsets, addresses; // of a transfer, in bytes
} Alignments;

#define NO_DIRECT_IO "the file system has no direct I/O; open it without"

typedef struct Open {
    const char *path;
    FileOpenFlags flags;
    // Results.
    int fd;
    struct stat st;
    bool is_memory, is_remote;
    uint64_t size;
    Alignments alignments;
    uint32_t zero_alignment;
    const char *problem; // sentence part, when errno alone does not say it
} Open;

static int open_fd(Open *o)
{
    // O_NONBLOCK: a FIFO or a device that waits for a medium must not block the worker.
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    flags |= o->flags & FILE_WRITABLE ? O_RDWR : O_RDONLY;
    if (o->flags & FILE_CREATE)
        flags |= O_CREAT | O_EXCL;
    if (o->flags & FILE_NO_FOLLOW_FINAL)
        flags |= O_NOFOLLOW;
    if (o->flags & FILE_DIRECT)
        flags |= O_DIRECT;
    o->fd = open(o->path, flags, 0644);
    if (o->fd >= 0)
        return 0;
    int r = -errno;
    if (r == -EINVAL && (o->flags & FILE_DIRECT)) {
        o->problem = NO_DIRECT_IO;
        if (o->flags & FILE_CREATE)
            unlink(o->path); // open(2) creates it before it finds out
    } else if (r == -ELOOP && (o->flags & FILE_NO_FOLLOW_FINAL)) {
        o->problem = "it is a symbolic link";
    }
    return r;
}

// Memory often needs less than offsets do (4 bytes on NVMe), and what is aligned enough is not
// bounced.
static Alignments direct_alignments(int fd, bool is_block_device)
{
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) && stx.stx_dio_offset_align)
        return (Alignments){stx.stx_dio_offset_align, MAX(1, stx.stx_dio_mem_align)};
#endif
    int sector = 0;
    if (is_block_device && ioctl(fd, BLKSSZGET, &sector) == 0 && sector >= 512)
        return (Alignments){(uint32_t)sector, (uint32_t)sector};
    return (Alignments){4096, 4096}; // no file system asks for more than its block, none is larger
}

int host_file_measure(int fd, bool is_block_device, uint64_t *ret_size)
{
    struct stat st;
    if (is_block_device)
        return ioctl(fd, BLKGETSIZE64, ret_size) < 0 ? -errno : 0;
    if (fstat(fd, &st) < 0)
        return -errno;
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

// Its files are read by asking a program or another machine, with few requests at a time.
static bool is_remote_file_system(const struct statfs *fs)
{
    static const uint32_t types[] = {
        FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC,  SMB_SUPER_MAGIC, CIFS_SUPER_MAGIC,
        SMB2_SUPER_MAGIC, CEPH_SUPER_MAGIC, V9FS_MAGIC,
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++)
        if ((uint32_t)fs->f_type == types[i])
            return true;
    return false;
}

static int learn(Open *o)
{
    if (fstat(o->fd, &o->st) < 0)
        return -errno;
    bool is_block_device = S_ISBLK(o->st.st_mode);
    if (!S_ISREG(o->st.st_mode) && !is_block_device) {
        o->problem = "it is neither a regular file nor a block device";
        return -EINVAL;
    }
    struct statfs fs = {0};
    o->is_memory = !is_block_device && fstatfs(o->fd, &fs) == 0 &&
                   (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
    o->is_remote = !is_block_device && is_remote_file_system(&fs);
    // With O_NONBLOCK the ring would answer EAGAIN where it should wait. On memory direct I/O means
    // nothing but alignment.
    int flags = fcntl(o->fd, F_GETFL);
    int unwanted = O_NONBLOCK | (o->is_memory ? O_DIRECT : 0);
    if (flags < 0 || fcntl(o->fd, F_SETFL, flags & ~unwanted) < 0)
        return -errno;
    int r = host_file_measure(o->fd, is_block_device, &o->size);
    if (r < 0)
        return r;

    int sector = 0;
    bool is_direct = (o->flags & FILE_DIRECT) && !o->is_memory;
    o->alignments = is_direct ? direct_alignments(o->fd, is_block_device) : (Alignments){1, 1};
    o->zero_alignment = 1;
    if (is_block_device)
        o->zero_alignment = ioctl(o->fd, BLKSSZGET, &sector) == 0 && sector >= 512 ? sector : 512;
    return 0;
}

static int open_work(void *arg)
{
    Open *o = arg;
    int r = open_fd(o);
    if (r < 0)
        return r;
    r = learn(o);
    if (r < 0) {
        close(o->fd);
        if (o->flags & FILE_CREATE)
            unlink(o->path);
    }
    return r;
}

int host_file_open(Fiber *self, Loop *loop, const char *path, FileOpenFlags flags, File **ret_file,
                   GError **error)
{
    Open o = {.path = path, .flags = flags};
    int r = loop_work(self, open_work, &o);
    if (r < 0) {
        const char *verb = flags & FILE_CREATE ? "create" : "open";
        return error_set(error, r, "cannot %s %s%s: %s", verb, path,
                         flags & FILE_WRITABLE && !(flags & FILE_CREATE) ? " for writing" : "",
                         o.problem ? o.problem : g_strerror(-r));
    }

    HostFile *h = g_new0(HostFile, 1);
    bool is_block_device = S_ISBLK(o.st.st_mode);
    file_init(&h->file, &host_file_ops, loop, path, flags);
    h->file.size = o.size;
    h->file.alignment = o.alignments.offsets;
    h->file.address_alignment = o.alignments.addresses;
    h->file.zero_alignment = o.zero_alignment;
    h->file.is_block_device = is_block_device;
    h->file.is_in_memory = o.is_memory;
    h->file.identity[0] = is_block_device ? UINT64_MAX : o.st.st_dev;
    h->file.identity[1] = is_block_device ? o.st.st_rdev : o.st.st_ino;
    h->host = (HostLoop *)loop;
    h->device = host_device_ref(h->host, is_block_device ? o.st.st_rdev : o.st.st_dev);
    h->fd = o.fd;
    h->misses_block = o.is_remote;
    h->has_own_map = !is_block_device && !o.is_memory;
    warm_map_init(&h->warm, o.size);
    host_file_init_writes(h);
    if (o.is_memory)
        h->inline_reads = h->inline_writes = HOST_FILE_INLINE_ALWAYS;
    else
        h->inline_reads = h->inline_writes = HOST_FILE_INLINE_CACHED;
    *ret_file = &h->file;
    return 0;
}

// -- of a file that is open -----------------------------------------------------------------------

typedef struct SetDirect {
    int fd;
    bool is_direct, is_block_device;
    Alignments alignments;
} SetDirect;

static int set_direct_call(void *arg)
{
    SetDirect *s = arg;
    int flags = fcntl(s->fd, F_GETFL);
    if (flags < 0)
        return -errno;
    flags = s->is_direct ? flags | O_DIRECT : flags & ~O_DIRECT;
    if (fcntl(s->fd, F_SETFL, flags) < 0)
        return -errno;
    s->alignments =
        s->is_direct ? direct_alignments(s->fd, s->is_block_device) : (Alignments){1, 1};
    return 0;
}

int host_file_set_direct(Fiber *self, File *file, bool is_direct, GError **error)
{
    HostFile *h = (HostFile *)file;
    SetDirect s = {
        .fd = h->fd,
        .is_direct = is_direct,
        .is_block_device = file->is_block_device,
    };
    int r = file->is_in_memory ? 0 : loop_work(self, set_direct_call, &s);
    if (r < 0)
        return error_set(error, r, "%s cannot be used %s the page cache: %s", file->path,
                         is_direct ? "past" : "through",
                         r == -EINVAL ? NO_DIRECT_IO : g_strerror(-r));
    if (!file->is_in_memory) {
        file->alignment = s.alignments.offsets;
        file->address_alignment = s.alignments.addresses;
    }
    return 0;
}
