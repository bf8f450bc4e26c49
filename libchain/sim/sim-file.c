// SPDX-License-Identifier: LGPL-2.1-or-later
// Open files of the simulation: transfers and the blocking operations, each in two steps, when the
// disk gets it (the hook is asked, it is in flight) and when it ends (it takes effect, or failed).
// Contents and names are kept by sim-inode.c and sim-disk.c. On the file's loop.
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "io/file-private.h"
#include "io/iov.h"
#include "sim/sim-private.h"

typedef struct SimFile {
    File file;
    Sim *sim;
    SimInode *inode;
    unsigned held, unshared;
    unsigned n_written_out;
} SimFile;

static SimFile *sim_file(File *file)
{
    return (SimFile *)file;
}

// --- transfers -----------------------------------------------------------------------------------

typedef struct Transfer {
    SimEvent event;
    FileTransfer *x;
    SimChange *change; // writes
    uint64_t len;
    int error;
    bool is_read; // a read that has its data already
} Transfer;

// How much of a transfer the host does at once: all, or with short_transfers at times less. It is
// cut between sectors: disks and page caches keep sectors whole.
static uint64_t cut_short(Sim *sim, const File *file, uint64_t off, uint64_t len)
{
    uint64_t unit = MAX(file->alignment, SIM_SECTOR_BYTES);
    uint64_t start = off % unit, blocks = (start + len + unit - 1) / unit;
    if (!sim->config.short_transfers || blocks < 2 || !sim_random_chance(&sim->random, 20))
        return len;
    return (1 + sim_random_below(&sim->random, blocks - 1)) * unit - start;
}

static uint64_t read_now(SimFile *f, uint64_t off, const struct iovec *iov, unsigned n_iov,
                         uint64_t len)
{
    uint64_t size = f->inode->now.size, n = off >= size ? 0 : MIN(len, size - off), left = n;
    for (unsigned i = 0; i < n_iov && left > 0; i++) {
        size_t part = MIN(left, iov[i].iov_len);
        sim_content_read(&f->inode->now, off, iov[i].iov_base, part);
        off += part, left -= part;
    }
    return n;
}

static uint64_t hash_read(const Transfer *t)
{
    const FileTransfer *x = t->x;
    uint64_t hash = 0, left = x->is_write || t->error ? 0 : t->len;
    for (unsigned i = 0; i < x->n_left_iov && left > 0; i++) {
        const struct iovec *iov = &x->iov[x->first_iov + i];
        size_t n = MIN(left, iov->iov_len);
        hash = sim_hash_bytes(hash, iov->iov_base, n);
        left -= n;
    }
    return hash;
}

static void transfer_end(SimEvent *event)
{
    Transfer *t = (Transfer *)event;
    FileTransfer *x = t->x;
    SimFile *f = sim_file(x->file);
    ssize_t result = t->error;
    sim_trace(f->sim, x->is_write, x->off);
    bool has_space = !t->change || sim_has_space(f->sim, f->inode, x->off, t->len);
    if (!has_space)
        t->error = result = -ENOSPC;
    if (t->change && t->error)
        sim_inode_fail(f->inode, t->change, has_space ? &f->sim->random : NULL);
    else if (t->change)
        sim_inode_end(f->inode, t->change, t->len);
    else if (!t->is_read && !t->error)
        t->len = read_now(f, x->off, x->iov + x->first_iov, x->n_left_iov, t->len);
    if (!t->error)
        result = (ssize_t)t->len;
    if (sim_has_choices(f->sim))
        sim_note_received(f->sim, event, sim_mix((uint64_t)result, hash_read(t)));
    g_free(t);
    file_transfer_done(x, result);
}

static void transfer_drop(SimEvent *event)
{
    file_transfer_drop(((Transfer *)event)->x);
    g_free(event);
}

// A device does not grow.
static bool may_end_at(const SimFile *f, uint64_t end)
{
    return !f->inode->is_device || end <= f->inode->now.size;
}

