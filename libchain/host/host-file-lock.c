// SPDX-License-Identifier: LGPL-2.1-or-later
// QEMU's byte locks on a host file. A permission held is an OFD read lock on byte 100+bit, one not
// shared with others a read lock on byte 200+bit. First all are taken, then each is tested against
// its opposite with F_OFD_GETLK for a write lock, which a read lock of anybody else would block:
// 200+bit for each held, 100+bit for each unshared. (The scheme is that of QEMU's block/file-posix;
// both programs keep out of each other's way with it.) And how a file is opened once more, for
// writing, without giving up its locks. The calls run on a worker.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "host/host-file-holder.h"
#include "host/host-file.h"

enum { N_PERMS = 4, HELD_BYTE = 100, UNSHARED_BYTE = 200, UNSHARED_SHIFT = 8 };

typedef struct LockCall {
    HostFile *file;
    unsigned before, wanted; // held | unshared << UNSHARED_SHIFT
    int conflict_byte;       // -1: none, the call itself failed
    pid_t holder_pid;        // -1: not told
    char *holder;            // g_free(); NULL when unknown
} LockCall;

static int lock_byte_of(unsigned bit)
{
    return bit < UNSHARED_SHIFT ? (int)(HELD_BYTE + bit)
                                : (int)(UNSHARED_BYTE + bit - UNSHARED_SHIFT);
}

static int set_lock(int fd, short type, int byte)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int r;
    do
        r = fcntl(fd, F_OFD_SETLK, &l);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

// 0 when nobody else has a lock on `byte`; -EAGAIN with *ret_pid (-1: an OFD lock, whose owner the
// kernel does not tell).
static int test_lock(int fd, int byte, pid_t *ret_pid)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &l) < 0)
        return -errno;
    if (l.l_type == F_UNLCK)
        return 0;
    *ret_pid = l.l_pid;
    return -EAGAIN;
}

static void release(LockCall *c, unsigned bits)
{
    for (unsigned bit = 0; bit < UNSHARED_SHIFT + N_PERMS; bit++)
        if (bits & (1u << bit))
            set_lock(c->file->fd, F_UNLCK, lock_byte_of(bit));
}

static int take(LockCall *c, unsigned bits, unsigned *ret_taken)
{
    for (unsigned bit = 0; bit < UNSHARED_SHIFT + N_PERMS; bit++) {
        if (!(bits & (1u << bit)))
            continue;
        int r = set_lock(c->file->fd, F_RDLCK, lock_byte_of(bit));
        if (r == -EAGAIN) {
            c->conflict_byte = lock_byte_of(bit);
            c->holder_pid = -1;
        }
        if (r < 0)
            return r;
        *ret_taken |= 1u << bit;
    }
    return 0;
}

static int test(LockCall *c)
{
    for (unsigned bit = 0; bit < UNSHARED_SHIFT + N_PERMS; bit++) {
        if (!(c->wanted & (1u << bit)))
            continue;
        unsigned opposite = bit < UNSHARED_SHIFT ? bit + UNSHARED_SHIFT : bit - UNSHARED_SHIFT;
        int byte = lock_byte_of(opposite);
        pid_t pid = -1;
        int r = test_lock(c->file->fd, byte, &pid);
        if (r == -EAGAIN) {
            c->conflict_byte = byte;
            c->holder_pid = pid;
        }
        if (r < 0)
            return r;
    }
    return 0;
}

static int lock_call(void *arg)
{
    LockCall *c = arg;
    unsigned taken = 0;
    c->conflict_byte = -1;
    int r = take(c, c->wanted & ~c->before, &taken);
    if (r == 0)
        r = test(c);
    if (r < 0) {
        release(c, taken);
        return r;
    }
    release(c, c->before & ~c->wanted);
    return 0;
}

// Reads all of /proc.
static int find_holder_call(void *arg)
{
    LockCall *c = arg;
    c->holder = host_file_find_holder(c->file->fd, c->conflict_byte, c->holder_pid);
    return 0;
}

