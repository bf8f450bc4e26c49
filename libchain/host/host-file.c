// SPDX-License-Identifier: LGPL-2.1-or-later
// Transfers of host files. Reads: inline where that cannot block (memory, the page cache, parts of
// a file that the file system has mapped), else a ring operation. Writes: inline on memory, direct
// ones on the ring; buffered ones of one turn go together to one worker, which costs one wake-up
// and one message for all of them (docs/performance.md has the numbers). On the file's loop, except
// what the write job runs.
#include "host/host-file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io/iov.h"
#include "loop/valgrind-hints.h"

static inline HostFile *host_file(File *file)
{
    return (HostFile *)file;
}

bool host_file_is_cached(const HostFile *h, uint64_t off, size_t len)
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
        if (!host_file_is_cached(h, off, len)) {
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

// A file has one write job at a time: file systems take the inode's lock for each write, so that
// two would wait for each other. While it runs it also takes what later turns hand over, without
// being woken again. It ends when nothing is left, or after so much, so that other jobs of the
// device get its place.
enum {
    JOB_BYTES = 16 * 1024 * 1024,
    ANSWER_BYTES = 1024 * 1024,
    CALL_BYTES = 4096, // what a call costs beside its bytes
};

static void push(_Atomic(FileTransfer *) *list, FileTransfer *first, FileTransfer *last)
{
    FileTransfer *head = atomic_load_explicit(list, memory_order_relaxed);
    do
        last->next = head;
    while (!atomic_compare_exchange_weak(list, &head, first));
}

static FileTransfer *take_in_order(_Atomic(FileTransfer *) *list)
{
    FileTransfer *x = atomic_exchange(list, NULL), *first = NULL;
    while (x) {
        FileTransfer *next = x->next;
        x->next = first;
        first = x;
        x = next;
    }
    return first;
}

static bool has_writes(HostFile *h)
{
    return atomic_load_explicit(&h->writes, memory_order_relaxed);
}

static void end_written(HostFile *h)
{
    FileTransfer *x = take_in_order(&h->written);
    while (x) {
        FileTransfer *next = x->next;
        ssize_t result = (ssize_t)(intptr_t)x->backend_data;
        h->host->io.n_buffered_writes--;
        if (x->is_copy)
            host_file_copy_end(x, (int)result);
        else
            file_transfer_done(x, result);
        x = next;
    }
}

static void written_came(LoopCall *call)
{
    HostFile *h = (HostFile *)((char *)call - offsetof(HostFile, written_call));
    atomic_store(&h->is_written_call_posted, false); // before taking: what is added later is posted
    end_written(h);
}

static ssize_t write_iov(int fd, const FileTransfer *x)
{
    const struct iovec *iov = x->iov + x->first_iov;
    ssize_t n;
    do
        n = x->n_left_iov == 1 ? pwrite(fd, iov->iov_base, iov->iov_len, (off_t)x->off)
                               : pwritev(fd, iov, (int)x->n_left_iov, (off_t)x->off);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

// Returns what it cost.
static size_t write_one(int fd, FileTransfer *x)
{
    ssize_t n = x->is_copy ? host_file_copy_run(x) : write_iov(fd, x);
    x->backend_data = (void *)(intptr_t)n;
    return CALL_BYTES + (n < 0 ? 0 : (size_t)n);
}

static void announce_written(HostFile *h)
{
    if (!atomic_exchange(&h->is_written_call_posted, true))
        loop_post(&h->host->io.loop, &h->written_call);
}

// What is done is announced before anything else may take long. What is written last is left to the
// end of the job, whose message comes anyway.
static void write_job_run(WorkerJob *job)
{
    HostFile *h = (HostFile *)((char *)job - offsetof(HostFile, write_job));
    size_t bytes = 0, n_announced = 0;
    for (FileTransfer *x = NULL, *next;; x = next) {
        bool is_handed_over = !x;
        if (!x && (bytes >= JOB_BYTES || !(x = take_in_order(&h->writes))))
            return;
        if (bytes - n_announced >= (is_handed_over ? 1 : ANSWER_BYTES)) {
            n_announced = bytes;
            announce_written(h);
        }
        next = x->next;
        bytes += write_one(h->fd, x);
        push(&h->written, x, x);
    }
}

static void start_write_job(HostFile *h)
{
    h->is_job_under_way = true;
    host_device_submit(h->device, &h->write_job);
}

static void write_job_done(DeviceJob *job)
{
    HostFile *h = (HostFile *)((char *)job - offsetof(HostFile, write_job));
    h->is_job_under_way = false;
    end_written(h);
    if (has_writes(h))
        start_write_job(h);
    else
        fiber_queue_wake_all(&h->job_ended);
}

void host_file_init_writes(HostFile *h)
{
    h->written_call.fn = written_came;
    h->write_job.job.run = write_job_run;
    h->write_job.done = write_job_done;
}

void host_file_add_write(HostFile *h, FileTransfer *x)
{
    h->host->io.n_buffered_writes++;
    x->next = h->first_new_write;
    h->first_new_write = x;
    if (!h->last_new_write)
        h->last_new_write = x;
    if (h->is_dirty)
        return;
    h->is_dirty = true;
    h->next_dirty = h->host->dirty_files;
    h->host->dirty_files = h;
}

void host_file_dispatch_writes(HostLoop *host)
{
    HostFile *h = host->dirty_files;
    host->dirty_files = NULL;
    for (; h; h = h->next_dirty) {
        h->is_dirty = false;
        push(&h->writes, h->first_new_write, h->last_new_write);
        h->first_new_write = h->last_new_write = NULL;
        if (!h->is_job_under_way)
            start_write_job(h);
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
    struct io_uring_sqe *sqe = host_ring_get_sqe(&h->host->ring, &x->op);
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
        if (x->is_write ||
            !fixed_buffers_try_read(&h->host->fixed_buffers, &h->host->ring, x, h->fd))
            submit_to_ring(x);
    } else if (!x->is_write) {
        submit_buffered_read(h, x);
    } else {
        host_file_add_write(h, x);
    }
}

// --- flushes -------------------------------------------------------------------------------------

// Waits where the device has enough to do. What fails is the next sync's to tell: this reads no
// error, and so takes none from it.
static void write_out_run(WorkerJob *job)
{
    const HostFile *h = (HostFile *)((char *)job - offsetof(HostFile, write_out_job));
    sync_file_range(h->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

static void write_out_done(DeviceJob *job)
{
    HostFile *h = (HostFile *)((char *)job - offsetof(HostFile, write_out_job));
    h->is_writing_out = false;
    fiber_queue_wake_all(&h->job_ended);
}

static void write_out(File *file)
{
    HostFile *h = host_file(file);
    if (h->is_writing_out)
        return;
    h->is_writing_out = true;
    h->write_out_job = (DeviceJob){.job.run = write_out_run, .done = write_out_done};
    host_device_submit(h->device, &h->write_out_job);
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

// No write is left, but the job that made the last one may not have ended. Its message comes after
// all that it announced.
static void wait_for_jobs(Fiber *self, HostFile *h)
{
    while (h->is_job_under_way || h->is_writing_out)
        fiber_queue_wait(self, &h->job_ended, false, "end of writes");
    assert(!h->first_new_write && !has_writes(h) && !h->is_dirty && !h->is_written_call_posted);
}

static void detach(Fiber *self, File *file)
{
    HostFile *h = host_file(file);
    wait_for_jobs(self, h);
    host_device_unref(g_steal_pointer(&h->device));
}

static void attach(File *file)
{
    HostFile *h = host_file(file);
    h->host = (HostLoop *)file->loop;
    h->device = host_device_ref(h->host, file->identity[file->is_block_device ? 1 : 0]);
}

static int close_fd(void *arg)
{
    close(*(int *)arg);
    return 0;
}

static void file_close_op(Fiber *self, File *file)
{
    HostFile *h = host_file(file);
    wait_for_jobs(self, h);
    host_file_call(self, h, close_fd, &h->fd);
    host_device_unref(h->device);
    warm_map_done(&h->warm);
    free(h->copy_buffer);
    file_done(file);
    g_free(h);
}

const FileOps host_file_ops = {
    .try_read = try_read,
    .try_write = try_write,
    .submit = submit,
    .write_tail = host_file_write_tail,
    .flush = flush,
    .write_out = write_out,
    .zero = host_file_zero,
    .reserve = host_file_reserve,
    .discard = host_file_discard,
    .copy = host_file_copy,
    .may_copy = host_file_may_copy,
    .truncate = host_file_truncate,
    .find_extent = host_file_find_extent,
    .get_size = host_file_get_size,
    .get_stamp = host_file_get_stamp,
    .get_allocated = host_file_get_allocated,
    .get_free = host_file_get_free,
    .lock = host_file_lock,
    .detach = detach,
    .attach = attach,
    .make_writable = host_file_make_writable,
    .set_direct = host_file_set_direct,
    .close = file_close_op,
};
