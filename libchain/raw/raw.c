// SPDX-License-Identifier: LGPL-2.1-or-later
// The raw driver: guest offset + start of the part = host offset. On the file's loop, in a fiber.
// Write order: FUA is the write, then a flush of the file; nothing else depends on anything.
#include "chain-core/raw.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "chain-core/node-file.h"
#include "node/node-edge.h"

typedef struct RawNode {
    Node node;
    File *file;       // owned
    uint64_t offset;  // host offset of guest offset 0
    bool is_part;     // of the file: its length was given
    bool is_shared;   // another program may write the file
    bool is_inactive; // so it may, and only for now
} RawNode;

static File *raw_file(Node *node)
{
    return ((RawNode *)node)->file;
}

static HostOff raw_host(Node *node, GuestOff off)
{
    return host_off(((RawNode *)node)->offset + off.v);
}

static int raw_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                          IoBatch *batch)
{
    file_read_data_start(raw_file(node), raw_host(node, off), buf, len, batch);
    return 0;
}

static int flush_if_fua(Fiber *self, File *file, NodeIoFlags flags)
{
    return flags & NODE_IO_FUA ? file_flush(self, file) : 0;
}

static int raw_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                     NodeIoFlags flags)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};
    IoBatch batch;
    io_batch_init(&batch, self);
    file_write_data_start(raw_file(node), raw_host(node, off), &iov, 1, &batch);
    int r = io_batch_wait(self, &batch);
    return r < 0 ? r : flush_if_fua(self, raw_file(node), flags);
}

static int raw_write_extent(Fiber *self, Node *node, GuestOff off, const NodeExtent *from,
                            uint64_t *ret_len)
{
    *ret_len = from->len;
    return file_copy(self, from->file, from->host, raw_file(node), raw_host(node, off), from->len);
}

static int raw_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    FileZeroFlags how = 0;
    if (!(flags & NODE_IO_NO_UNMAP))
        how |= FILE_ZERO_UNMAP;
    if (flags & NODE_IO_FAST_ZERO)
        how |= FILE_ZERO_FAST;
    if (len == 0)
        return flush_if_fua(self, raw_file(node), flags);
    int r = file_zero(self, raw_file(node), raw_host(node, off), len, how);
    return r < 0 ? r : flush_if_fua(self, raw_file(node), flags);
}

static int raw_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    int r = len ? file_discard(self, raw_file(node), raw_host(node, off), len) : 0;
    return r < 0 ? r : flush_if_fua(self, raw_file(node), flags);
}

static int raw_flush(Fiber *self, Node *node)
{
    file_debug_event(raw_file(node), DEBUG_FLUSH_TO_OS);
    return file_flush(self, raw_file(node));
}

static int raw_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    bool is_data = true;
    uint64_t n = len;
    int r = 0;
    if (!((RawNode *)node)->is_shared)
        r = file_find_extent(self, raw_file(node), raw_host(node, off), len, &is_data, &n);
    if (r < 0)
        return r;
    *ret_extent = (NodeExtent){.len = n, .kind = NODE_EXTENT_ZERO};
    if (is_data) {
        ret_extent->kind = NODE_EXTENT_DATA;
        ret_extent->file = raw_file(node);
        ret_extent->host = raw_host(node, off);
    }
    return 0;
}

static bool raw_data_may_be_hole(Fiber *self, Node *node)
{
    return ((RawNode *)node)->is_shared;
}

static void raw_detach(Fiber *self, Node *node)
{
    file_detach(self, raw_file(node));
}

static void raw_attach(Node *node)
{
    file_attach(raw_file(node), node->loop);
}

static int raw_set_writable(Fiber *self, Node *node, bool is_writable, GError **error)
{
    File *file = raw_file(node);
    if (((RawNode *)node)->is_shared)
        return error_set(error, -EINVAL,
                         "%s: it was opened for sharing with programs that write it, and cannot be "
                         "written here",
                         node->name);
    int r = is_writable || MUTANT("raw-mode-change-flushes") ? 0 : file_flush(self, file);
    if (r < 0)
        return error_set(error, r, "%s: what was written cannot be made durable: %s", node->name,
                         g_strerror(-r));
    return node->ops->is_file ? file_set_mode(self, file, is_writable, error)
                              : file_reopen(self, file, is_writable, error);
}

