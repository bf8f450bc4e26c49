// SPDX-License-Identifier: LGPL-2.1-or-later
// Files, above their back ends: inline transfers first, the rest through the back end; short
// transfers continued; zeros past the end; shared and sticky flushes. Direct I/O branches off to
// file-direct.c, what changes a file's space is in file-space.c. On the file's loop.
//
// A read of cached data is one call of FileOps.try_read() and a comparison: no allocation, no list.
#include "io/file-private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "chain-core/mutant.h"
#include "io/io-loop.h"
#include "io/iov.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

void file_init(File *file, const FileOps *ops, Loop *loop, const char *path, FileOpenFlags flags)
{
    *file = (File){
        .ops = ops,
        .loop = loop,
        .path = g_strdup(path),
        .alignment = 1,
        .address_alignment = 1,
        .zero_alignment = 1,
        .write_threshold = UINT64_MAX,
        .n_refs = 1,
        .is_writable = flags & FILE_WRITABLE,
        .is_direct = flags & FILE_DIRECT,
        .host_may_write = flags & FILE_WRITABLE,
    };
}

void file_done(File *file)
{
    assert(!file->first_range && !file->first_bounce && !file->n_bouncing);
    assert(!file->flush_waiters.first);
    g_clear_pointer(&file->path, g_free);
}

int file_open(Fiber *self, const char *path, FileOpenFlags flags, File **ret_file, GError **error)
{
    const IoBackend *backend = io_loop_of(self->loop)->backend;
    return backend->file_open(self, self->loop, path, flags, ret_file, error);
}

File *file_ref(File *file)
{
    file->n_refs++;
    return file;
}

void file_close(Fiber *self, File *file)
{
    if (!file || --file->n_refs > 0)
        return;
    fiber_mutex_lock(self, &file->lock_mutex); // whoever changes its locks still uses it
    fiber_mutex_unlock(self, &file->lock_mutex);
    file->ops->close(self, file);
}

bool file_is_shared(const File *file)
{
    return file->n_refs > 1;
}

void file_detach(Fiber *self, File *file)
{
    if (file->is_detached)
        return;
    assert(!file->n_changing && !file->is_flushing && !file->flush_waiters.first);
    assert(!file->first_range && !file->first_bounce && !file->n_bouncing);
    if (file->ops->detach)
        file->ops->detach(self, file);
    file->is_detached = true;
}

void file_attach(File *file, Loop *loop)
{
    if (!file->is_detached)
        return;
    file->is_detached = false;
    file->loop = loop;
    if (file->ops->attach)
        file->ops->attach(file);
}

const char *file_path(const File *file)
{
    return file->path;
}

Loop *file_loop(const File *file)
{
    return file->loop;
}

bool file_is_writable(const File *file)
{
    return file->is_writable;
}

bool file_is_block_device(const File *file)
{
    return file->is_block_device;
}

bool file_is_in_memory(const File *file)
{
    return file->is_in_memory;
}

void file_identity(const File *file, uint64_t ret_id[2])
{
    memcpy(ret_id, file->identity, sizeof(file->identity));
}

uint64_t file_size(const File *file)
{
    return file->size;
}

uint32_t file_alignment(const File *file)
{
    return file->alignment;
}

unsigned file_n_buffered_writes(Loop *loop)
{
    return io_loop_of(loop)->n_buffered_writes;
}

int file_refresh_size(Fiber *self, File *file)
{
    uint64_t size, n_changes = file->n_changes;
    int r = file->ops->get_size(self, file, &size);
    if (r < 0)
        return r;
    // What was written while the host was asked may not be in it.
    file->size = file->n_changes != n_changes ? MAX(size, file->size) : size;
    file->extent_start = file->extent_end = 0;
    return 0;
}

void file_set_write_threshold(File *file, uint64_t off, FileThresholdFn *fn, void *arg)
{
    file->write_threshold = off ? off : UINT64_MAX;
    file->threshold_fn = fn;
    file->threshold_arg = arg;
}