// The kernel takes an ended process's io_uring apart a moment after the process is gone, and its
// files, with their locks, live until then. So a lock of nobody to be found may be of a daemon that
// was just killed: it is worth a second. The holder is looked for at the first conflict, where one
// that lives ends the wait at once, and at the end. Between tries no worker is kept.
static int lock_or_find_holder(Fiber *self, LockCall *c)
{
    enum { WAIT_NS = 10 * 1000 * 1000, TIMEOUT_NS = 1000 * 1000 * 1000 };
    HostDevice *device = c->file->device;
    Loop *loop = fiber_loop(self);
    uint64_t start = loop_now_ns(loop);
    // Never inline: other programs and /proc are involved.
    int r = host_device_work(self, device, lock_call, c);
    if (r == -EAGAIN && c->conflict_byte >= 0)
        host_device_work(self, device, find_holder_call, c);
    if (r != -EAGAIN || c->holder)
        return r;
    while (r == -EAGAIN && loop_now_ns(loop) - start < TIMEOUT_NS &&
           fiber_sleep(self, WAIT_NS) == 0)
        r = host_device_work(self, device, lock_call, c);
    if (r == -EAGAIN && c->conflict_byte >= 0)
        host_device_work(self, device, find_holder_call, c);
    return r;
}

static const char *describe(int byte)
{
    static const char *const held[] = {
        "holds a read lock",
        "holds a write lock",
        "holds a lock for rewriting equal data",
        "holds a resize lock",
    };
    static const char *const unshared[] = {
        "keeps others from reading",
        "keeps others from writing",
        "keeps others from rewriting equal data",
        "keeps others from resizing",
    };
    return byte < UNSHARED_BYTE ? held[byte - HELD_BYTE] : unshared[byte - UNSHARED_BYTE];
}

int host_file_lock(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    HostFile *h = (HostFile *)file;
    LockCall c = {
        .file = h,
        .before = h->locks_held,
        .wanted = held | unshared << UNSHARED_SHIFT,
        .conflict_byte = -1,
    };
    int r = lock_or_find_holder(self, &c);
    if (r == 0) {
        h->locks_held = c.wanted;
    } else if (c.conflict_byte >= 0) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_AGAIN,
                    "%s is in use by %s, which %s: stop it, or open read-only with --force-share",
                    file->path, c.holder ? c.holder : "another process", describe(c.conflict_byte));
    } else {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "cannot lock %s: %s",
                    file->path, g_strerror(-r));
    }
    g_free(c.holder);
    return r;
}

// --- opening it once more

typedef struct Reopen {
    int fd; // stays the number, of which nobody needs to hear
    unsigned locks;
} Reopen;

// The locks belong to the open file and not to the process, so the new one needs its own. They do
// not exclude the old one's, which go with it.
static int take_locks_again(const Reopen *o, int fd)
{
    int r = 0;
    for (unsigned bit = 0; r == 0 && bit < UNSHARED_SHIFT + N_PERMS; bit++)
        if (o->locks & (1u << bit))
            r = set_lock(fd, F_RDLCK, lock_byte_of(bit));
    return r;
}

// By its descriptor, since the name may mean another file by now.
static int reopen_call(void *arg)
{
    const Reopen *o = arg;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", o->fd);
    int flags = fcntl(o->fd, F_GETFL);
    if (flags < 0)
        return -errno;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | (flags & O_DIRECT));
    if (fd < 0)
        return -errno;
    int r = take_locks_again(o, fd);
    if (r == 0 && dup3(fd, o->fd, O_CLOEXEC) < 0)
        r = -errno;
    close(fd);
    return r;
}

int host_file_make_writable(Fiber *self, File *file, GError **error)
{
    HostFile *h = (HostFile *)file;
    Reopen o = {.fd = h->fd, .locks = h->locks_held};
    int r = host_device_work(self, h->device, reopen_call, &o);
    return r < 0 ? error_set(error, r, "cannot open %s for writing: %s", file->path, g_strerror(-r))
                 : 0;
}
