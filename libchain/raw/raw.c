// SPDX-License-Identifier: LGPL-2.1-or-later
// The raw driver: guest offset + start of the part = host offset. On the file's loop, in a fiber.
// Write order: FUA is the write, then a flush of the file; nothing else depends on anything.
#include "chain-core/raw.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

typedef struct RawNode {
    Node node;
    File *file;      // owned
    uint64_t offset; // host offset of guest offset 0
    bool is_shared;  // another program may write the file
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
    file_read_start(raw_file(node), raw_host(node, off), buf, len, batch);
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
    file_write_start(raw_file(node), raw_host(node, off), &iov, 1, &batch);
    int r = io_batch_wait(self, &batch);
    return r < 0 ? r : flush_if_fua(self, raw_file(node), flags);
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

static void raw_close(Fiber *self, Node *node)
{
    file_close(self, raw_file(node));
}

static const NodeOps raw_ops = {
    .driver = "raw",
    .read_start = raw_read_start,
    .write = raw_write,
    .zero = raw_zero,
    .discard = raw_discard,
    .flush = raw_flush,
    .map = raw_map,
    .file = raw_file,
    .data_may_be_hole = raw_data_may_be_hole,
    .close = raw_close,
};

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

int raw_node_new_part(Fiber *self, File *file, uint64_t offset, uint64_t size_bytes,
                      Node **ret_node, GError **error)
{
    int r = check_part(file, offset, size_bytes, error);
    if (r < 0) {
        file_close(self, file);
        return r;
    }
    if (size_bytes == RAW_TO_END)
        size_bytes = file_size(file) - offset;
    RawNode *raw = g_new0(RawNode, 1);
    node_init(&raw->node, &raw_ops, file_loop(file), file_path(file), size_bytes);
    raw->node.read_only = !file_is_writable(file);
    file_identity(file, raw->node.identity.file);
    raw->node.identity.view = offset; // its length tells parts apart that begin at one place
    raw->file = file;
    raw->offset = offset;
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
    bool is_shared;
} RawDriverImage;

// Bytes as QEMU takes them: a number, perhaps with a unit.
static int parse_bytes(const char *name, const char *text, uint64_t *ret_bytes, GError **error)
{
    static const char units[] = "BKMGTPE";
    if (g_ascii_isdigit(*text)) {
        char *end;
        errno = 0;
        uint64_t n = g_ascii_strtoull(text, &end, 10);
        const char *unit = strchr(units, *end ? g_ascii_toupper(*end) : 'B');
        unsigned shift = unit ? 10 * (unsigned)(unit - units) : 0;
        if (errno == 0 && unit && (!*end || !end[1]) && n <= (uint64_t)INT64_MAX >> shift) {
            *ret_bytes = n << shift;
            return 0;
        }
    }
    return error_set(error, -EINVAL, "\"%s\" of a raw image is not a number of bytes", name);
}

static int parse_part(const char *const *named, RawDriverImage *image, GError **error)
{
    int r = 0;
    for (; r == 0 && named && *named; named += 2) {
        bool is_offset = g_str_equal(named[0], "offset");
        r = parse_bytes(named[0], named[1], is_offset ? &image->offset : &image->size_bytes, error);
    }
    if (r == 0 && image->size_bytes != RAW_TO_END && image->size_bytes % 512)
        r = error_set(error, -EINVAL, "\"size\" of a raw image is not a multiple of 512");
    return r;
}

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
    image->size_bytes = RAW_TO_END;
    image->is_shared = options->is_shared;
    int r = parse_part(options->named, image, error);
    if (r < 0) {
        g_prefix_error(error, "%s: ", file_path(file));
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
    if (r == 0 && opened->is_shared)
        set_shared((RawNode *)*ret_node);
    g_free(image);
    return r;
}

static const char *const option_names[] = {"offset", "size", NULL};

const Driver raw_driver = {
    .name = "raw",
    .options = option_names,
    .open = driver_open,
    .load = driver_load,
    .drop = driver_drop,
};
