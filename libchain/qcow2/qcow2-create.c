// SPDX-License-Identifier: LGPL-2.1-or-later
// Making new images. In a fiber; the file is nobody else's until this returns.
//
//   | header | refcount table | refcount blocks | L1 | L2 tables, data (preallocation) |
//
// The layout is known before the first write, so all tables are written front to back in one pass.
// With a data file of its own the image has no data clusters: they are in that file where the guest
// has them.
//
// Write order (docs/ordering.md §8): data file, tables → flush → header from its second sector on →
// flush → first sector → flush → directory. The magic lies in the first sector: whatever a crash
// leaves either does not begin with it, or is the whole image; a header torn behind its first
// sector could have lost the backing file's name.

#include "chain-core/qcow2-create.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/file.h"
#include "chain-core/mutant.h"
#include "format/qcow2-header.h"
#include "format/qcow2-table.h"

enum { SECTOR_BYTES = 512, APPEND_BYTES = 1 << 20 };

// Which clusters hold what. Counts and positions in clusters.
typedef struct Layout {
    Qcow2Geometry g;
    uint64_t n_l1_entries;
    uint64_t n_refcount_table, n_refcount_blocks, n_l1, n_l2, n_data;
    uint64_t refcount_blocks, l1, l2, data; // the refcount table is at 1
    uint64_t total;
    bool reserves_data;
    bool has_subclusters; // of preallocated clusters; else they are left to the guest
} Layout;

// Writes tables one behind the other through one buffer.
typedef struct Appender {
    File *file;
    uint64_t off; // where the buffer goes
    size_t used, size;
    uint8_t *buf;
} Appender;

// In QEMU's words, as far as it refuses the same.
static int needs_version_3(const char *what, GError **error)
{
    return error_set(error, -EINVAL,
                     "%s supported with compatibility level 1.1 and above (use version=v3 or "
                     "greater)",
                     what);
}

static int check_cluster_size(const Qcow2CreateOptions *o, GError **error)
{
    enum { MIN_EXTENDED = 16384 };
    uint64_t c = o->cluster_bytes;
    if (c & (c - 1) || c < (1 << QCOW2_MIN_CLUSTER_BITS) || c > (1 << QCOW2_MAX_CLUSTER_BITS))
        return error_set(error, -EINVAL,
                         "Cluster size must be a power of two between 512 and 2048k");
    if (o->extended_l2 && o->version == 2)
        return needs_version_3("Extended L2 entries are only", error);
    if (o->extended_l2 && c < MIN_EXTENDED)
        return error_set(error, -EINVAL,
                         "Extended L2 entries are only supported with cluster sizes of at least %d "
                         "bytes",
                         MIN_EXTENDED);
    return 0;
}

static int check_refcounts(const Qcow2CreateOptions *o, GError **error)
{
    if (o->refcount_bits & (o->refcount_bits - 1) || o->refcount_bits > 64)
        return error_set(error, -EINVAL,
                         "Refcount width must be a power of two and may not exceed 64 bits");
    if (o->version == 2 && o->refcount_bits != 16)
        return error_set(error, -EINVAL,
                         "Different refcount widths than 16 bits require compatibility level 1.1 "
                         "or above (use version=v3 or greater)");
    return 0;
}

static int check_backing(const Qcow2CreateOptions *o, GError **error)
{
    if (o->backing_name && (!*o->backing_name || !o->backing_format || !*o->backing_format))
        return error_set(error, -EINVAL,
                         "a backing file needs a name and its format; give the format (for "
                         "example qcow2 or raw)");
    if (!o->backing_name && o->backing_format)
        return error_set(error, -EINVAL, "Backing format cannot be used without backing file");
    if (o->backing_name && o->preallocate_metadata && !o->extended_l2)
        return error_set(error, -EINVAL,
                         "Backing file and preallocation can only be used at the same time if "
                         "extended_l2 is on");
    if (o->backing_name && strlen(o->backing_name) > QCOW2_MAX_BACKING_NAME_BYTES)
        return error_set(error, -EINVAL,
                         "the backing file's name is %zu bytes long, more than %d; use a shorter "
                         "path",
                         strlen(o->backing_name), QCOW2_MAX_BACKING_NAME_BYTES);
    if (o->backing_format && strlen(o->backing_format) > 63)
        return error_set(error, -EINVAL, "no backing format has a name of more than 63 bytes");
    return 0;
}