// What lies in it has become writable, or read-only, and the file with it.
static void file_mode_changed(File *file, void *node)
{
    node_mode_changed(node, file_is_writable(file));
}

// As long as it is inactive nothing may be remembered: no identity, and map() calls everything
// data.
static void set_inactive(RawNode *raw, bool is_inactive)
{
    raw->is_inactive = raw->is_shared = is_inactive;
    raw->node.identity = (NodeIdentity){0};
    if (is_inactive)
        return;
    file_identity(raw->file, raw->node.identity.file);
    raw->node.identity.view = raw->offset;
}

static int take_size(RawNode *raw, GError **error)
{
    uint64_t end = file_size(raw->file);
    uint64_t least = raw->offset + (raw->is_part ? raw->node.size_bytes : 0);
    if (end < least)
        return error_set(error, -EINVAL,
                         "%s: it has become shorter than the part of it that this is: %" PRIu64
                         " bytes are missing",
                         raw->node.name, least - end);
    if (raw->is_part)
        return 0;
    uint64_t size_bytes = end - raw->offset;
    if (raw->node.bitmaps && raw->node.resize_bitmaps(&raw->node, size_bytes) < 0)
        return error_set(error, -ENOMEM, "%s: no memory for its dirty bitmaps", raw->node.name);
    raw->node.size_bytes = size_bytes;
    return 0;
}

static int raw_set_active(Fiber *self, Node *node, bool is_active, GError **error)
{
    RawNode *raw = (RawNode *)node;
    if (raw->is_shared && !raw->is_inactive)
        return 0;                      // it has always been so, and stays so
    bool is_file = node->ops->is_file; // who lies in it has no say
    int r = is_file     ? file_set_active(self, raw->file, is_active, error)
            : is_active ? file_look_anew(self, raw->file, error)
                        : 0;
    if (r == 0 && is_active)
        r = take_size(raw, error);
    if (r == 0)
        set_inactive(raw, !is_active);
    return r;
}

// The device's size is what somebody else made it: larger than that it cannot be.
static int take_device_size(Fiber *self, RawNode *raw, uint64_t size_bytes, GError **error)
{
    int r = file_refresh_size(self, raw->file);
    if (r < 0)
        return error_set(error, r, "%s: cannot tell its size: %s", raw->node.name, g_strerror(-r));
    uint64_t end = file_size(raw->file);
    if (raw->offset > end || size_bytes > end - raw->offset)
        return error_set(error, -EINVAL, "Cannot grow device files");
    raw->node.size_bytes = end - raw->offset;
    return 0;
}

// An image has its size from its own metadata, and not by being written past its end.
static int resize_below(Fiber *self, RawNode *raw, Node *below, uint64_t size_bytes, GError **error)
{
    int r = node_resize(self, below, raw->offset + size_bytes, error);
    if (r < 0)
        return r;
    return take_device_size(self, raw, size_bytes, error);
}

static int raw_resize(Fiber *self, Node *node, uint64_t size_bytes, GError **error)
{
    RawNode *raw = (RawNode *)node;
    if (raw->is_part)
        return error_set(error, -ENOTSUP, "Cannot resize fixed-size raw disks");
    if (size_bytes > INT64_MAX - raw->offset)
        return error_set(error, -EINVAL, "Disk size too large");
    Node *below = node_file_node(raw->file);
    if (below && !node_can_grow(below))
        return resize_below(self, raw, below, size_bytes, error);
    if (file_is_block_device(raw->file))
        return take_device_size(self, raw, size_bytes, error);
    int r = file_truncate(self, raw->file, raw->offset + size_bytes);
    if (r < 0)
        return error_set(error, r, "Could not resize file: %s", g_strerror(-r));
    node->size_bytes = size_bytes;
    return 0;
}

