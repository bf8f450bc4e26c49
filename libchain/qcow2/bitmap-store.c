// SPDX-License-Identifier: LGPL-2.1-or-later
// From dirty bitmaps to a new bitmap directory.
//
// Write order (docs/ordering.md §12): bits, tables and the directory go to clusters that nothing
// names; a write-back makes them and their refcounts durable; then the header names the new
// directory, which trusts what it lists; then what only the old one named is freed.
#include "qcow2/bitmap-store.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "qcow2/allocator.h"
#include "qcow2/bitmap-directory.h"
#include "qcow2/mapping.h"
#include "qcow2/open.h"

enum {
    PIECE_BYTES = 1 << 20,   // bits written at once
    CONTIGUOUS_TRIES = 1024, // ranges taken, for one that must be in one piece
};

// A new directory on its way to the file.
typedef struct Store {
    Qcow2Image *image;
    GArray *directory; // StoredBitmap: the new one
    GArray *taken;     // ClusterRange: all that it names anew
    GArray *dropped;   // ClusterRange: what only the old one names
    Qcow2BitmapsExtension extension;
} Store;

static void store_init(Store *s, Qcow2Image *image)
{
    *s = (Store){
        .image = image,
        .directory = bitmap_directory_new(),
        .taken = g_array_new(false, false, sizeof(ClusterRange)),
        .dropped = g_array_new(false, false, sizeof(ClusterRange)),
    };
}

static void store_done(Store *s)
{
    g_clear_pointer(&s->directory, g_array_unref);
    g_array_unref(s->taken);
    g_array_unref(s->dropped);
}

// --- Taking clusters

static int take(Fiber *self, Qcow2Image *image, uint64_t n_wanted, ClusterRange *ret_range)
{
    Allocation allocation;
    int r = allocator_take(self, image, n_wanted, &allocation);
    if (r < 0)
        return r;
    *ret_range = allocation.range;
    return 0;
}

static void give_back(Fiber *self, Qcow2Image *image, const GArray *ranges)
{
    for (guint i = 0; i < ranges->len; i++)
        allocator_release(self, image, g_array_index(ranges, ClusterRange, i));
}

// `n` clusters in one piece. Ranges that do not touch the last one go back afterwards.
static int take_contiguous(Fiber *self, Store *s, uint64_t n, HostOff *ret_off)
{
    g_autoptr(GArray) apart = g_array_new(false, false, sizeof(ClusterRange));
    ClusterRange all = {0};
    int r = 0;
    for (int i = 0; all.n < n && r == 0; i++) {
        ClusterRange range;
        r = i < CONTIGUOUS_TRIES ? take(self, s->image, n - all.n, &range) : -ENOSPC;
        if (r == 0 && all.n && range.first == all.first + all.n) {
            all.n += range.n;
        } else if (r == 0) {
            if (all.n)
                g_array_append_val(apart, all);
            all = range;
        }
    }
    if (all.n)
        g_array_append_val(s->taken, all);
    give_back(self, s->image, apart);
    *ret_off = image_cluster_off(s->image, all.first);
    return r;
}

// --- Writing

// Granules from `first` on that clusters [i, i+1) of bits cover, as far as the disk goes.
typedef struct Bits {
    const Bitmap *bits;
    uint64_t n_granules;
    uint64_t granules_per_cluster;
} Bits;

static Bits bits_of(const Qcow2Image *image, const Bitmap *bits)
{
    uint64_t size = bitmap_size_bytes(bits);
    uint32_t granularity_bits = bitmap_granularity_bits(bits);
    return (Bits){
        .bits = bits,
        .n_granules =
            (size >> granularity_bits) + ((size & ((UINT64_C(1) << granularity_bits) - 1)) != 0),
        .granules_per_cluster = (uint64_t)image->geometry.cluster_bytes * 8,
    };
}