static int check_data_file(const Qcow2CreateOptions *o, GError **error)
{
    if (o->raw_data && !o->data_file)
        return error_set(error, -EINVAL, "data-file-raw requires data-file");
    if (o->raw_data && o->backing_name)
        return error_set(error, -EINVAL,
                         "Backing file and data-file-raw cannot be used at the same time");
    if (o->data_file && o->version == 2)
        return needs_version_3("External data files are only", error);
    if (o->data_file && strlen(o->data_name) > QCOW2_MAX_BACKING_NAME_BYTES)
        return error_set(error, -EINVAL,
                         "the data file's name is %zu bytes long, more than %d; use a shorter path",
                         strlen(o->data_name), QCOW2_MAX_BACKING_NAME_BYTES);
    return 0;
}

static int check_options(const Qcow2CreateOptions *o, GError **error)
{
    if (o->version != 2 && o->version != 3)
        return error_set(error, -EINVAL, "version %u of qcow2 cannot be made; ask for 2 or 3",
                         o->version);
    int r = check_cluster_size(o, error);
    if (r == 0)
        r = check_refcounts(o, error);
    if (r == 0 && o->version == 2 && o->lazy_refcounts)
        r = needs_version_3("Lazy refcounts only", error);
    if (r == 0)
        r = check_data_file(o, error);
    if (r == 0 && o->version == 2 && o->zstd)
        r = needs_version_3("Non-zlib compression type is only", error);
    return r == 0 ? check_backing(o, error) : r;
}

static uint64_t divide_up(uint64_t n, uint64_t by)
{
    return n / by + (n % by != 0);
}

static int plan(const Qcow2CreateOptions *o, Layout *l, GError **error)
{
    if (o->size_bytes > INT64_MAX - SECTOR_BYTES)
        return error_set(error, -EINVAL, "a size of %" PRIu64 " bytes is beyond what a file can be",
                         o->size_bytes);
    uint64_t size = divide_up(o->size_bytes, SECTOR_BYTES) * SECTOR_BYTES;
    *l = (Layout){0};
    qcow2_geometry_init(&l->g, __builtin_ctz(o->cluster_bytes), __builtin_ctz(o->refcount_bits),
                        o->extended_l2, o->data_file, size);
    uint64_t c = l->g.cluster_bytes;
    l->n_l1_entries = qcow2_l1_entries_for(&l->g, size);
    if (l->n_l1_entries > QCOW2_MAX_L1_BYTES / sizeof(Be64))
        return error_set(error, -EINVAL,
                         "a size of %" PRIu64 " bytes needs clusters larger than %" PRIu32
                         " bytes; ask for a larger cluster size",
                         size, l->g.cluster_bytes);
    l->n_l1 = divide_up(l->n_l1_entries * sizeof(Be64), c);
    if (o->preallocate_metadata) {
        l->n_l2 = l->n_l1_entries;
        l->n_data = divide_up(size, c);
        l->reserves_data = o->reserve_data && l->n_data;
        l->has_subclusters = o->raw_data; // so that what is in the file is seen
    }

    // The refcount structures count themselves too: grow them until they suffice.
    uint64_t rest = 1 + l->n_l1 + l->n_l2 + (o->data_file ? 0 : l->n_data);
    uint64_t per_block = UINT64_C(1) << l->g.refcounts_per_block_bits;
    for (;;) {
        l->total = rest + l->n_refcount_blocks + l->n_refcount_table;
        uint64_t blocks = divide_up(l->total, per_block);
        uint64_t table = divide_up(blocks * sizeof(Be64), c);
        if (blocks == l->n_refcount_blocks && table == l->n_refcount_table)
            break;
        l->n_refcount_blocks = blocks;
        l->n_refcount_table = table;
    }
    if (l->n_refcount_table * c > QCOW2_MAX_REFCOUNT_TABLE_BYTES ||
        l->total > (UINT64_C(1) << 56) / c)
        return error_set(error, -EINVAL,
                         "%" PRIu64 " clusters are more than the refcount table can hold; ask for "
                         "a larger cluster size or narrower refcounts",
                         l->total);
    l->refcount_blocks = 1 + l->n_refcount_table;
    l->l1 = l->refcount_blocks + l->n_refcount_blocks;
    l->l2 = l->l1 + l->n_l1;
    l->data = o->data_file ? 0 : l->l2 + l->n_l2;
    return 0;
}