static bool raw_can_grow(Node *node)
{
    return !((RawNode *)node)->is_part && !file_is_block_device(raw_file(node));
}

static int raw_reserve(Fiber *self, Node *node, GuestOff off, uint64_t len)
{
    return file_reserve(self, raw_file(node), raw_host(node, off), len);
}

static int raw_remeasure(Fiber *self, Node *node)
{
    const RawNode *raw = (RawNode *)node;
    if (raw->is_part)
        return 0;
    int r = file_refresh_size(self, raw->file);
    uint64_t end = file_size(raw->file);
    return r < 0 || end < raw->offset ? r : node_note_end(node, end - raw->offset);
}

// Holes take space when they are written, and what has space already need not show as data.
static int raw_room(Fiber *self, Node *node, uint64_t enough, NodeRoom *ret_room)
{
    uint64_t free_bytes, allocated_bytes;
    int r = file_free_bytes(self, raw_file(node), &free_bytes, &ret_room->can_share);
    if (r == 0)
        r = file_allocated_bytes(self, raw_file(node), &allocated_bytes);
    if (r < 0)
        return r;
    ret_room->granule_bytes = 1;
    ret_room->most_bytes = free_bytes + allocated_bytes;
    ret_room->counts_all = true;
    return 0;
}

static int raw_lock(Fiber *self, Node *node, unsigned held, unsigned unshared, GError **error)
{
    return file_lock_also(self, raw_file(node), held, unshared, error);
}

static void raw_close(Fiber *self, Node *node)
{
    if (node->ops->is_file)
        file_set_mode_fn(raw_file(node), NULL, NULL);
    file_close(self, raw_file(node));
}

#define OPS_OF_DRIVER(name, file_node)                                                             \
    {                                                                                              \
        .driver = name, .is_file = file_node, .read_start = raw_read_start, .write = raw_write,    \
        .write_extent = raw_write_extent, .zero = raw_zero, .discard = raw_discard,                \
        .flush = raw_flush, .map = raw_map, .file = raw_file,                                      \
        .data_may_be_hole = raw_data_may_be_hole, .detach = raw_detach, .attach = raw_attach,      \
        .set_writable = raw_set_writable, .set_active = raw_set_active, .resize = raw_resize,      \
        .can_grow = raw_can_grow, .reserve = raw_reserve, .remeasure = raw_remeasure,              \
        .room = raw_room, .lock = raw_lock, .close = raw_close,                                    \
    }
static const NodeOps raw_ops = OPS_OF_DRIVER("raw", false);
static const NodeOps file_ops = OPS_OF_DRIVER("file", true);
static const NodeOps host_device_ops = OPS_OF_DRIVER("host_device", true);

static int check_part(const File *file, uint64_t offset, uint64_t size_bytes, GError **error)
{
    uint64_t file_bytes = file_size(file);
    if (offset <= file_bytes && (size_bytes == RAW_TO_END || size_bytes <= file_bytes - offset))
        return 0;
    if (size_bytes == RAW_TO_END)
        return error_set(error, -EINVAL,
                         "%s: the part asked for begins at offset %" G_GUINT64_FORMAT
                         ", after the file's %" G_GUINT64_FORMAT " bytes: %" G_GUINT64_FORMAT
                         " are missing at least; the file is cut off, or it is not the one",
                         file_path(file), offset, file_bytes, offset - file_bytes);
    return error_set(
        error, -EINVAL,
        "%s: the part asked for, %" G_GUINT64_FORMAT " bytes from offset %" G_GUINT64_FORMAT
        " on, does not lie within the file's %" G_GUINT64_FORMAT " bytes: %" G_GUINT64_FORMAT
        " of them are missing; the file is cut off, or it is not the one",
        file_path(file), size_bytes, offset, file_bytes,
        size_bytes - (file_bytes - MIN(offset, file_bytes)));
}

