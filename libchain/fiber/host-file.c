// SPDX-License-Identifier: LGPL-2.1-or-later
// Transfers of host files. Reads: inline where that cannot block (memory, the page cache, parts of
// a file that the file system has mapped), else a ring operation. Writes: inline on memory, direct
// ones on the ring; buffered ones of one turn go together to one worker, which costs one wake-up
// and one message for all of them (docs/performance.md has the numbers). On the file's loop.
#include "host-file.h"

#include <assert.h>
#include <errno.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "iov.h"
#include "valgrind-hints.h"

static inline HostFile *host_file(File *file)
{
    return (HostFile *)file;
}

// Whether the page cache has all of a range, as far as the kernel can tell without starting
// anything (cachestat, 6.5 and newer).
static bool is_cached(const HostFile *h, uint64_t off, size_t len)
{
    enum { SYS_CACHESTAT = 451, PAGE_BYTES = 4096 }; // with larger pages it says no
    struct {
        uint64_t off, len;
    } range = {off, len};
    struct {
        uint64_t n_cached, n_dirty, n_writeback, n_evicted, n_recently_evicted;
    } stat;
    if (syscall(SYS_CACHESTAT, h->fd, &range, &stat, 0) < 0)
        return false;
    return stat.n_cached >= (off + len - 1) / PAGE_BYTES - off / PAGE_BYTES + 1;
}

// Would a miss in this range block whoever reads? See warm-map.h and host-device.h.
static inline bool may_block(const HostFile *h, uint64_t off, size_t len)
{
    return h->misses_block || (h->has_own_map && !warm_map_covers(&h->warm, off, len)) ||
           host_device_is_congested(h->device);
}

// Bytes, or -1 with errno.
static ssize_t read_cached(HostFile *h, uint64_t off, void *buf, size_t len)
{
    enum { SLOW_MISS_NS = 300000 }; // one that only starts I/O takes some µs
    struct iovec iov = {buf, len};
    if (G_UNLIKELY(may_block(h, off, len))) {
        if (!is_cached(h, off, len)) {
            errno = EAGAIN;
            return -1;
        }
        warm_map_add(&h->warm, off, len);
    }
    uint64_t start = h->file.loop->backend->now(h->file.loop);
    ssize_t n = preadv2(h->fd, &iov, 1, (off_t)off, RWF_NOWAIT);
    if (G_LIKELY(n == (ssize_t)len))
        return n;
    int error = errno;
    if (h->file.loop->backend->now(h->file.loop) - start > SLOW_MISS_NS)
        warm_map_forget(&h->warm); // the kernel did
    errno = error;
    return n;
}

static ssize_t try_read(File *file, uint64_t off, void *buf, size_t len)
{
    HostFile *h = host_file(file);
    ssize_t n = -1;
    if (len == 0)
        return 0;
    if (h->inline_reads == HOST_FILE_INLINE_ALWAYS)
        n = pread(h->fd, buf, len, (off_t)off);
    else if (h->inline_reads == HOST_FILE_INLINE_CACHED)
        n = read_cached(h, off, buf, len);
    else
        return -EAGAIN;
    if (n >= 0)
        return n;
    if (errno == EOPNOTSUPP) {
        h->inline_reads = HOST_FILE_INLINE_NEVER;
        return -EAGAIN;
    }
    return errno == EINTR ? -EAGAIN : -errno;
}

static ssize_t try_write(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov)
{
    HostFile *h = host_file(file);
    ssize_t n;
    if (h->inline_writes == HOST_FILE_INLINE_ALWAYS)
        n = pwritev(h->fd, iov, (int)n_iov, (off_t)off);
    else if (h->inline_writes == HOST_FILE_INLINE_CACHED)
        n = pwritev2(h->fd, iov, (int)n_iov, (off_t)off, RWF_NOWAIT);
    else
        return -EAGAIN;
    if (n >= 0)
        return n;
    if (errno == EOPNOTSUPP) {
        h->inline_writes = HOST_FILE_INLINE_NEVER;
        return -EAGAIN;
    }
    return errno == EINTR ? -EAGAIN : -errno;
}

// --- buffered writes on workers ------------------------------------------------------------------

// More than one job lets the next turn's writes start while a large one is under way; the file
// system takes its inode lock for each, so many would only wait for each other.
enum { WRITE_JOBS_PER_FILE = 2, WRITE_JOB_BYTES = 1024 * 1024 };

typedef struct WriteJob {
    DeviceJob job;
    HostFile *file;
    int fd;
    FileTransfer *first; // results in backend_data
} WriteJob;

static void write_job_start(DeviceJob *job)
{
    WriteJob *w = (WriteJob *)job;
    HostFile *h = w->file;
    size_t bytes = 0;
    FileTransfer *last = NULL;
    w->first = h->first_write;
    for (FileTransfer *x = w->first; x && bytes < WRITE_JOB_BYTES; x = x->next) {
        bytes += iov_bytes(x->iov + x->first_iov, x->n_left_iov);
        last = x;
    }
    if (!last)
        return;
    h->first_write = last->next;
    last->next = NULL;
}

static void write_job_run(WorkerJob *job)
{
    WriteJob *w = (WriteJob *)job;
    for (FileTransfer *x = w->first; x; x = x->next) {
        ssize_t n;
        do
            n = pwritev(w->fd, x->iov + x->first_iov, (int)x->n_left_iov, (off_t)x->off);
        while (n < 0 && errno == EINTR);
        x->backend_data = (void *)(n < 0 ? -(intptr_t)errno : (intptr_t)n);
    }
}