// What the table says of cluster `i` without one: 0 all clean, 1 all dirty; -1: it needs one.
static int uniform(const Bits *b, uint64_t i)
{
    uint64_t first = i * b->granules_per_cluster;
    uint64_t n = MIN(b->granules_per_cluster, b->n_granules - first);
    uint32_t granularity_bits = bitmap_granularity_bits(b->bits);
    uint64_t off = first << granularity_bits;
    uint64_t len = MIN(n << granularity_bits, bitmap_size_bytes(b->bits) - off);
    bool is_dirty;
    if (bitmap_run_at(b->bits, off, len, &is_dirty) < len)
        return -1;
    // Bits past the disk's end are 0: the last cluster may not say that all are 1.
    return is_dirty ? (n == b->granules_per_cluster ? 1 : -1) : 0;
}

// Clusters of bits from `i` on that differ within: at most `max`.
static uint64_t mixed_run(const Bits *b, uint64_t i, uint64_t n_clusters, uint64_t max)
{
    uint64_t n = 0;
    while (n < max && i + n < n_clusters && uniform(b, i + n) < 0)
        n++;
    return n;
}

static int write_bits(Fiber *self, Store *s, const Bits *b, Be64 *table, uint64_t n_clusters)
{
    Qcow2Image *image = s->image;
    uint32_t cluster_bytes = image->geometry.cluster_bytes;
    uint64_t max = MAX(PIECE_BYTES / cluster_bytes, 1);
    g_autofree uint8_t *piece = g_try_malloc(max * cluster_bytes);
    int r = piece ? 0 : -ENOMEM;
    for (uint64_t i = 0; i < n_clusters && r == 0;) {
        uint64_t n = mixed_run(b, i, n_clusters, max);
        if (!n) {
            table[i] = be64_make(uniform(b, i));
            i++;
            continue;
        }
        ClusterRange range;
        r = take(self, image, n, &range);
        if (r < 0)
            break;
        g_array_append_val(s->taken, range);
        bitmap_get_bits(b->bits, i * b->granules_per_cluster, piece, range.n * cluster_bytes);
        r = file_write(self, image->file, image_cluster_off(image, range.first), piece,
                       range.n * cluster_bytes);
        for (uint64_t j = 0; j < range.n; j++)
            table[i + j] = be64_make(image_cluster_off(image, range.first + j).v);
        i += range.n;
    }
    return r;
}

// Bits and table of one bitmap; where the table is, is entered in `e`.
static int write_bitmap(Fiber *self, Store *s, const Bitmap *bits, Qcow2BitmapEntry *e)
{
    Qcow2Image *image = s->image;
    Bits b = bits_of(image, bits);
    uint64_t n_bytes = (b.n_granules + 7) / 8, n_clusters = image_clusters_for(image, n_bytes);
    if (n_bytes > QCOW2_MAX_BITMAP_BITS_BYTES)
        return -EFBIG;
    uint64_t table_clusters = MAX(image_clusters_for(image, n_clusters * sizeof(Be64)), 1);
    uint64_t table_bytes = table_clusters << image->geometry.cluster_bits;
    g_autofree Be64 *table = g_try_malloc0(table_bytes);
    if (!table)
        return -ENOMEM;
    int r = write_bits(self, s, &b, table, n_clusters);
    if (r == 0)
        r = take_contiguous(self, s, table_clusters, &e->table);
    if (r == 0)
        r = file_write(self, image->file, e->table, table, table_bytes);
    e->table_entries = n_clusters;
    return r;
}

