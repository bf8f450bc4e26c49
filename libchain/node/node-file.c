// SPDX-License-Identifier: LGPL-2.1-or-later
// The back end of such files: each operation is one on the node. On its loop.
#include "chain-core/node-file.h"

#include <errno.h>

#include "base/error.h"
#include "io/file-private.h"

typedef struct NodeFile {
    File file;
    Node *node; // a reference
} NodeFile;

static Node *node_of(const File *file)
{
    return ((const NodeFile *)file)->node;
}

static bool is_inside(const File *file, uint64_t off, uint64_t len)
{
    uint64_t size = node_of(file)->size_bytes;
    return off <= size && len <= size - off;
}

// --- transfers -----------------------------------------------------------------------------------

static ssize_t op_try_read(File *file, uint64_t off, void *buf, size_t len)
{
    return -EAGAIN;
}

static ssize_t op_try_write(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov)
{
    return -EAGAIN;
}

static ssize_t transfer_one(Fiber *self, const FileTransfer *x)
{
    Node *node = node_of(x->file);
    const struct iovec *iov = &x->iov[x->first_iov];
    size_t len = iov->iov_len;
    int r;
    if (x->is_write && !is_inside(x->file, x->off, len))
        return -ENOSPC;
    if (!x->is_write && x->off >= node->size_bytes)
        return 0;
    if (x->is_write) {
        r = node_write(self, node, guest_off(x->off), iov->iov_base, len, 0);
    } else {
        len = MIN(len, node->size_bytes - x->off);
        r = node_read(self, node, guest_off(x->off), iov->iov_base, len);
    }
    return r < 0 ? r : (ssize_t)len;
}

// One piece at a time: what is left is submitted again.
static void transfer_fiber(Fiber *self, void *arg)
{
    FileTransfer *x = arg;
    file_transfer_done(x, transfer_one(self, x));
}

static void op_submit(FileTransfer *x)
{
    if (fiber_spawn_reserve(x->file->loop, "file on a node", transfer_fiber, x) < 0)
        file_transfer_done(x, -ENOMEM);
}

// --- the rest ------------------------------------------------------------------------------------

static int op_flush(Fiber *self, File *file)
{
    return node_flush(self, node_of(file));
}

static int op_zero(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags)
{
    NodeIoFlags node_flags = (flags & FILE_ZERO_UNMAP ? 0 : NODE_IO_NO_UNMAP) |
                             (flags & FILE_ZERO_FAST ? NODE_IO_FAST_ZERO : 0);
    if (!is_inside(file, off, len))
        return -ENOSPC;
    return node_zero(self, node_of(file), guest_off(off), len, node_flags);
}

static int op_reserve(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    return is_inside(file, off, len) ? 0 : -ENOSPC;
}

static int op_discard(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    return is_inside(file, off, len) ? node_discard(self, node_of(file), guest_off(off), len, 0)
                                     : 0;
}

static int op_truncate(Fiber *self, File *file, uint64_t size)
{
    return size == node_of(file)->size_bytes ? 0 : -ENOTSUP;
}

static int op_find_extent(Fiber *self, File *file, uint64_t off, uint64_t len, bool *ret_is_data,
                          uint64_t *ret_len)
{
    NodeExtent extent;
    int r = node_status(self, node_of(file), guest_off(off), len, &extent);
    if (r < 0)
        return r;
    *ret_is_data = extent.kind == NODE_EXTENT_DATA || extent.kind == NODE_EXTENT_OPAQUE;
    *ret_len = extent.len;
    return 0;
}

static int op_get_size(Fiber *self, File *file, uint64_t *ret_size)
{
    *ret_size = node_of(file)->size_bytes;
    return 0;
}

static int op_lock(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    return 0;
}

static int op_make_writable(Fiber *self, File *file, GError **error)
{
    return error_set(error, -EROFS, "the node '%s' is read-only", node_of(file)->name);
}

static void op_detach(Fiber *self, File *file)
{
    if (node_of(file)->ops->detach)
        node_of(file)->ops->detach(self, node_of(file));
}

static void op_attach(File *file)
{
    node_of(file)->loop = file->loop;
    if (node_of(file)->ops->attach)
        node_of(file)->ops->attach(node_of(file));
}

static void op_close(Fiber *self, File *file)
{
    node_unref_close(self, node_of(file));
    file_done(file);
    g_free(file);
}

static const FileOps ops = {
    .try_read = op_try_read,
    .try_write = op_try_write,
    .submit = op_submit,
    .flush = op_flush,
    .zero = op_zero,
    .reserve = op_reserve,
    .discard = op_discard,
    .truncate = op_truncate,
    .find_extent = op_find_extent,
    .get_size = op_get_size,
    .lock = op_lock,
    .make_writable = op_make_writable,
    .detach = op_detach,
    .attach = op_attach,
    .close = op_close,
};

int node_file_new(Node *node, bool is_writable, File **ret_file, GError **error)
{
    if (is_writable && node->read_only)
        return error_set(error, -EACCES, "the node '%s' is read-only", node->name);
    NodeFile *f = g_new0(NodeFile, 1);
    file_init(&f->file, &ops, node->loop, node->name, is_writable ? FILE_WRITABLE : 0);
    f->file.size = node->size_bytes;
    f->file.is_block_device = true;
    f->node = node_ref(node);
    *ret_file = &f->file;
    return 0;
}
