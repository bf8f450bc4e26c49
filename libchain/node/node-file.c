// SPDX-License-Identifier: LGPL-2.1-or-later
// The back end of such files: each operation is one on the node. On its loop.
#include "chain-core/node-file.h"

#include <errno.h>

#include "base/error.h"
#include "io/file-private.h"
#include "node/node-edge.h"

typedef struct NodeFile {
    File file;
    Node *node; // a reference
} NodeFile;

static Node *node_of(const File *file)
{
    return ((const NodeFile *)file)->node;
}

// The node that the filters stand on.
static Node *bottom_of(Node *node)
{
    while (node->ops->is_filter)
        node = node->backing;
    return node;
}

// Whether a change may end there, and with which flag: it may end past a node that grows.
static int check_end(const File *file, uint64_t off, uint64_t len, NodeIoFlags *ret_flags)
{
    uint64_t size = node_of(file)->size_bytes;
    *ret_flags = 0;
    if (off <= size && len <= size - off)
        return 0;
    *ret_flags = NODE_IO_GROW;
    if (file->is_block_device)
        return -ENOSPC;
    return off <= INT64_MAX && len <= INT64_MAX - off ? 0 : -EFBIG;
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
    NodeIoFlags flags;
    int r;
    if (!x->is_write && x->off >= node->size_bytes)
        return 0;
    if (x->is_write) {
        r = check_end(x->file, x->off, len, &flags);
        if (r == 0)
            r = node_write(self, node, guest_off(x->off), iov->iov_base, len, flags);
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

static void op_debug_event(File *file, DebugEvent event)
{
    if (node_of(file)->ops->debug_event)
        node_of(file)->ops->debug_event(node_of(file), event);
}

static int op_flush(Fiber *self, File *file)
{
    op_debug_event(file, DEBUG_FLUSH_TO_DISK);
    return node_flush(self, node_of(file));
}

static int op_zero(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags)
{
    NodeIoFlags node_flags;
    int r = check_end(file, off, len, &node_flags);
    node_flags |= (flags & FILE_ZERO_UNMAP ? 0 : NODE_IO_NO_UNMAP) |
                  (flags & FILE_ZERO_FAST ? NODE_IO_FAST_ZERO : 0);
    return r < 0 ? r : node_zero(self, node_of(file), guest_off(off), len, node_flags);
}

static int op_reserve(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    NodeIoFlags flags;
    int r = check_end(file, off, len, &flags);
    return r < 0 ? r : node_reserve(self, node_of(file), guest_off(off), len);
}

static int op_discard(Fiber *self, File *file, uint64_t off, uint64_t len)
{
    Node *node = node_of(file);
    uint64_t end = MIN(off + len, node->size_bytes);
    return off < end ? node_discard(self, node, guest_off(off), end - off, 0) : 0;
}

// Drains what enters above the node: only where no request is inside.
static int op_truncate(Fiber *self, File *file, uint64_t size)
{
    Node *node = node_of(file);
    return size == node->size_bytes ? 0 : node_resize(self, node, size, NULL);
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
    int r = node_remeasure(self, node_of(file));
    *ret_size = node_of(file)->size_bytes;
    return r;
}

static int op_get_stamp(Fiber *self, File *file, FileStamp *ret_stamp)
{
    File *below = node_file(bottom_of(node_of(file)));
    return below && below->ops->get_stamp ? below->ops->get_stamp(self, below, ret_stamp)
                                          : -ENOTSUP;
}

static int op_lock(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error)
{
    return node_lock(self, node_of(file), held, unshared, error);
}

static bool op_may_be_written(const File *file)
{
    return !node_of(file)->read_only;
}

// Nobody above is drained, as for node_set_writable(): only this file is above it, and the filters.
static int set_mode_below(Fiber *self, File *file, bool is_writable, GError **error)
{
    Node *bottom = bottom_of(node_of(file));
    int r = 0;
    if (bottom->ops->is_file)
        r = file_set_mode(self, node_file(bottom), is_writable, error);
    else if (is_writable && bottom->read_only)
        r = node_set_writable(self, bottom, true, error);
    for (Node *node = node_of(file); r == 0 && node != bottom; node = node->backing)
        node_mode_changed(node, is_writable);
    return r;
}

static int op_make_writable(Fiber *self, File *file, GError **error)
{
    return set_mode_below(self, file, true, error);
}

static void op_make_read_only(Fiber *self, File *file)
{
    set_mode_below(self, file, false, NULL);
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
    .get_stamp = op_get_stamp,
    .debug_event = op_debug_event,
    .lock = op_lock,
    .may_be_written = op_may_be_written,
    .make_writable = op_make_writable,
    .make_read_only = op_make_read_only,
    .close = op_close,
};

// Where images look for what their names are relative to.
static const char *path_of(Node *node)
{
    const File *file = node_file(bottom_of(node));
    return file ? file_path(file) : node->name;
}

int node_file_new(Node *node, bool is_writable, File **ret_file, GError **error)
{
    if (is_writable && node->read_only)
        return error_set(error, -EACCES, "the node '%s' is read-only", node->name);
    NodeFile *f = g_new0(NodeFile, 1);
    file_init(&f->file, &ops, node->loop, path_of(node), is_writable ? FILE_WRITABLE : 0);
    f->file.size = node->size_bytes;
    f->file.is_block_device = !node_can_grow(node);
    f->node = node_ref(node);
    *ret_file = &f->file;
    return 0;
}

Node *node_file_node(const File *file)
{
    return file->ops == &ops ? node_of(file) : NULL;
}

void node_file_follow(File *file)
{
    if (file->ops != &ops)
        return;
    Node *bottom = bottom_of(node_of(file));
    if (bottom->ops->is_file)
        node_note_end(bottom, file_size(node_file(bottom))); // without memory bitmaps stay
    file->size = MAX(file->size, node_of(file)->size_bytes);
}