static int appender_write_out(Fiber *self, Appender *a)
{
    if (!a->used)
        return 0;
    int r = file_write(self, a->file, host_off(a->off), a->buf, a->used);
    a->off += a->used;
    a->used = 0;
    return r;
}

// Room for one zeroed cluster at `off`, which lies behind what was appended before.
static int appender_next(Fiber *self, Appender *a, uint64_t off, size_t cluster_bytes,
                         void **ret_cluster)
{
    if (a->used == a->size || off != a->off + a->used) {
        int r = appender_write_out(self, a);
        if (r < 0)
            return r;
        a->off = off;
    }
    *ret_cluster = memset(a->buf + a->used, 0, cluster_bytes);
    a->used += cluster_bytes;
    return 0;
}

// Fills the n-th cluster of a kind.
typedef void FillFn(const Layout *l, uint64_t n, void *cluster);

static void fill_refcount_table(const Layout *l, uint64_t n, void *cluster)
{
    Be64 *entries = cluster;
    uint64_t per_cluster = l->g.cluster_bytes / sizeof(Be64), first = n * per_cluster;
    for (uint64_t i = 0; i < per_cluster && first + i < l->n_refcount_blocks; i++)
        entries[i] = qcow2_refcount_table_entry_encode(
            host_off((l->refcount_blocks + first + i) << l->g.cluster_bits));
}

static void fill_refcount_block(const Layout *l, uint64_t n, void *cluster)
{
    uint64_t per_block = UINT64_C(1) << l->g.refcounts_per_block_bits, first = n * per_block;
    for (uint64_t i = 0; i < per_block && first + i < l->total; i++)
        qcow2_refcount_set(&l->g, cluster, i, 1);
}

static void fill_l1(const Layout *l, uint64_t n, void *cluster)
{
    Be64 *entries = cluster;
    uint64_t per_cluster = l->g.cluster_bytes / sizeof(Be64), first = n * per_cluster;
    for (uint64_t i = 0; i < per_cluster && first + i < l->n_l2; i++)
        entries[i] =
            qcow2_l1_entry_encode(host_off((l->l2 + first + i) << l->g.cluster_bits), true);
}

// With extended L2 entries the clusters are reserved, but no subcluster is allocated: they read as
// zeros, or as the backing file, without asking the disk. Not so where the data file is raw.
static void fill_l2(const Layout *l, uint64_t n, void *cluster)
{
    uint64_t first = n * l->g.l2_entries;
    for (uint64_t i = 0; i < l->g.l2_entries && first + i < l->n_data; i++)
        qcow2_l2_entry_encode(&l->g, cluster, i,
                              &(Qcow2L2Entry){
                                  .kind = QCOW2_CLUSTER_DATA,
                                  .copied = true,
                                  .host = {(l->data + first + i) << l->g.cluster_bits},
                                  .alloc_bitmap = l->has_subclusters ? UINT32_MAX : 0,
                              });
}

static int append_all(Fiber *self, Appender *a, const Layout *l, uint64_t first, uint64_t n,
                      FillFn *fill)
{
    for (uint64_t i = 0; i < n; i++) {
        void *cluster;
        int r =
            appender_next(self, a, (first + i) << l->g.cluster_bits, l->g.cluster_bytes, &cluster);
        if (r < 0)
            return r;
        fill(l, i, cluster);
    }
    return 0;
}