static void mark_dirty(HostFile *h)
{
    if (h->is_dirty)
        return;
    h->is_dirty = true;
    h->next_dirty = h->host->dirty_files;
    h->host->dirty_files = h;
}

static void write_job_done(DeviceJob *job)
{
    WriteJob *w = (WriteJob *)job;
    HostFile *h = w->file;
    if (--h->n_write_jobs == 0)
        fiber_queue_wake_all(&h->jobs_ended);
    if (h->first_write)
        mark_dirty(h);
    FileTransfer *x = w->first;
    g_free(w);
    while (x) {
        FileTransfer *next = x->next;
        file_transfer_done(x, (ssize_t)(intptr_t)x->backend_data);
        x = next;
    }
}

void host_file_dispatch_writes(HostLoop *host)
{
    HostFile *h = host->dirty_files;
    host->dirty_files = NULL;
    while (h) {
        HostFile *next = h->next_dirty;
        h->is_dirty = false;
        // When all jobs are taken, the one that ends first marks the file again.
        while (h->first_write && h->n_write_jobs < WRITE_JOBS_PER_FILE) {
            WriteJob *w = g_new0(WriteJob, 1);
            FileTransfer *before = h->first_write;
            w->job.job.run = write_job_run;
            w->job.start = write_job_start;
            w->job.done = write_job_done;
            w->file = h;
            w->fd = h->fd;
            h->n_write_jobs++;
            host_device_submit(h->device, &w->job);
            if (h->first_write == before) // waits for a place, and takes what there is then
                break;
        }
        h = next;
    }
}

// --- ring ----------------------------------------------------------------------------------------

// The backend_data of a read that may keep a worker of the kernel busy while it lasts.
static const char on_worker;

static void submit_to_ring(FileTransfer *x)
{
    HostFile *h = host_file(x->file);
    struct iovec *iov = x->iov + x->first_iov;
    if (RUNNING_ON_VALGRIND && !x->is_write)
        for (unsigned i = 0; i < x->n_left_iov; i++)
            (void)VALGRIND_MAKE_MEM_DEFINED(iov[i].iov_base, iov[i].iov_len);
    struct io_uring_sqe *sqe = host_loop_get_sqe(h->host, &x->op);
    if (x->is_write)
        io_uring_prep_writev(sqe, h->fd, iov, x->n_left_iov, x->off);
    else if (x->n_left_iov == 1)
        io_uring_prep_read(sqe, h->fd, iov->iov_base, (unsigned)MIN(iov->iov_len, INT_MAX / 2),
                           x->off);
    else
        io_uring_prep_readv(sqe, h->fd, iov, x->n_left_iov, x->off);
    if (x->backend_data == &on_worker)
        sqe->flags |= IOSQE_ASYNC; // not even begun on the loop's thread
}

// Of a buffered read.
static void read_done(LoopOp *op, int result)
{
    FileTransfer *x = (FileTransfer *)op;
    HostFile *h = host_file(x->file);
    if (x->backend_data == &on_worker) {
        if (result > 0)
            warm_map_add(&h->warm, x->off, (uint64_t)result);
        FileTransfer *next = host_device_end_read(h->device);
        if (next)
            submit_to_ring(next);
    } else {
        host_device_end_miss(h->device);
    }
    file_transfer_done(x, result);
}

static void submit_buffered_read(HostFile *h, FileTransfer *x)
{
    size_t bytes = iov_bytes(x->iov + x->first_iov, x->n_left_iov);
    x->op.done = read_done;
    if (h->inline_reads == HOST_FILE_INLINE_NEVER || may_block(h, x->off, bytes)) {
        x->backend_data = (void *)&on_worker;
        if (!host_device_take_read(h->device, x))
            return;
    } else {
        x->backend_data = NULL;
        host_device_begin_miss(h->device);
    }
    submit_to_ring(x);
}

static void submit(FileTransfer *x)
{
    HostFile *h = host_file(x->file);
    if (x->file->alignment > 1) {
        submit_to_ring(x);
    } else if (!x->is_write) {
        submit_buffered_read(h, x);
    } else {
        x->next = NULL;
        if (h->first_write)
            h->last_write->next = x;
        else
            h->first_write = x;
        h->last_write = x;
        mark_dirty(h);
    }
}

static int sync_fd(void *arg)
{
    return fdatasync(*(int *)arg) < 0 ? -errno : 0;
}

static int flush(Fiber *self, File *file)
{
    HostFile *h = host_file(file);
    return host_file_call(self, h, sync_fd, &h->fd);
}

static int close_fd(void *arg)
{
    close(*(int *)arg);
    return 0;
}

static void file_close_op(Fiber *self, File *file)
{
    HostFile *h = host_file(file);
    // No write is left, but a job may be whose writes an earlier one took along.
    while (h->n_write_jobs)
        fiber_queue_wait(self, &h->jobs_ended, false, "end of write jobs");
    assert(!h->first_write && !h->is_dirty);
    host_file_call(self, h, close_fd, &h->fd);
    host_device_unref(h->device);
    warm_map_done(&h->warm);
    file_done(file);
    g_free(h);
}

const FileOps host_file_ops = {
    .try_read = try_read,
    .try_write = try_write,
    .submit = submit,
    .flush = flush,
    .zero = host_file_zero,
    .discard = host_file_discard,
    .truncate = host_file_truncate,
    .find_extent = host_file_find_extent,
    .get_size = host_file_get_size,
    .get_allocated = host_file_get_allocated,
    .lock = host_file_lock,
    .close = file_close_op,
};
