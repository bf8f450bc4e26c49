// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening and closing an image. In a fiber on the file's loop.
//
// Open reads the header and writes nothing; the tables are read and checked when the first view is
// made (image_load), which then repairs a dirty image that is to be written. The other writes wait
// for the first guest write (image_claim, docs/ordering.md §7): the in-use marks of persistent
// bitmaps, then one synced header write that clears the autoclear bits whose data is not
// maintained.

#include "qcow2/open.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "chain-core/qcow2-check.h"
#include "qcow2/allocator.h"
#include "qcow2/bitmap-directory.h"
#include "qcow2/inflated-cache.h"
#include "qcow2/snapshot-table.h"

enum {
    // The headers of a chain are read one after the other, often from a cold disk: no more than
    // nearly all of them take.
    FIRST_READ_BYTES = 4 << 10,
};

static int fail(GError **error, int r, const Qcow2Image *image, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

static int fail(GError **error, int r, const Qcow2Image *image, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s: %s", image->name, what);
    return r;
}

static int read_header(Fiber *self, Qcow2Image *image, GError **error)
{
    uint64_t size = file_size(image->file);
    size_t len = MIN(size, FIRST_READ_BYTES);
    g_autofree uint8_t *data = g_malloc0(MAX(len, 512));
    int r = file_read(self, image->file, host_off(0), data, len);
    if (r == 0) {
        size_t needed = MIN(qcow2_header_needed_bytes(data, len), size);
        if (needed > len) {
            data = g_realloc(data, needed);
            len = needed;
            r = file_read(self, image->file, host_off(0), data, len);
        }
    }
    if (r < 0)
        return fail(error, r, image, "cannot read the header: %s", g_strerror(-r));
    GError *why = NULL;
    r = qcow2_header_decode(data, len, size, &image->header, &why);
    if (r < 0) {
        g_propagate_prefixed_error(error, why, "%s: ", image->name);
        return r;
    }
    const Qcow2Header *h = &image->header;
    qcow2_geometry_init(&image->geometry, h->cluster_bits, h->refcount_order,
                        h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2,
                        h->incompatible & QCOW2_INCOMPAT_DATA_FILE, h->size_bytes);
    return 0;
}

static int read_refcount_table(Fiber *self, Qcow2Image *image, GError **error)
{
    uint64_t bytes = (uint64_t)image->header.refcount_table_clusters
                     << image->geometry.cluster_bits;
    file_debug_event(image->file, DEBUG_REFTABLE_LOAD);
    int r = entry_table_load(self, &image->refcount_table, image->file,
                             image->header.refcount_table, bytes / sizeof(Be64));
    if (r == -ENOMEM)
        return fail(error, -ENOMEM, image,
                    "no memory for the refcount table (%" G_GUINT64_FORMAT " bytes)", bytes);
    if (r < 0)
        return fail(error, r, image, "cannot read the refcount table: %s", g_strerror(-r));
    return 0;
}

static int add_metadata(Qcow2Image *image, HostOff off, uint64_t n_clusters, const char *what,
                        GError **error)
{
    for (uint64_t i = 0, c = image_cluster_of(image, off); i < n_clusters; i++)
        if (!metadata_set_add(&image->metadata, c + i))
            return fail(error, -EUCLEAN, image,
                        "%s at offset %#" G_GINT64_MODIFIER
                        "x overlaps other metadata: the image is corrupt; "
                        "try 'qemu-img check -r all', or open it with --read-only",
                        what, off.v);
    return 0;
}

// Snapshot L1 tables are not all loaded; their places, checked when the snapshots were read, are
// enough. Few images have more than a few: the bound keeps a crafted one from filling memory.
static int collect_snapshot_tables(Qcow2Image *image, GError **error)
{
    const Qcow2Header *h = &image->header;
    if (!h->n_snapshots)
        return 0;
    int r = add_metadata(image, h->snapshot_table,
                         image_clusters_for(image, image->snapshots.table_bytes),
                         "the snapshot table", error);
    uint64_t total = 0;
    for (uint32_t i = 0; r == 0 && i < h->n_snapshots; i++) {
        const Qcow2Snapshot *s = &snapshot_list_get(&image->snapshots, i)->entry;
        uint64_t bytes = (uint64_t)s->l1_entries * 8;
        total += bytes;
        if (total > SNAPSHOT_TABLE_MAX_L1_BYTES)
            return fail(error, -EUCLEAN, image,
                        "the L1 tables of its snapshots are larger than %d bytes together: open it "
                        "with --read-only",
                        SNAPSHOT_TABLE_MAX_L1_BYTES);
        if (bytes)
            r = add_metadata(image, s->l1, image_clusters_for(image, bytes),
                             "a snapshot's L1 table", error);
    }
    return r;
}

int image_fail_cut_off(const Qcow2Image *image, GError **error, HostOff cluster, const char *what)
{
    // Of the last cluster nobody can say how much of it was written.
    uint64_t missing = qcow2_missing_bytes(file_size(image->file), cluster.v, 1);
    return fail(error, -EUCLEAN, image,
                "%s lies at offset %#" PRIx64 ": " QCOW2_CUT_OFF
                "; --read-only serves what is there",
                what, cluster.v, missing);
}

// Enters all fixed tables into the metadata set and so finds those that overlap.
static int collect_metadata(Qcow2Image *image, GError **error)
{
    const Qcow2Header *h = &image->header;
    int r = add_metadata(image, host_off(0), 1, "the header", error);
    if (r == 0)
        r = add_metadata(image, h->refcount_table, h->refcount_table_clusters, "the refcount table",
                         error);
    for (uint64_t i = 0; r == 0 && i < image->refcount_table.n; i++) {
        HostOff block;
        bool is_place = qcow2_refcount_table_entry_decode(&image->geometry,
                                                          image->refcount_table.entries[i], &block);
        if (is_place && qcow2_header_could_hold(&image->header, block.v) &&
            block.v >= file_size(image->file))
            return image_fail_cut_off(image, error, block, "a refcount block");
        if (!is_place || block.v >= file_size(image->file))
            return fail(error, -EUCLEAN, image,
                        "entry %" G_GUINT64_FORMAT
                        " of the refcount table is damaged: the image is corrupt; try "
                        "'qemu-img check -r all', or open it with --read-only",
                        i);
        if (block.v)
            r = add_metadata(image, block, 1, "a refcount block", error);
    }
    if (r == 0 && h->l1_entries)
        r = add_metadata(image, h->l1, image_clusters_for(image, (uint64_t)h->l1_entries * 8),
                         "the L1 table", error);
    if (r == 0)
        r = collect_snapshot_tables(image, error);
    const Qcow2BitmapsExtension *b = &h->bitmaps;
    if (r == 0 && bitmap_directory_is_valid(image) &&
        b->directory_bytes <= QCOW2_MAX_BITMAP_DIRECTORY_BYTES &&
        b->directory.v < file_size(image->file))
        r = add_metadata(image, b->directory, image_clusters_for(image, b->directory_bytes),
                         "the bitmap directory", error);
    return r;
}

static int repair_dirty(Fiber *self, Qcow2Image *image, GError **error)
{
    Qcow2CheckResult result = {0};
    GError *why = NULL;
    unsigned fix = QCOW2_CHECK_FIX_LEAKS | QCOW2_CHECK_FIX_ERRORS | QCOW2_CHECK_REFUSE_CUT_OFF;
    int r = qcow2_check(self, image->file, fix, &result, &why);
    if (r < 0) {
        g_propagate_prefixed_error(
            error, why, "%s: not closed cleanly, and it cannot be repaired: ", image->name);
        return r;
    }
    uint64_t n_fixed = result.n_corruptions_fixed;
    uint64_t n_left = result.n_corruptions + result.n_check_errors;
    uint64_t n_leaks = result.n_leaks_fixed;
    qcow2_check_result_clear(&result);
    if (n_left)
        return fail(error, -EUCLEAN, image,
                    "not closed cleanly, and the repair left %" G_GUINT64_FORMAT
                    " errors; open it with --read-only to rescue its data",
                    n_left);
    image_tell(image,
               "%s: was not closed cleanly; repaired %" G_GUINT64_FORMAT
               " errors and %" G_GUINT64_FORMAT " leaked clusters",
               image->name, n_fixed, n_leaks);
    qcow2_header_clear(&image->header);
    return read_header(self, image, error);
}

// Says what is done about the bitmaps: which autoclear bits stay.
static int claim_bitmaps(Fiber *self, Qcow2Image *image, uint64_t *ret_keep)
{
    *ret_keep = 0;
    if (!bitmap_directory_is_valid(image))
        return 0;
    int r = bitmap_directory_mark_in_use(self, image);
    if (r == -EINVAL) // said when it was loaded
        return 0;
    *ret_keep = QCOW2_AUTOCLEAR_BITMAPS;
    return r;
}

int image_claim(Fiber *self, Qcow2Image *image)
{
    fiber_mutex_lock(self, &image->claim_mutex);
    uint64_t keep = 0;
    if (MUTANT("marks-before-change"))
        image->is_claimed = true;
    int r = image->is_claimed ? 0 : claim_bitmaps(self, image, &keep);
    // The data file stays raw: data lies where the guest has it, and zeros are written to it.
    if (image->geometry.external_data)
        keep |= QCOW2_AUTOCLEAR_RAW_DATA;
    if (r == 0 && !image->is_claimed && image->header.autoclear & ~keep)
        r = image_change_features(self, image, 0, ~keep);
    image->is_claimed |= r == 0;
    fiber_mutex_unlock(self, &image->claim_mutex);
    if (r < 0 && !image->claim_failed)
        image_tell(image, "%s: cannot be written: marking its dirty bitmaps as in use failed: %s",
                   image->name, g_strerror(-r));
    image->claim_failed |= r < 0;
    return r == 0 && image->corrupt ? -EIO : r; // found while we waited
}

int image_check_not_corrupt(const Qcow2Image *image, GError **error)
{
    if (!(image->header.incompatible & QCOW2_INCOMPAT_CORRUPT))
        return 0;
    return fail(error, -EUCLEAN, image,
                "marked corrupt by an earlier user; repair it with 'qemu-img check -r all' "
                "unless the file is cut off, or open it with --read-only");
}

static int open_header(Fiber *self, Qcow2Image *image, GError **error)
{
    int r = read_header(self, image, error);
    if (r < 0)
        return r;
    r = image->writable ? image_check_not_corrupt(image, error) : 0;
    if (r < 0)
        return r;
    if ((image->header.incompatible & QCOW2_INCOMPAT_DATA_FILE) && !image->header.data_file_name)
        return fail(error, -EINVAL, image,
                    "its header says that an external data file is used, but does not name it: the "
                    "image is damaged");
    return 0;
}

int image_load_tables(Fiber *self, Qcow2Image *image, GError **error)
{
    int r = 0;
    bool is_dirty = image->header.incompatible & QCOW2_INCOMPAT_DIRTY;
    if (image->writable && is_dirty)
        r = repair_dirty(self, image, error);
    metadata_set_init(&image->metadata, image->file, image->header.cluster_bits);
    if (r == 0 && (is_dirty || !image->is_loaded))
        r = snapshot_table_load(self, image, error);
    if (r == 0 && image->writable)
        r = read_refcount_table(self, image, error);
    if (r < 0)
        return r;
    allocator_init(image);
    image->is_claimed = !image->header.autoclear;
    return image->writable ? collect_metadata(image, error) : 0;
}

int image_load(Fiber *self, Qcow2Image *image, GError **error)
{
    if (image->is_loaded)
        return 0;
    int r = image_load_tables(self, image, error);
    if (!image->allocator.free)
        return r;
    if (!image->inflated)
        image->inflated = inflated_cache_new(image);
    image->is_loaded = true;
    if (r < 0)
        image->writable = false; // nothing to write back
    return r;
}

void image_drop_tables(Qcow2Image *image)
{
    allocator_done(image);
    metadata_set_done(&image->metadata);
    entry_table_done(&image->refcount_table);
}

// What is open beside the image was found by these names, and what is in memory for it has that
// shape.
static int check_same_image(const Qcow2Image *image, const Qcow2Header *old, GError **error)
{
    const Qcow2Header *h = &image->header;
    if (g_strcmp0(h->backing_name, old->backing_name) != 0)
        return fail(error, -ESTALE, image,
                    "another program has given it another backing file (%s, it was %s): delete the "
                    "node and add it anew",
                    h->backing_name ?: "none", old->backing_name ?: "none");
    if (g_strcmp0(h->data_file_name, old->data_file_name) != 0)
        return fail(error, -ESTALE, image,
                    "another program has given it another data file: delete the node and add it "
                    "anew");
    if (h->cluster_bits != old->cluster_bits ||
        (h->incompatible ^ old->incompatible) & QCOW2_INCOMPAT_EXTENDED_L2)
        return fail(error, -ESTALE, image,
                    "another program has made it anew, with other clusters: delete the node and "
                    "add it anew");
    return 0;
}

// The snapshots go with their list; no view shows one.
static int reload_tables(Fiber *self, Qcow2Image *image, const Qcow2Header *old, GError **error)
{
    int r = open_header(self, image, error);
    if (r == 0)
        r = check_same_image(image, old, error);
    if (r < 0)
        return r;
    table_cache_forget_image(image->cache, image, &image->writeback.parts.dirty);
    inflated_cache_free(image->inflated);
    image->inflated = inflated_cache_new(image);
    image->preallocation = PREALLOCATION_UNKNOWN;
    image->packed_next = host_off(0);
    image_drop_tables(image);
    image->is_loaded = false;
    r = image_load_tables(self, image, error);
    image->is_loaded = true;
    return r;
}

int image_reload(Fiber *self, Qcow2Image *image, GError **error)
{
    Qcow2Header old_header = image->header;
    Qcow2Geometry old_geometry = image->geometry;
    image->header = (Qcow2Header){0};
    int r = reload_tables(self, image, &old_header, error);
    if (r < 0) {
        qcow2_header_clear(&image->header);
        image->header = old_header;
        image->geometry = old_geometry;
    } else {
        qcow2_header_clear(&old_header);
    }
    return r;
}

static void release_clusters(Fiber *self, void *arg, ClusterRange range)
{
    allocator_release(self, arg, range);
}

int qcow2_image_open(Fiber *self, File *file, const Qcow2OpenOptions *options,
                     Qcow2Image **ret_image, GError **error)
{
    Qcow2Image *image = g_new0(Qcow2Image, 1);
    image->n_refs = 1;
    image->views = g_ptr_array_new();
    image->loop = fiber_loop(self);
    image->file = file;
    image->name = g_strdup(file_path(file));
    image->memory = options->memory;
    image->events = options->events;
    image->max_bitmap_clusters = QCOW2_MAX_BITMAP_CLUSTERS;
    image->writable = !options->read_only;
    image->is_inactive = options->is_inactive && options->read_only;
    image->is_shared = image->is_inactive || (options->shared && options->read_only);
    image->cache = table_cache_ref(image->loop, image->memory);
    image->cow_buffers = cow_buffers_ref(image->loop);
    freed_init(&image->freed, image->loop, &image->fibers, release_clusters, image);
    image->writeback = (Writeback){
        .parts = {.file = file,
                  .geometry = &image->geometry,
                  .metadata = &image->metadata,
                  .refcount_table = &image->refcount_table,
                  .freed = &image->freed,
                  .dirty = {.cache = image->cache}},
        .loop = image->loop,
        .memory = image->memory,
        .fibers = &image->fibers,
    };
    writeback_init(&image->writeback);
    int r = open_header(self, image, error);
    if (r < 0) {
        qcow2_image_unref_close(self, image);
        return r;
    }
    *ret_image = image;
    return 0;
}

Qcow2Image *qcow2_image_ref(Qcow2Image *image)
{
    image->n_refs++;
    return image;
}

// Writes back what is dirty and releases what was freed, as far as that goes, before it closes.
static void close_writing(Fiber *self, Qcow2Image *image)
{
    fiber_wait_group_wait(self, &image->fibers);
    // The first write-back makes frees durable and releases them, the second writes their
    // refcounts.
    for (int i = 0; i < 2; i++) {
        if (writeback_run(self, &image->writeback) < 0)
            return;
        fiber_wait_group_wait(self, &image->fibers);
    }
    if (image->writeback.parts.dirty.n || image->freed.durable->len)
        writeback_run(self, &image->writeback);
}

void qcow2_image_unref_close(Fiber *self, Qcow2Image *image)
{
    if (!image || --image->n_refs)
        return;
    if (image->writable && image->is_loaded)
        close_writing(self, image);
    fiber_wait_group_wait(self, &image->fibers);
    inflated_cache_free(image->inflated);
    table_cache_forget_image(image->cache, image, &image->writeback.parts.dirty);
    table_cache_unref(self, image->cache);
    writeback_done(&image->writeback);
    freed_done(&image->freed);
    image_drop_tables(image);
    g_ptr_array_unref(image->views);
    cow_buffers_unref(image->cow_buffers);
    snapshot_list_done(&image->snapshots);
    qcow2_header_clear(&image->header);
    file_close(self, image->data_file);
    file_close(self, image->file);
    g_free(image->name);
    g_free(image);
}