static int write_tables(Fiber *self, File *file, const Layout *l)
{
    Appender a = {.file = file, .size = MAX(APPEND_BYTES, l->g.cluster_bytes)};
    g_autofree uint8_t *buf = a.buf = g_try_malloc(a.size);
    if (!buf)
        return -ENOMEM;
    // A new file is all zeros: an L1 table without L2 tables needs no write.
    int r =
        file_is_block_device(file) ? 0 : file_truncate(self, file, l->total << l->g.cluster_bits);
    if (r >= 0)
        r = append_all(self, &a, l, 1, l->n_refcount_table, fill_refcount_table);
    if (r >= 0)
        r = append_all(self, &a, l, l->refcount_blocks, l->n_refcount_blocks, fill_refcount_block);
    if (r >= 0)
        r = append_all(self, &a, l, l->l1, l->n_l2 ? l->n_l1 : 0, fill_l1);
    if (r >= 0)
        r = append_all(self, &a, l, l->l2, l->n_l2, fill_l2);
    if (r >= 0)
        r = appender_write_out(self, &a);
    if (r >= 0 && l->reserves_data && !l->g.external_data)
        r = file_reserve(self, file, host_off(l->data << l->g.cluster_bits),
                         l->n_data << l->g.cluster_bits);
    return r < 0 || MUTANT("sync-before-header-of-new-image") ? r : file_flush(self, file);
}