static int write_directory(Fiber *self, Store *s)
{
    Qcow2Image *image = s->image;
    g_autoptr(GByteArray) bytes = bitmap_directory_encode(s->directory);
    if (!s->directory->len)
        return 0;
    if (bytes->len > QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
        return -EFBIG;
    s->extension.n_bitmaps = s->directory->len;
    s->extension.directory_bytes = bytes->len;
    uint64_t n = image_clusters_for(image, bytes->len);
    int r = take_contiguous(self, s, n, &s->extension.directory);
    if (r < 0)
        return r;
    g_byte_array_set_size(bytes, n << image->geometry.cluster_bits);
    memset(bytes->data + s->extension.directory_bytes, 0,
           bytes->len - s->extension.directory_bytes);
    return file_write(self, image->file, s->extension.directory, bytes->data, bytes->len);
}

// --- What goes

static void drop(Store *s, HostOff off, uint64_t n)
{
    ClusterRange range = {image_cluster_of(s->image, off), n};
    g_array_append_val(s->dropped, range);
}

// Unless it turns out to lie on metadata (a bitmap may have been loaded when nobody knew): it
// leaks.
static void drop_if_sane(Store *s, HostOff off, uint64_t n)
{
    if (image_range_is_sane(s->image, (ClusterRange){image_cluster_of(s->image, off), n}))
        drop(s, off, n);
}

// All clusters of a bitmap that the new directory does not list, or elsewhere. A table that cannot
// be read any more leaks them.
static void drop_bitmap(Fiber *self, Store *s, const StoredBitmap *stored)
{
    Qcow2Image *image = s->image;
    const Qcow2BitmapEntry *e = &stored->entry;
    uint64_t bytes = (uint64_t)e->table_entries * sizeof(Be64);
    if (stored->is_damaged)
        return;
    g_autofree Be64 *table = g_try_malloc(MAX(bytes, 1));
    if (!table || file_read(self, image->file, e->table, table, bytes) < 0)
        return;
    for (uint32_t i = 0; i < e->table_entries; i++) {
        HostOff cluster;
        if (qcow2_bitmap_table_entry_decode(be64_get(table[i]), &cluster) && cluster.v)
            drop_if_sane(s, cluster, 1);
    }
    drop_if_sane(s, e->table, MAX(image_clusters_for(image, bytes), 1));
}

static void edit_bitmaps(Qcow2Header *header, const void *arg)
{
    const Qcow2BitmapsExtension *extension = arg;
    header->has_bitmaps_extension = extension->n_bitmaps;
    header->bitmaps = *extension;
    if (extension->n_bitmaps)
        header->autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    else
        header->autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
}

// The file says so from now on.
static void adopt(Store *s)
{
    Qcow2Image *image = s->image;
    uint64_t n = image_clusters_for(image, s->extension.directory_bytes);
    for (uint64_t i = 0; i < n; i++)
        metadata_set_add(&image->metadata, image_cluster_of(image, s->extension.directory) + i);
    for (guint i = 0; i < s->dropped->len; i++)
        freed_add(&image->freed, g_array_index(s->dropped, ClusterRange, i), host_off(0));
    g_clear_pointer(&image->bitmaps, g_array_unref);
    image->bitmaps = g_steal_pointer(&s->directory);
}

// From what was written to what the file says.
static int switch_directory(Fiber *self, Store *s)
{
    Qcow2Image *image = s->image;
    Qcow2BitmapsExtension old = image->header.bitmaps;
    bool had_directory = bitmap_directory_is_valid(image) && image->bitmaps;
    int r = write_directory(self, s);
    if (r == 0 && !MUTANT("write-back-before-bitmaps"))
        r = writeback_run_all(self, &image->writeback); // §12: before the header names them
    if (r == 0)
        r = image_change_header(self, image, edit_bitmaps, &s->extension);
    if (r < 0) {
        if (!image->writeback.has_ended)
            give_back(self, image, s->taken);
        return r;
    }
    if (had_directory)
        drop(s, old.directory, image_clusters_for(image, old.directory_bytes));
    adopt(s);
    return 0;
}

// --- All of them

static uint32_t flags_of(const DirtyBitmap *bitmap)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(bitmap, &info);
    return info.is_enabled ? QCOW2_BITMAP_AUTO : 0;
}