bool file_has_write_threshold(const File *file)
{
    return file->write_threshold != UINT64_MAX;
}

// All that there is changes where the size does: that is no write.
static void cross_threshold(File *file, uint64_t end)
{
    uint64_t beyond = end - file->write_threshold;
    if (end == UINT64_MAX)
        return;
    file->write_threshold = UINT64_MAX;
    file->threshold_fn(file->threshold_arg, beyond);
}

void file_note_change(File *file, uint64_t off, uint64_t len)
{
    if (unlikely(off + len > file->write_threshold))
        cross_threshold(file, off + len);
    file->n_changes++;
    if (off < file->extent_end && off + len > file->extent_start)
        file->extent_start = file->extent_end = 0;
}

void file_note_end(File *file, uint64_t end)
{
    if (end > file->size && !file->is_block_device)
        file->size = end;
}

void file_set_event_fn(File *file, FileEventFn *fn, void *arg)
{
    file->event_fn = fn;
    file->event_arg = arg;
}

void file_tell(File *file, FileEventKind kind, uint64_t off, int error)
{
    if (file->event_fn)
        file->event_fn(file, &(FileEvent){kind, off, error}, file->event_arg);
}

int file_check_size(Fiber *self, File *file)
{
    uint64_t size, n_changes = file->n_changes;
    if (file->n_changing)
        return 0;
    int r = file->ops->get_size(self, file, &size);
    if (r < 0)
        return r;
    if (file->n_changes != n_changes || size == file->size || size == file->told_size)
        return 0;
    // A device that grew, as a logical volume does, was made to: what lies on it takes that up.
    if (file->is_block_device && size > file->size)
        return 0;
    file->told_size = size;
    file_tell(file, FILE_EVENT_RESIZED, size, 0);
    return 0;
}

int file_told(File *file, FileEventKind kind, uint64_t off, int r)
{
    if (unlikely(r < 0 && r != -ENOTSUP))
        file_tell(file, kind, off, r);
    return r;
}

static void batch_fail(IoBatch *batch, int error)
{
    if (!batch->error)
        batch->error = error;
}

int file_space_error(int r)
{
    return r == -EDQUOT ? -ENOSPC : r;
}

int file_write_result(File *file, uint64_t off, int r)
{
    return file_told(file, FILE_EVENT_WRITE_FAILED, off, file_space_error(r));
}

// --- transfers -----------------------------------------------------------------------------------

enum { FREE_TRANSFERS_MAX = 4096, MAX_RETRIES = 1000 };

static void transfer_op_done(LoopOp *op, int result)
{
    file_transfer_done((FileTransfer *)op, result);
}

FileTransfer *file_transfer_new(File *file, bool is_write, uint64_t off, const struct iovec *iov,
                                unsigned n_iov, IoBatch *batch)
{
    assert(n_iov <= FILE_MAX_IOV);
    IoLoop *io = io_loop_of(file->loop);
    FileTransfer *x = io->free_transfers;
    if (x) {
        io->free_transfers = x->next;
        io->n_free_transfers--;
    } else {
        x = g_new(FileTransfer, 1);
    }
    x->op.done = transfer_op_done;
    x->file = file;
    x->batch = batch;
    x->bounce = NULL;
    x->off = off;
    x->n_left_iov = n_iov;
    x->first_iov = 0;
    x->is_write = is_write;
    x->is_copy = false;
    x->n_retries = 0;
    x->range = (FileRange){0};
    x->next = NULL;
    x->backend_data = NULL;
    memcpy(x->iov, iov, n_iov * sizeof(*iov));
    file->n_changing += is_write;
    if (batch)
        io_batch_begin(batch);
    return x;
}

static void transfer_advance(FileTransfer *x, size_t n)
{
    unsigned used = iov_advance(x->iov + x->first_iov, x->n_left_iov, n);
    x->first_iov += used;
    x->n_left_iov -= used;
    x->off += n;
}