static RawNode *make_node(File *file, const NodeOps *ops, uint64_t offset, uint64_t size_bytes)
{
    RawNode *raw = g_new0(RawNode, 1);
    node_init(&raw->node, ops, file_loop(file), file_path(file), size_bytes);
    raw->node.read_only = !file_is_writable(file);
    file_identity(file, raw->node.identity.file);
    raw->file = file;
    raw->offset = offset;
    return raw;
}

Node *file_node_new(File *file)
{
    const NodeOps *ops = file_is_block_device(file) ? &host_device_ops : &file_ops;
    RawNode *raw = make_node(file, ops, 0, file_size(file));
    if (file_is_inactive(file))
        set_inactive(raw, true);
    file_set_mode_fn(file, file_mode_changed, &raw->node);
    return &raw->node;
}

int raw_node_new_part(Fiber *self, File *file, uint64_t offset, uint64_t size_bytes,
                      Node **ret_node, GError **error)
{
    int r = check_part(file, offset, size_bytes, error);
    if (r < 0) {
        file_close(self, file);
        return r;
    }
    bool is_part = size_bytes != RAW_TO_END;
    if (!is_part)
        size_bytes = file_size(file) - offset;
    RawNode *raw = make_node(file, &raw_ops, offset, size_bytes);
    raw->is_part = is_part;
    raw->node.identity.view = offset; // its length tells parts apart that begin at one place
    *ret_node = &raw->node;
    return 0;
}

int raw_node_new(Fiber *self, File *file, Node **ret_node, GError **error)
{
    return raw_node_new_part(self, file, 0, RAW_TO_END, ret_node, error);
}

// Nothing about the file may be remembered: no identity, and map() calls everything data.
static void set_shared(RawNode *raw)
{
    raw->node.identity = (NodeIdentity){0};
    raw->is_shared = true;
}

// -- the driver -----------------------------------------------------------------------------------

typedef struct RawDriverImage {
    DriverImage head; // first
    uint64_t offset, size_bytes;
    bool is_writable, is_shared, is_inactive;
} RawDriverImage;

static void driver_drop(Fiber *self, DriverImage *image)
{
    file_close(self, image->file);
    g_free(image);
}

static int driver_open(Fiber *self, File *file, const DriverOptions *options,
                       DriverImage **ret_image, GError **error)
{
    RawDriverImage *image = g_new0(RawDriverImage, 1);
    image->head = (DriverImage){.driver = &raw_driver, .file = file};
    image->offset = driver_value_int(options->values, "offset", 0);
    image->size_bytes = driver_value_int(options->values, "size", RAW_TO_END);
    image->is_writable = options->is_writable;
    image->is_shared = options->is_shared;
    image->is_inactive = options->is_inactive;
    if (image->size_bytes != RAW_TO_END && image->size_bytes % 512) {
        int r = error_set(error, -EINVAL, "%s: \"size\" of a raw image is not a multiple of 512",
                          file_path(file));
        driver_drop(self, &image->head);
        return r;
    }
    *ret_image = &image->head;
    return 0;
}

static int driver_load(Fiber *self, DriverImage *image, File *data, Node **ret_node, GError **error)
{
    RawDriverImage *opened = (RawDriverImage *)image;
    int r =
        raw_node_new_part(self, image->file, opened->offset, opened->size_bytes, ret_node, error);
    if (r == 0)
        (*ret_node)->read_only |= !opened->is_writable;
    if (r == 0 && opened->is_shared)
        set_shared((RawNode *)*ret_node);
    if (r == 0 && opened->is_inactive)
        set_inactive((RawNode *)*ret_node, true);
    g_free(image);
    return r;
}

// Its place in a file, while it is in use.
typedef struct RawChange {
    DriverChange head; // first
    RawNode *raw;
    File *file; // a reference: the new one, and then the old one
    uint64_t offset;
    bool is_part;
} RawChange;