static Qcow2Header make_header(const Qcow2CreateOptions *o, const Layout *l)
{
    uint32_t bits = l->g.cluster_bits;
    return (Qcow2Header){
        .version = o->version,
        .cluster_bits = bits,
        .size_bytes = l->g.size_bytes,
        .l1_entries = l->n_l1_entries,
        .l1 = host_off(l->n_l1 ? l->l1 << bits : 0),
        .refcount_table = host_off(UINT64_C(1) << bits),
        .refcount_table_clusters = l->n_refcount_table,
        .incompatible = (o->zstd ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                        (o->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0) |
                        (o->data_file ? QCOW2_INCOMPAT_DATA_FILE : 0),
        .compatible = o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0,
        .autoclear = o->raw_data ? QCOW2_AUTOCLEAR_RAW_DATA : 0,
        .refcount_order = l->g.refcount_order,
        .compression = o->zstd ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_ZLIB,
        .backing_name = (char *)o->backing_name, // only encoded
        .backing_format = (char *)o->backing_format,
        .data_file_name = (char *)o->data_name,
    };
}

static int write_header(Fiber *self, File *file, const Layout *l, const uint8_t *cluster)
{
    int r = 0;
    if (l->g.cluster_bytes > SECTOR_BYTES) {
        r = file_write(self, file, host_off(SECTOR_BYTES), cluster + SECTOR_BYTES,
                       l->g.cluster_bytes - SECTOR_BYTES);
        if (r >= 0 && !MUTANT("sync-before-magic-of-new-image"))
            r = file_flush(self, file);
    }
    if (r >= 0)
        r = file_write(self, file, host_off(0), cluster, SECTOR_BYTES);
    return r < 0 || MUTANT("sync-of-new-image") ? r : file_flush(self, file);
}

// What a new image consists of: its layout, and its first cluster; owned.
typedef struct Image {
    Layout layout;
    uint8_t *header;
    File *data_file; // borrowed; NULL: none
} Image;

static int make_image(const Qcow2CreateOptions *options, Image *ret_image, GError **error)
{
    Qcow2CreateOptions o = *options;
    o.version = o.version ? o.version : 3;
    o.cluster_bytes = o.cluster_bytes ? o.cluster_bytes : 65536;
    o.refcount_bits = o.refcount_bits ? o.refcount_bits : 16;
    o.preallocate_metadata |= o.raw_data; // no entry may hide what is in the file
    Layout l;
    int r = check_options(&o, error);
    if (r >= 0)
        r = plan(&o, &l, error);
    if (r < 0)
        return r;
    g_autofree uint8_t *cluster = g_try_malloc(l.g.cluster_bytes);
    if (!cluster)
        return error_set(error, -ENOMEM, "no memory for a cluster of %" PRIu32 " bytes",
                         l.g.cluster_bytes);
    Qcow2Header header = make_header(&o, &l);
    if (qcow2_header_encode(&header, cluster, l.g.cluster_bytes) < 0)
        return error_set(error, -EINVAL,
                         "the names of other files do not fit into a cluster of %" PRIu32
                         " bytes; use shorter paths or a larger cluster size",
                         l.g.cluster_bytes);
    *ret_image = (Image){l, g_steal_pointer(&cluster), o.data_file};
    return 0;
}

static int lock_file(Fiber *self, File *file, GError **error)
{
    unsigned held = FILE_PERM_WRITE | FILE_PERM_RESIZE;
    return file_lock(self, file, held, held, error);
}

// As long as the disk, durably.
static int extend_data_file(Fiber *self, File *data, const Layout *l)
{
    uint64_t size = l->g.size_bytes;
    int r = 0;
    if (file_size(data) < size)
        r = file_is_block_device(data) ? -ENOSPC : file_truncate(self, data, size);
    if (r == 0 && l->reserves_data && !file_is_block_device(data))
        r = file_reserve(self, data, host_off(0), size);
    return r < 0 ? r : file_flush(self, data);
}

static int prepare_data_file(Fiber *self, const Image *image, GError **error)
{
    File *data = image->data_file;
    int r = lock_file(self, data, error);
    if (r < 0)
        return r;
    r = extend_data_file(self, data, &image->layout);
    return r < 0 ? error_set(error, r, "Could not resize data file '%s': %s", file_path(data),
                             g_strerror(-r))
                 : 0;
}

// Everything between the file's creation and the caller's handling of failures.
static int fill_file(Fiber *self, File *file, const Image *image, GError **error)
{
    int r = lock_file(self, file, error);
    if (r == 0 && image->data_file)
        r = prepare_data_file(self, image, error);
    if (r < 0)
        return r;
    r = write_tables(self, file, &image->layout);
    if (r >= 0)
        r = write_header(self, file, &image->layout, image->header);
    if (r < 0)
        return error_set(error, r, "cannot write the new image '%s': %s", file_path(file),
                         g_strerror(-r));
    return file_sync_dir(self, file_path(file), error);
}

// Takes `file`, which is new.
static int create_and_close(Fiber *self, const char *path, File *file, const Image *image,
                            GError **error)
{
    int r = fill_file(self, file, image, error);
    file_close(self, file);
    if (r < 0)
        file_unlink(self, path, NULL);
    return r;
}

int qcow2_create(Fiber *self, const char *path, const Qcow2CreateOptions *options, GError **error)
{
    Image image;
    int r = make_image(options, &image, error);
    if (r < 0)
        return r;
    File *file;
    r = file_open(self, path, FILE_WRITABLE | FILE_CREATE, &file, error);
    if (r == 0)
        r = create_and_close(self, path, file, &image, error);
    g_free(image.header);
    return r;
}

// Nothing of what was there is left, durably: a crash from here on leaves no image.
static int clear_file(Fiber *self, File *file, const Layout *l)
{
    uint64_t bytes = l->total << l->g.cluster_bits;
    int r = file_is_block_device(file) ? 0 : file_truncate(self, file, 0);
    if (r == 0 && file_is_block_device(file))
        r = bytes > file_size(file) ? -ENOSPC
                                    : file_zero(self, file, host_off(0), bytes, FILE_ZERO_UNMAP);
    return r < 0 ? r : file_flush(self, file);
}

static int create_over(Fiber *self, File *file, const Image *image, GError **error)
{
    int r = lock_file(self, file, error);
    if (r < 0)
        return r;
    r = clear_file(self, file, &image->layout);
    if (r < 0)
        return error_set(error, r, "cannot clear '%s' for a new image: %s", file_path(file),
                         g_strerror(-r));
    return fill_file(self, file, image, error);
}

int qcow2_create_in(Fiber *self, File *file, const Qcow2CreateOptions *options, GError **error)
{
    Image image;
    int r = make_image(options, &image, error);
    if (r < 0)
        return r;
    r = create_over(self, file, &image, error);
    g_free(image.header);
    return r;
}
