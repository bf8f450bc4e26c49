// SPDX-License-Identifier: LGPL-2.1-or-later
// Transfers of host files. Reads: inline where that cannot block, else a ring operation. Writes:
// inline on memory, direct ones on the ring; buffered ones of one turn go together to one worker,
// which costs one wake-up and one message for all of them (docs/performance.md has the numbers). On
// the file's loop.
#include "host-file.h"

#include <assert.h>
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "iov.h"
#include "valgrind-hints.h"

static inline HostFile *host_file(File *file)
{
    return (HostFile *)file;
}

static ssize_t try_read(File *file, uint64_t off, void *buf, size_t len)
{
    HostFile *h = host_file(file);
    ssize_t n = -1;
    if (h->inline_reads == HOST_FILE_INLINE_ALWAYS) {
        n = pread(h->fd, buf, len, (off_t)off);
    } else if (h->inline_reads == HOST_FILE_INLINE_CACHED) {
        struct iovec iov = {buf, len};
        n = preadv2(h->fd, &iov, 1, (off_t)off, RWF_NOWAIT);
    } else {
        return -EAGAIN;
    }
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
}

static void blocking_read_done(LoopOp *op, int result)
{
    FileTransfer *x = (FileTransfer *)op;
    FileTransfer *next = host_device_end_read(host_file(x->file)->device);
    if (next)
        submit_to_ring(next);
    file_transfer_done(x, result);
}

static void submit(FileTransfer *x)
{
    HostFile *h = host_file(x->file);
    if (x->is_write && !h->writes_use_ring) {
        x->next = NULL;
        if (h->first_write)
            h->last_write->next = x;
        else
            h->first_write = x;
        h->last_write = x;
        mark_dirty(h);
        return;
    }
    if (!x->is_write && h->inline_reads == HOST_FILE_INLINE_NEVER) {
        x->op.done = blocking_read_done;
        if (!host_device_take_read(h->device, x))
            return;
    }
    submit_to_ring(x);
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