static void transfer_free(FileTransfer *x)
{
    IoLoop *io = io_loop_of(x->file->loop);
    if (io->n_free_transfers == FREE_TRANSFERS_MAX) {
        g_free(x);
        return;
    }
    x->next = io->free_transfers;
    io->free_transfers = x;
    io->n_free_transfers++;
}

void file_transfer_drop(FileTransfer *x)
{
    x->file->n_changing -= x->is_write;
    file_bounce_free(x->bounce);
    transfer_free(x);
}

static void transfer_end(FileTransfer *x, int result)
{
    File *file = x->file;
    if (unlikely(result < 0))
        file_tell(file, x->is_write ? FILE_EVENT_WRITE_FAILED : FILE_EVENT_READ_FAILED, x->off,
                  result);
    if (x->is_write) {
        file->n_changing--;
        file_note_end(file, x->off);
        file_note_change(file, 0, UINT64_MAX);
        if (x->range.end)
            file_range_unlock(file, &x->range);
    }
    IoBatch *batch = x->batch;
    Bounce *bounce = x->bounce;
    transfer_free(x);
    if (batch)
        io_batch_end(batch, result);
    else
        file_bounce_read_done(bounce, result);
}

static void transfer_zero_rest(FileTransfer *x)
{
    for (unsigned i = 0; i < x->n_left_iov; i++)
        memset(x->iov[x->first_iov + i].iov_base, 0, x->iov[x->first_iov + i].iov_len);
    transfer_end(x, 0);
}

// A host that keeps answering that it be asked again would otherwise keep us busy for ever.
static void transfer_failed(FileTransfer *x, int error)
{
    if (error != -EINTR && error != -EAGAIN)
        transfer_end(x, file_space_error(error));
    else if (++x->n_retries > MAX_RETRIES)
        transfer_end(x, -EIO);
    else
        x->file->ops->submit(x);
}

void file_transfer_done(FileTransfer *x, ssize_t result)
{
    File *file = x->file;
    if (unlikely(result < 0)) {
        transfer_failed(x, (int)result);
        return;
    }
    x->n_retries = 0;
    // The end of a file can lie within a block; what direct I/O left over starts at a block.
    bool is_end = !x->is_write && (result == 0 || result % file->alignment);
    if (x->is_write)
        result -= result % file->alignment;
    transfer_advance(x, (size_t)result);
    if (likely(x->n_left_iov == 0))
        transfer_end(x, 0);
    else if (x->is_write && result == 0)
        transfer_end(x, -EIO);
    else if (is_end || (!x->is_write && x->off >= file->size))
        transfer_zero_rest(x);
    else
        file->ops->submit(x);
}

// What try_read() left, `n` its result.
static void read_rest(File *file, uint64_t off, uint8_t *buf, size_t len, ssize_t n, IoBatch *batch)
{
    if (n < 0 && n != -EAGAIN) {
        file_tell(file, FILE_EVENT_READ_FAILED, off, (int)n);
        batch_fail(batch, (int)n);
        return;
    }
    if (n > 0) {
        off += (size_t)n;
        buf += n;
        len -= (size_t)n;
    }
    if (off >= file->size) {
        memset(buf, 0, len);
        return;
    }
    struct iovec iov = {buf, len};
    file->ops->submit(file_transfer_new(file, false, off, &iov, 1, batch));
}

void file_read_start(File *file, HostOff off, void *buf, size_t len, IoBatch *batch)
{
    if (unlikely(file->alignment > 1)) {
        file_direct_read_start(file, off.v, buf, len, batch);
        return;
    }
    ssize_t n = file->ops->try_read(file, off.v, buf, len);
    if (unlikely(n != (ssize_t)len))
        read_rest(file, off.v, buf, len, n, batch);
}