// The disk gets it. A read sees the file as it is now or as it is at the end.
static void transfer_begin(SimEvent *event)
{
    Transfer *t = (Transfer *)event;
    FileTransfer *x = t->x;
    SimFile *f = sim_file(x->file);
    Sim *sim = f->sim;
    const struct iovec *iov = x->iov + x->first_iov;
    SimOp op = x->is_write ? SIM_OP_WRITE : SIM_OP_READ;
    t->error = sim_ask_hook(sim, op, x->file->path, x->off, t->len);
    bool coin = sim_random_chance(&sim->random, 50);
    if (x->is_write && !may_end_at(f, x->off + t->len)) {
        t->error = -ENOSPC;
    } else if (x->is_write) {
        t->change =
            sim_inode_begin(f->inode, SIM_CHANGE_WRITE, x->off, t->len, iov, x->n_left_iov, coin);
    } else if (coin && !t->error) {
        t->len = read_now(f, x->off, iov, x->n_left_iov, t->len);
        t->is_read = true;
    }
    t->event.fn = transfer_end;
    sim_schedule(sim, &t->event);
}

// Both steps at once; a write has been in flight since it was asked for.
static void transfer_happen(SimEvent *event)
{
    Transfer *t = (Transfer *)event;
    const FileTransfer *x = t->x;
    Sim *sim = sim_file(x->file)->sim;
    t->error =
        sim_ask_hook(sim, x->is_write ? SIM_OP_WRITE : SIM_OP_READ, x->file->path, x->off, t->len);
    if (x->is_write && !t->change)
        t->error = -ENOSPC;
    sim->random = sim_random_make(x->off, sim->config.seed); // what a failed one leaves
    transfer_end(event);
}

static void submit_to_chooser(SimFile *f, Transfer *t)
{
    const FileTransfer *x = t->x;
    t->event.fn = transfer_happen;
    t->event.fiber = x->batch ? x->batch->fiber : NULL;
    if (x->is_write && may_end_at(f, x->off + t->len))
        t->change = sim_inode_begin(f->inode, SIM_CHANGE_WRITE, x->off, t->len,
                                    x->iov + x->first_iov, x->n_left_iov, false);
    sim_note_asked(f->sim, &t->event, 0);
}

static void assert_aligned(const FileTransfer *x)
{
    uint64_t a = x->file->alignment, bits = x->off;
    for (unsigned i = 0; i < x->n_left_iov; i++) {
        const struct iovec *iov = &x->iov[x->first_iov + i];
        bits |= iov->iov_len;
    }
    assert(bits % a == 0);
}

static void op_submit(FileTransfer *x)
{
    SimFile *f = sim_file(x->file);
    uint64_t len = iov_bytes(x->iov + x->first_iov, x->n_left_iov);
    assert_aligned(x);
    Transfer *t = g_new(Transfer, 1);
    *t = (Transfer){
        .event = {.fn = transfer_begin, .drop = transfer_drop},
        .x = x,
        .len = cut_short(f->sim, x->file, x->off, len),
    };
    if (f->sim->chooser)
        submit_to_chooser(f, t);
    sim_schedule(f->sim, &t->event);
}

// As from and to the page cache: both steps at once. 0 when it may go on.
static int inline_begin(SimFile *f, SimOp op, uint64_t off, uint64_t len)
{
    if (!f->sim->config.inline_completion || !sim_random_chance(&f->sim->random, 50))
        return -EAGAIN;
    int r = sim_ask_hook(f->sim, op, f->file.path, off, len);
    return r == SIM_POWER_CUT ? -EAGAIN : r;
}

static ssize_t op_try_read(File *file, uint64_t off, void *buf, size_t len)
{
    SimFile *f = sim_file(file);
    len = cut_short(f->sim, file, off, len);
    int r = inline_begin(f, SIM_OP_READ, off, len);
    struct iovec iov = {buf, len};
    return r < 0 ? r : (ssize_t)read_now(f, off, &iov, 1, len);
}

static ssize_t op_try_write(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov)
{
    SimFile *f = sim_file(file);
    uint64_t all = iov_bytes(iov, n_iov), len = cut_short(f->sim, file, off, all);
    if (!may_end_at(f, off + len))
        return -ENOSPC;
    if (!sim_has_space(f->sim, f->inode, off, len))
        return -EAGAIN; // it may have when the disk gets it
    int r = inline_begin(f, SIM_OP_WRITE, off, len);
    if (r == -EAGAIN)
        return r;
    SimChange *change = sim_inode_begin(f->inode, SIM_CHANGE_WRITE, off, all, iov, n_iov, false);
    if (r < 0) {
        sim_inode_fail(f->inode, change, &f->sim->random);
        return r;
    }
    sim_inode_end(f->inode, change, len);
    return (ssize_t)len;
}