// None, where the header has forgotten the directory (a repair, when the image became writable):
// what it listed may be others' now.
static guint n_stored(const Qcow2Image *image)
{
    return image->bitmaps && bitmap_directory_is_valid(image) ? image->bitmaps->len : 0;
}

static GHashTable *index_stored(const Qcow2Image *image)
{
    GHashTable *index = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < n_stored(image); i++) {
        StoredBitmap *stored = &g_array_index(image->bitmaps, StoredBitmap, i);
        g_hash_table_insert(index, stored->entry.name, stored);
    }
    return index;
}

// What of it goes into the new directory: as it lies there already, or written anew.
static int store_one(Fiber *self, Store *s, const DirtyBitmap *bitmap, const StoredBitmap *stored)
{
    const Bitmap *bits = dirty_bitmap_bits(bitmap);
    StoredBitmap next = {.entry = {
                             .flags = flags_of(bitmap),
                             .type = QCOW2_BITMAP_TYPE_DIRTY,
                             .granularity_bits = dirty_bitmap_granularity_bits(bitmap),
                             .name = (char *)dirty_bitmap_name(bitmap),
                         }};
    if (stored && (!bits || !dirty_bitmap_has_changed(bitmap))) {
        next = *stored;
        if (bits)
            next.entry.flags = flags_of(bitmap);
        bitmap_directory_add(s->directory, &next);
        return 0;
    }
    if (!bits) // inconsistent, and the file has lost it
        return 0;
    int r = write_bitmap(self, s, bits, &next.entry);
    if (r < 0)
        return r;
    bitmap_directory_add(s->directory, &next);
    if (stored)
        drop_bitmap(self, s, stored);
    return 0;
}

static int store_each(Fiber *self, Store *s, const GPtrArray *bitmaps)
{
    g_autoptr(GHashTable) index = index_stored(s->image);
    for (guint i = 0; i < bitmaps->len; i++) {
        const DirtyBitmap *bitmap = bitmaps->pdata[i];
        if (!dirty_bitmap_is_persistent(bitmap))
            continue;
        int r = store_one(self, s, bitmap, g_hash_table_lookup(index, dirty_bitmap_name(bitmap)));
        if (r < 0)
            return r;
    }
    return 0;
}

// Is there one that the file does not have, or calls in use?
static bool is_needed(const Qcow2Image *image, const GPtrArray *bitmaps)
{
    g_autoptr(GHashTable) index = index_stored(image);
    for (guint i = 0; i < bitmaps->len; i++) {
        const DirtyBitmap *bitmap = bitmaps->pdata[i];
        if (!dirty_bitmap_is_persistent(bitmap) || !dirty_bitmap_bits(bitmap))
            continue;
        const StoredBitmap *stored = g_hash_table_lookup(index, dirty_bitmap_name(bitmap));
        if (!stored || stored->entry.flags & QCOW2_BITMAP_IN_USE)
            return true;
    }
    return false;
}

static int store_claimed(Fiber *self, Qcow2Image *image, const GPtrArray *bitmaps)
{
    Store s;
    // What guests gave back is room for the bitmaps, and may show that the image is corrupt.
    int r = writeback_run(self, &image->writeback);
    freed_wait(self, &image->freed);
    if (r < 0 || image->corrupt)
        return r < 0 ? r : -EIO;
    store_init(&s, image);
    r = store_each(self, &s, bitmaps);
    if (r < 0)
        give_back(self, image, s.taken);
    else
        r = switch_directory(self, &s);
    store_done(&s);
    for (guint i = 0; r == 0 && i < bitmaps->len; i++)
        dirty_bitmap_set_stored(bitmaps->pdata[i]);
    return r;
}