void file_write_start(File *file, HostOff off, const struct iovec *iov, unsigned n_iov,
                      IoBatch *batch)
{
    assert(file->is_writable);
    if (unlikely(file->alignment > 1)) {
        file_direct_write_start(file, off.v, iov, n_iov, batch);
        return;
    }
    size_t len = iov_bytes(iov, n_iov);
    if (len == 0)
        return;
    file_note_change(file, off.v, len);
    ssize_t n = file->ops->try_write(file, off.v, iov, n_iov);
    if (n > 0)
        file_note_end(file, off.v + (size_t)n);
    if (likely(n == (ssize_t)len))
        return;
    if (n < 0 && n != -EAGAIN) {
        file_tell(file, FILE_EVENT_WRITE_FAILED, off.v, (int)n);
        batch_fail(batch, file_space_error((int)n));
        return;
    }
    FileTransfer *x = file_transfer_new(file, true, off.v, iov, n_iov, batch);
    if (n > 0)
        transfer_advance(x, (size_t)n);
    file->ops->submit(x);
}

void file_read_data_start(File *file, HostOff off, void *buf, size_t len, IoBatch *batch)
{
    if (unlikely(file->ops->debug_event))
        file->ops->debug_event(file, DEBUG_READ_AIO);
    file_read_start(file, off, buf, len, batch);
}

void file_write_data_start(File *file, HostOff off, const struct iovec *iov, unsigned n_iov,
                           IoBatch *batch)
{
    if (unlikely(file->ops->debug_event))
        file->ops->debug_event(file, DEBUG_WRITE_AIO);
    file_write_start(file, off, iov, n_iov, batch);
}

int file_read(Fiber *self, File *file, HostOff off, void *buf, size_t len)
{
    IoBatch batch;
    io_batch_init(&batch, self);
    file_read_start(file, off, buf, len, &batch);
    return io_batch_wait(self, &batch);
}

int file_write(Fiber *self, File *file, HostOff off, const void *buf, size_t len)
{
    IoBatch batch;
    struct iovec iov = {(void *)buf, len};
    io_batch_init(&batch, self);
    file_write_start(file, off, &iov, 1, &batch);
    return io_batch_wait(self, &batch);
}

// --- flush ---------------------------------------------------------------------------------------

static void note_flush_failed(File *file, int error)
{
    file->has_flush_failed = !MUTANT("failed-sync-sticks"); // for good, so this happens once
    file_tell(file, FILE_EVENT_FLUSH_FAILED, 0, error);
}

// A sync that was already under way when the caller came may have missed its last write, so the
// caller needs the next one; all who come meanwhile share that next one.
int file_flush(Fiber *self, File *file)
{
    uint64_t needed = file->flush_started + !MUTANT("shared-sync-starts-later");
    while (!file->has_flush_failed && file->flush_done < needed) {
        if (file->is_flushing) {
            fiber_queue_wait(self, &file->flush_waiters, false, "flush of another");
            continue;
        }
        uint64_t number = ++file->flush_started;
        file->is_flushing = true;
        int r = file->ops->flush(self, file);
        file->is_flushing = false;
        if (r < 0)
            note_flush_failed(file, r);
        else
            file->flush_done = number;
        fiber_queue_wake_all(&file->flush_waiters);
        if (r < 0)
            return r;
    }
    return file->flush_done >= needed ? 0 : -EIO;
}

bool file_flush_failed(const File *file)
{
    return file->has_flush_failed;
}

void file_write_out(File *file)
{
    if (file->ops->write_out && file->alignment == 1 && !file->is_in_memory)
        file->ops->write_out(file);
}

// --- names -----------------------------------------------------------------------------------

int file_rename(Fiber *self, const char *from, const char *to, GError **error)
{
    return io_loop_of(self->loop)->backend->file_rename(self, from, to, error);
}

int file_unlink(Fiber *self, const char *path, GError **error)
{
    return io_loop_of(self->loop)->backend->file_unlink(self, path, error);
}

int file_sync_dir(Fiber *self, const char *path_in_dir, GError **error)
{
    return io_loop_of(self->loop)->backend->file_sync_dir(self, path_in_dir, error);
}