// --- operations of a fiber -----------------------------------------------------------------------

typedef struct Ask {
    SimEvent event;
    Fiber *fiber;
    SimOp op;
    const char *path;
    uint64_t off, len;
    int result;
    bool is_answered;
} Ask;

static void ask_end(SimEvent *event)
{
    Ask *ask = (Ask *)event;
    Sim *sim = sim_of_loop(fiber_loop(ask->fiber));
    ask->result = sim_ask_hook(sim, ask->op, ask->path, ask->off, ask->len);
    ask->is_answered = true;
    sim_note_received(sim, event, (uint64_t)ask->result);
    fiber_wake(ask->fiber); // after a power cut it never runs
}

// The disk gets the operation, after a while, and the hook is asked outside the fiber, where the
// stack is larger. 0 or -errno.
static int ask_disk(Fiber *self, Ask *ask, uint64_t detail)
{
    Sim *sim = sim_of_loop(fiber_loop(self));
    ask->event = (SimEvent){.fn = ask_end, .fiber = self};
    ask->fiber = self;
    sim_note_asked(sim, &ask->event, detail);
    sim_schedule(sim, &ask->event);
    while (!ask->is_answered)
        fiber_suspend(self, "sim file operation");
    return ask->result;
}

static int begin_op(Fiber *self, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    return ask_disk(self, &(Ask){.op = op, .path = path, .off = off, .len = len}, 0);
}

static int op_flush(Fiber *self, File *file)
{
    SimFile *f = sim_file(file);
    SimFlush flush = sim_inode_flush_begin(f->inode);
    // Which writes were complete does not follow from which fibers have run.
    int r = ask_disk(self, &(Ask){.op = SIM_OP_FLUSH, .path = file->path}, flush.hash);
    sim_delay(self, "flush");
    if (r < 0)
        sim_inode_flush_fail(f->inode, &flush);
    else
        sim_inode_flush_end(f->inode, &flush);
    return r;
}

// A punch or truncate, in flight for a while.
static int change_inode(Fiber *self, SimFile *f, SimOp op, SimChangeKind kind, uint64_t off,
                        uint64_t len)
{
    SimChange *change = sim_inode_begin(f->inode, kind, off, len, NULL, 0, true);
    int r = begin_op(self, op, f->file.path, off, len);
    sim_delay(self, "sim file operation");
    if (r < 0)
        sim_inode_fail(f->inode, change, &f->sim->random);
    else
        sim_inode_end(f->inode, change, len);
    return r;
}

static int op_write_tail(Fiber *self, File *file, uint64_t off, const void *buf, size_t len)
{
    SimFile *f = sim_file(file);
    struct iovec iov = {(void *)buf, len};
    SimChange *change = sim_inode_begin(f->inode, SIM_CHANGE_WRITE, off, len, &iov, 1, true);
    int r = begin_op(self, SIM_OP_WRITE, file->path, off, len);
    sim_delay(self, "sim file operation");
    if (r < 0)
        sim_inode_fail(f->inode, change, &f->sim->random);
    else
        sim_inode_end(f->inode, change, len);
    return r;
}

static int op_zero(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags)
{
    SimFile *f = sim_file(file);
    if (f->sim->config.no_punch)
        return -ENOTSUP;
    if (!may_end_at(f, off + len))
        return -ENOSPC;
    int r = change_inode(self, f, SIM_OP_ZERO, SIM_CHANGE_PUNCH, off, len);
    if (r == 0 && off + len > f->inode->now.size)
        sim_inode_change(f->inode, SIM_CHANGE_TRUNCATE, off + len, 0, NULL);
    return r;
}