int bitmap_store_all(Fiber *self, Qcow2Image *image, Node *node)
{
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    if (!image->writable || !bitmaps || !is_needed(image, bitmaps))
        return 0;
    int r = image_claim(self, image);
    fiber_mutex_lock(self, &image->claim_mutex);
    if (r == 0)
        r = store_claimed(self, image, bitmaps);
    if (r == 0)
        image->is_claimed = false; // the next write sets the marks again
    fiber_mutex_unlock(self, &image->claim_mutex);
    if (r < 0)
        image_tell(
            image,
            "%s: its dirty bitmaps could not be stored: %s; they are inconsistent now, or lost",
            image->name, g_strerror(-r));
    return r;
}

// --- One of them (DirtyBitmapStore)

static const char *refusal(const Node *node, const Qcow2Image *image, const char *name,
                           uint32_t granularity_bits)
{
    uint64_t n_granules = (node->size_bytes >> granularity_bits) + 1;
    if (image->header.version < 3)
        return "Cannot store dirty bitmaps in qcow2 v2 files";
    if (node->read_only)
        return "The node is read-only";
    if (granularity_bits > BITMAP_MAX_GRANULARITY_BITS)
        return "Granularity exceeds maximum (2147483648 bytes)";
    if (strlen(name) > QCOW2_MAX_BITMAP_NAME_BYTES)
        return "Name length exceeds maximum (1023 characters)";
    if (n_granules / 8 > QCOW2_MAX_BITMAP_BITS_BYTES)
        return "Too much space will be occupied by the bitmap. Use larger granularity";
    return NULL;
}

static int can_add(Node *node, const char *node_name, const char *name, uint32_t granularity_bits,
                   GError **error)
{
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    const char *why = refusal(node, view_of(node)->image, name, granularity_bits);
    uint64_t n = 1,
             bytes = qcow2_bitmap_entry_encode(&(Qcow2BitmapEntry){.name = (char *)name}, NULL);
    for (guint i = 0; bitmaps && i < bitmaps->len; i++) {
        const DirtyBitmap *b = bitmaps->pdata[i];
        Qcow2BitmapEntry entry = {.name = (char *)dirty_bitmap_name(b)};
        n += dirty_bitmap_is_persistent(b);
        bytes += dirty_bitmap_is_persistent(b) ? qcow2_bitmap_entry_encode(&entry, NULL) : 0;
    }
    if (!why && n > QCOW2_MAX_BITMAPS)
        why = "Maximum number of persistent bitmaps is already reached";
    if (!why && bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
        why = "Not enough space in the bitmap directory";
    if (!why)
        return 0;
    return error_set(error, -EINVAL, "Can't make bitmap '%s' persistent in '%s': %s", name,
                     node_name, why);
}

static int before_change(Fiber *self, Node *node)
{
    return image_begin_change(self, view_of(node)->image);
}

// The directory without `name`; the others as the file has them.
static int store_without(Fiber *self, Qcow2Image *image, const char *name)
{
    Store s;
    store_init(&s, image);
    bool is_there = false;
    for (guint i = 0; i < n_stored(image); i++) {
        const StoredBitmap *stored = &g_array_index(image->bitmaps, StoredBitmap, i);
        if (strcmp(stored->entry.name, name) != 0) {
            bitmap_directory_add(s.directory, stored);
            continue;
        }
        is_there = true;
        drop_bitmap(self, &s, stored);
    }
    int r = is_there ? switch_directory(self, &s) : 0;
    store_done(&s);
    return r;
}

static int forget(Fiber *self, Node *node, const char *name, GError **error)
{
    Qcow2Image *image = view_of(node)->image;
    int r = image_begin_change(self, image);
    fiber_mutex_lock(self, &image->claim_mutex);
    if (r == 0)
        r = store_without(self, image, name);
    fiber_mutex_unlock(self, &image->claim_mutex);
    return r < 0 ? error_set(error, r, "Failed to update bitmap extension: %s", g_strerror(-r)) : 0;
}

const DirtyBitmapStore qcow2_bitmap_store = {
    .can_add = can_add,
    .before_change = before_change,
    .forget = forget,
};