// The file may have grown since it was prepared.
static void change_commit(DriverChange *change)
{
    RawChange *c = (RawChange *)change;
    RawNode *raw = c->raw;
    File *old = raw->file;
    raw->file = c->file;
    c->file = old;
    raw->offset = c->offset;
    raw->is_part = c->is_part;
    raw->node.size_bytes = c->is_part ? change->size_bytes : file_size(raw->file) - raw->offset;
    if (raw->is_shared)
        return;
    file_identity(raw->file, raw->node.identity.file);
    raw->node.identity.view = raw->offset;
    node_begin_generation(&raw->node);
}

static void change_drop(Fiber *self, DriverChange *change)
{
    file_close(self, ((RawChange *)change)->file);
    g_free(change);
}

static int driver_reopen(Fiber *self, Node *node, const DriverReopen *wanted,
                         DriverChange **ret_change, GError **error)
{
    uint64_t offset = driver_value_int(wanted->values, "offset", 0);
    uint64_t size = driver_value_int(wanted->values, "size", RAW_TO_END);
    if (size != RAW_TO_END && size % 512)
        return error_set(error, -EINVAL, "Specified size is not multiple of 512");
    int r = check_part(wanted->file, offset, size, error);
    if (r < 0)
        return r;
    RawChange *change = g_new(RawChange, 1);
    *change = (RawChange){
        .head = {size == RAW_TO_END ? file_size(wanted->file) - offset : size, change_commit,
                 change_drop},
        .raw = (RawNode *)node,
        .file = file_ref(wanted->file),
        .offset = offset,
        .is_part = size != RAW_TO_END,
    };
    *ret_change = &change->head;
    return 0;
}

static const DriverOption option_table[] = {
    {.name = "file",
     .type = DRIVER_OPTION_CHILD,
     .is_required = true,
     .doc = "Where the disk is: a node's name, or what to make one of."},
    {.name = "offset",
     .type = DRIVER_OPTION_INT,
     .change = DRIVER_OPTION_CHANGES,
     .doc = "Where in the file the disk begins, in bytes; 0 unless said."},
    {.name = "size",
     .type = DRIVER_OPTION_INT,
     .change = DRIVER_OPTION_CHANGES,
     .doc = "How long the disk is, in bytes; to the file's end unless said."},
    {0},
};

const Driver raw_driver = {
    .name = "raw",
    .options = option_table,
    .open = driver_open,
    .load = driver_load,
    .drop = driver_drop,
    .reopen = driver_reopen,
};

// -- files ----------------------------------------------------------------------------------------

static const char *const aio_values[] = {"threads", "native", "io_uring", NULL};
static const char *const locking_values[] = {"auto", "on", "off", NULL};

static const DriverOption file_option_table[] = {
    {.name = "filename", .type = DRIVER_OPTION_STR, .is_required = true, .doc = "The path."},
    {.name = "pr-manager",
     .type = DRIVER_OPTION_STR,
     .doc = "Accepted, does nothing: no client can ask for persistent reservations."},
    {.name = "locking",
     .type = DRIVER_OPTION_ENUM,
     .values = locking_values,
     .doc = "Whether locks keep other programs out; \"off\" takes none."},
    {.name = "aio",
     .type = DRIVER_OPTION_ENUM,
     .values = aio_values,
     .doc = "Accepted, does nothing: I/O goes the fastest way that the file has."},
    {.name = "aio-max-batch", .type = DRIVER_OPTION_INT, .doc = "Accepted, does nothing."},
    {.name = "drop-cache",
     .type = DRIVER_OPTION_BOOL,
     .change = DRIVER_OPTION_KEPT,
     .doc = "Accepted, does nothing."},
    {.name = "x-check-cache-dropped",
     .type = DRIVER_OPTION_BOOL,
     .change = DRIVER_OPTION_IDLE,
     .doc = "Accepted, does nothing."},
    {0},
};

const Driver file_driver = {.name = "file", .options = file_option_table, .is_file = true};
const Driver host_device_driver = {
    .name = "host_device", .options = file_option_table, .is_file = true};