static int op_reserve(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    SimFile *f = sim_file(file);
    if (f->sim->config.no_punch)
        return -ENOTSUP;
    if (!may_end_at(f, off + len))
        return -ENOSPC;
    if (f->inode->is_device)
        return 0;
    int r = begin_op(self, SIM_OP_RESERVE, file->path, off, len);
    if (r == 0 && !sim_has_space(f->sim, f->inode, off, len))
        r = -ENOSPC;
    if (r == 0)
        sim_inode_change(f->inode, SIM_CHANGE_ALLOCATE, off, len, NULL);
    return r;
}

static int op_discard(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    SimFile *f = sim_file(file);
    if (f->sim->config.no_punch)
        return -ENOTSUP;
    // A hint, which may be ignored, unless it is counted what files take.
    if (!f->sim->config.space_bytes && !f->sim->chooser && !sim_random_chance(&f->sim->random, 80))
        len = 0;
    return change_inode(self, f, SIM_OP_DISCARD, SIM_CHANGE_PUNCH, off, len);
}

static int op_truncate(Fiber *self, File *file, uint64_t size)
{
    return change_inode(self, sim_file(file), SIM_OP_TRUNCATE, SIM_CHANGE_TRUNCATE, size, 0);
}

static bool op_may_copy(const File *from, uint64_t from_off, const File *to, uint64_t len)
{
    return ((const SimFile *)to)->sim->config.can_copy;
}

// One write of what the source shows at its beginning.
static int op_copy(Fiber *self, File *from, uint64_t from_off, File *to, uint64_t to_off,
                   uint64_t len)
{
    SimFile *f = sim_file(to);
    bool is_aligned = !((from_off | to_off | len) % SIM_PAGE_BYTES);
    if (!f->sim->config.can_copy || !is_aligned || sim_random_chance(&f->sim->random, 30))
        return -ENOTSUP;
    g_autofree uint8_t *data = g_malloc(len);
    struct iovec iov = {data, len};
    int r = begin_op(self, SIM_OP_WRITE, to->path, to_off, len);
    read_now(sim_file(from), from_off, &iov, 1, len);
    if (r == 0 && (!may_end_at(f, to_off + len) || !sim_has_space(f->sim, f->inode, to_off, len)))
        return -ENOSPC;
    SimChange *change = sim_inode_begin(f->inode, SIM_CHANGE_WRITE, to_off, len, &iov, 1, true);
    sim_delay(self, "copy");
    if (r < 0)
        sim_inode_fail(f->inode, change, &f->sim->random);
    else
        sim_inode_end(f->inode, change, len);
    return r < 0 ? r : sim_random_chance(&f->sim->random, 50);
}

static int op_find_extent(Fiber *self, File *file, uint64_t off, uint64_t len, bool *ret_is_data,
                          uint64_t *ret_len)
{
    SimFile *f = sim_file(file);
    sim_delay(self, "find extent");
    if (off >= f->inode->now.size) { // shrunk meanwhile
        *ret_is_data = false;
        *ret_len = len;
        return 0;
    }
    *ret_is_data = sim_content_find(&f->inode->now, off, len, ret_len);
    return 0;
}

static int op_get_size(Fiber *self, File *file, uint64_t *ret_size)
{
    sim_delay(self, "get size");
    *ret_size = sim_file(file)->inode->now.size;
    return 0;
}

static int op_get_stamp(Fiber *self, File *file, FileStamp *ret_stamp)
{
    const SimInode *inode = sim_file(file)->inode;
    sim_delay(self, "get stamp");
    *ret_stamp = (FileStamp){.size = inode->now.size, .mtime_ns = (int64_t)inode->last_seq};
    return 0;
}

// The rule behind QEMU's byte locks: what one holds, no other may forbid.
static int op_lock(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    SimFile *f = sim_file(file);
    sim_delay(self, "lock");
    for (guint i = 0; i < f->inode->holders->len; i++) {
        const SimFile *other = f->inode->holders->pdata[i];
        if (other == f || !((other->held & unshared) | (other->unshared & held)))
            continue;
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_AGAIN,
                    "cannot lock %s: another open file of the simulation holds it", file->path);
        return -EAGAIN;
    }
    f->held = held;
    f->unshared = unshared;
    return 0;
}

static int op_make_writable(Fiber *self, File *file, GError **error)
{
    int r = begin_op(self, SIM_OP_OPEN, file->path, 0, 0);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "cannot open %s for writing: %s", file->path, g_strerror(-r));
    return r;
}

static void op_close(Fiber *self, File *file)
{
    SimFile *f = sim_file(file);
    sim_delay(self, "close");
    g_ptr_array_remove(f->inode->holders, f);
    sim_inode_unref(f->inode);
    file_done(file);
    g_free(f);
}

static int op_set_direct(Fiber *self, File *file, bool is_direct, GError **error)
{
    file->alignment = is_direct ? ((SimFile *)file)->inode->direct_alignment : 1;
    return 0;
}

// Any write may reach the disk before a flush, so there is nothing to do.
static void op_write_out(File *file)
{
    sim_file(file)->n_written_out++;
}

unsigned sim_file_n_written_out(const File *file)
{
    return ((const SimFile *)file)->n_written_out;
}

static const FileOps file_ops = {
    .try_read = op_try_read,
    .try_write = op_try_write,
    .submit = op_submit,
    .write_tail = op_write_tail,
    .flush = op_flush,
    .write_out = op_write_out,
    .zero = op_zero,
    .reserve = op_reserve,
    .discard = op_discard,
    .truncate = op_truncate,
    .copy = op_copy,
    .may_copy = op_may_copy,
    .find_extent = op_find_extent,
    .get_size = op_get_size,
    .get_stamp = op_get_stamp,
    .lock = op_lock,
    .make_writable = op_make_writable,
    .set_direct = op_set_direct,
    .close = op_close,
};

// --- names ---------------------------------------------------------------------------------------

static int fail(int r, const char *verb, const char *path, GError **error)
{
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "cannot %s %s: %s", verb,
                    path, g_strerror(-r));
    return r;
}

static int provide_inode(Sim *sim, const char *path, FileOpenFlags flags, SimInode **ret_inode)
{
    if (flags & FILE_CREATE)
        return sim_disk_create(&sim->disk, path, ret_inode);
    *ret_inode = sim_disk_find(&sim->disk, path);
    return *ret_inode ? 0 : -ENOENT;
}

int sim_file_open(Fiber *self, Loop *loop, const char *path, FileOpenFlags flags, File **ret_file,
                  GError **error)
{
    Sim *sim = sim_of_loop(loop);
    SimInode *inode = NULL;
    int r = begin_op(self, SIM_OP_OPEN, path, 0, 0);
    if (r == 0)
        r = provide_inode(sim, path, flags, &inode);
    if (r < 0)
        return fail(r, flags & FILE_CREATE ? "create" : "open", path, error);
    SimFile *f = g_new0(SimFile, 1);
    file_init(&f->file, &file_ops, loop, path, flags);
    f->file.size = inode->now.size;
    f->file.identity[0] = sim->device;
    f->file.identity[1] = inode->ino;
    f->file.is_block_device = inode->is_device;
    f->file.alignment = flags & FILE_DIRECT ? inode->direct_alignment : 1;
    f->sim = sim;
    f->inode = sim_inode_ref(inode);
    g_ptr_array_add(inode->holders, f);
    sim_delay(self, "open");
    *ret_file = &f->file;
    return 0;
}

int sim_file_rename(Fiber *self, const char *from, const char *to, GError **error)
{
    int r = begin_op(self, SIM_OP_RENAME, from, 0, 0);
    if (r == 0)
        r = sim_disk_rename(&sim_of_loop(fiber_loop(self))->disk, from, to);
    return fail(r, "rename", from, error);
}

int sim_file_unlink(Fiber *self, const char *path, GError **error)
{
    int r = begin_op(self, SIM_OP_UNLINK, path, 0, 0);
    if (r == 0)
        r = sim_disk_unlink(&sim_of_loop(fiber_loop(self))->disk, path);
    return fail(r, "remove", path, error);
}

int sim_file_sync_dir(Fiber *self, const char *path_in_dir, GError **error)
{
    SimDisk *disk = &sim_of_loop(fiber_loop(self))->disk;
    uint64_t seq = disk->last_seq;
    int r = begin_op(self, SIM_OP_SYNC_DIR, path_in_dir, 0, 0);
    sim_delay(self, "sync directory");
    if (r == 0)
        sim_disk_sync_dir(disk, path_in_dir, seq);
    return fail(r, "sync the directory of", path_in_dir, error);
}
