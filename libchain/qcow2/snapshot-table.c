// SPDX-License-Identifier: LGPL-2.1-or-later
// Reading the snapshot table, in a window: its length is known only at its end. Writing: always a
// new table, whole, in clusters of its own (docs/ordering.md §13). In a fiber on the image's loop.

#include "qcow2/snapshot-table.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "qcow2/allocator.h"

enum { SNAPSHOT_WINDOW_BYTES = 256 << 10 };

static int fail(const Qcow2Image *image, GError **error, int r, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

static int fail(const Qcow2Image *image, GError **error, int r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s: %s", image->name, what);
    return r;
}

_Static_assert((int)SNAPSHOT_WINDOW_BYTES >= (int)QCOW2_MAX_SNAPSHOT_ENTRY_BYTES, "too small");

static int check_snapshot_l1(const Qcow2Image *image, uint32_t i, const Qcow2Snapshot *s,
                             GError **error)
{
    uint64_t bytes = (uint64_t)s->l1_entries * sizeof(Be64);
    if (bytes && (!s->l1.v || s->l1.v % image->geometry.cluster_bytes))
        return fail(image, error, -EINVAL,
                    "the L1 table of snapshot %u (%u entries) cannot lie at offset %#" PRIx64
                    ": the image is damaged; try 'qemu-img check'",
                    i, s->l1_entries, s->l1.v);
    uint64_t missing = bytes ? qcow2_missing_bytes(file_size(image->file), s->l1.v, bytes) : 0;
    if (missing)
        return fail(image, error, -EINVAL,
                    "the L1 table of snapshot %u (%u entries at offset %#" PRIx64
                    ") does not lie inside the file: " QCOW2_CUT_OFF,
                    i, s->l1_entries, s->l1.v, missing);
    return 0;
}

// What has been read of the snapshot table. Larger than any entry, so that no allocation follows an
// unchecked number.
typedef struct SnapshotWindow {
    uint64_t off; // of data[0] in the file
    size_t len;
    uint8_t data[SNAPSHOT_WINDOW_BYTES];
} SnapshotWindow;

// Decodes the entry at `off` of the file. Its length, or -EAGAIN (no `error`) when the file ends
// before it does.
static int read_snapshot(Fiber *self, Qcow2Image *image, SnapshotWindow *w, uint64_t off,
                         Qcow2Snapshot *ret_snapshot, GError **error)
{
    for (bool is_fresh = false;; is_fresh = true) {
        uint64_t in_window = off - w->off;
        int r = -EAGAIN;
        if (in_window < w->len)
            r = qcow2_snapshot_decode(w->data + in_window, w->len - in_window,
                                      image->header.size_bytes, ret_snapshot, error);
        if (r != -EAGAIN || is_fresh)
            return r;
        // The last entry's padding to 8 bytes may lie past the end of the file.
        w->off = off;
        w->len = MIN(SNAPSHOT_WINDOW_BYTES, file_size(image->file) - off + 7);
        r = file_read(self, image->file, host_off(off), w->data, w->len);
        if (r < 0)
            return error_set(error, r, "cannot read its entry at offset %" G_GUINT64_FORMAT ": %s",
                             off, g_strerror(-r));
    }
}

int snapshot_table_load(Fiber *self, Qcow2Image *image, GError **error)
{
    const Qcow2Header *h = &image->header;
    snapshot_list_done(&image->snapshots); // of an attempt that failed
    if (!h->n_snapshots)
        return 0;
    g_autofree SnapshotWindow *window = g_try_new(SnapshotWindow, 1);
    if (!window)
        return fail(image, error, -ENOMEM, "no memory for %u snapshots", h->n_snapshots);
    window->off = window->len = 0;
    uint64_t off = h->snapshot_table.v, file_end = file_size(image->file);
    for (uint32_t i = 0; i < h->n_snapshots; i++) {
        if (off - h->snapshot_table.v > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
            return fail(image, error, -EINVAL,
                        "the snapshot table is larger than %d bytes at its entry %u of %u: the "
                        "image is damaged, restore it from a copy",
                        QCOW2_MAX_SNAPSHOT_TABLE_BYTES, i, h->n_snapshots);
        GError *why = NULL;
        Qcow2Snapshot entry;
        int r = -EAGAIN;
        if (off < file_end)
            r = read_snapshot(self, image, window, off, &entry, &why);
        if (r == -EAGAIN) {
            uint64_t least = (uint64_t)(h->n_snapshots - i) * QCOW2_MIN_SNAPSHOT_ENTRY_BYTES;
            uint64_t missing = qcow2_missing_bytes(file_end, off, least);
            return fail(image, error, -EINVAL,
                        "the snapshot table ends in its entry %u of %u: " QCOW2_CUT_OFF, i,
                        h->n_snapshots, MAX(missing, 1));
        }
        if (r < 0) {
            g_propagate_prefixed_error(error, why, "%s: snapshot %u: ", image->name, i);
            return r;
        }
        off += r;
        r = check_snapshot_l1(image, i, &entry, error);
        snapshot_list_append(&image->snapshots, &entry);
        if (r < 0)
            return r;
    }
    image->snapshots.table_bytes = off - h->snapshot_table.v;
    return 0;
}

// --- new tables ----------------------------------------------------------------------------------

static int take_clusters(Fiber *self, Qcow2Image *image, uint64_t n, ClusterRange *ret_range)
{
    Allocation taken = {0};
    int r = allocator_take_piece(self, image, n, &taken);
    for (uint64_t i = 0; r == 0 && i < n; i++) {
        // Metadata from now on, though nothing names it yet: no entry may lead a write here.
        if (!metadata_set_add(&image->metadata, taken.range.first + i))
            r = image_mark_corrupt(
                image, "cluster %" G_GUINT64_FORMAT " holds metadata but has refcount 0",
                taken.range.first + i);
        if (r == 0)
            r = metadata_set_reserve(self, &image->metadata, taken.range.first + i);
    }
    if (r < 0 && taken.range.n)
        allocator_release(self, image, taken.range);
    if (r == 0)
        *ret_range = taken.range;
    return r;
}

int snapshot_table_take_clusters(Fiber *self, Qcow2Image *image, uint64_t bytes,
                                 ClusterRange *ret_range)
{
    uint64_t n = image_clusters_for(image, bytes), n_released;
    int r = 0;
    *ret_range = (ClusterRange){0};
    do {
        n_released = image->freed.n_released;
        r = n ? take_clusters(self, image, n, ret_range) : 0;
    } while (r == -ENOSPC && writeback_reclaim(self, &image->writeback, n_released));
    return r;
}

// `data` NULL: only counts.
static uint64_t encode_added(const GPtrArray *added, uint8_t *data)
{
    uint64_t bytes = 0;
    for (guint i = 0; added && i < added->len; i++)
        bytes += qcow2_snapshot_encode(added->pdata[i], data ? data + bytes : NULL);
    return bytes;
}

static uint64_t encode_all(const Qcow2Image *image, const GPtrArray *added,
                           const ImageSnapshot *removed, uint8_t *data)
{
    uint64_t bytes = 0;
    for (guint i = 0; i < snapshot_list_count(&image->snapshots); i++) {
        const ImageSnapshot *snapshot = snapshot_list_get(&image->snapshots, i);
        if (snapshot != removed)
            bytes += qcow2_snapshot_encode(&snapshot->entry, data ? data + bytes : NULL);
    }
    return bytes + encode_added(added, data ? data + bytes : NULL);
}

int snapshot_table_make(Fiber *self, Qcow2Image *image, const GPtrArray *added,
                        const ImageSnapshot *removed, SnapshotTable *ret_table)
{
    SnapshotTable t = {.table_bytes = encode_all(image, added, removed, NULL),
                       .n = snapshot_list_count(&image->snapshots) + (added ? added->len : 0) -
                            !!removed};
    if (t.n > QCOW2_MAX_SNAPSHOTS || t.table_bytes > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
        return -EFBIG;
    t.data = g_try_malloc0(MAX(t.table_bytes, 1));
    if (!t.data)
        return -ENOMEM;
    encode_all(image, added, removed, t.data);
    int r = snapshot_table_take_clusters(self, image, t.table_bytes, &t.range);
    if (r < 0)
        g_free(t.data);
    else
        *ret_table = t;
    return r;
}

void snapshot_table_done(SnapshotTable *table)
{
    g_free(table->data);
    *table = (SnapshotTable){0};
}

void snapshot_table_update(SnapshotTable *table, const GPtrArray *added)
{
    encode_added(added, table->data + table->table_bytes - encode_added(added, NULL));
}

int snapshot_table_write(Fiber *self, Qcow2Image *image, const SnapshotTable *table)
{
    if (!table->n)
        return 0;
    return file_write(self, image->file, image_cluster_off(image, table->range.first), table->data,
                      table->table_bytes);
}

typedef struct TableSwitch {
    HostOff table;
    uint32_t n;
    bool is_dirty;
} TableSwitch;

static void edit_dirty(Qcow2Header *header, const void *arg)
{
    if (header->version >= 3 && *(const bool *)arg)
        header->incompatible |= QCOW2_INCOMPAT_DIRTY;
    else
        header->incompatible &= ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
}

static void edit_table(Qcow2Header *header, const void *arg)
{
    const TableSwitch *s = arg;
    header->snapshot_table = s->table;
    header->n_snapshots = s->n;
    edit_dirty(header, &s->is_dirty);
}

int snapshot_table_set_dirty(Fiber *self, Qcow2Image *image, bool is_dirty)
{
    if (MUTANT("dirty-before-references") && is_dirty)
        return 0;
    if (image->header.version < 3 || (image->snapshots.needs_repair && !is_dirty))
        return 0;
    return image_change_header(self, image, edit_dirty, &is_dirty);
}

void snapshot_table_end_repair(Fiber *self, Qcow2Image *image, bool is_incomplete)
{
    if (is_incomplete || image->corrupt ||
        (!MUTANT("write-back-before-clean") && writeback_run_all(self, &image->writeback) < 0))
        image->snapshots.needs_repair = true;
    else
        snapshot_table_set_dirty(self, image, false);
}

int snapshot_table_switch(Fiber *self, Qcow2Image *image, const SnapshotTable *table, bool is_dirty)
{
    const Qcow2Header *h = &image->header;
    ClusterRange old = {image_cluster_of(image, h->snapshot_table),
                        image_clusters_for(image, image->snapshots.table_bytes)};
    TableSwitch s = {table->n ? image_cluster_off(image, table->range.first) : host_off(0),
                     table->n, is_dirty || image->snapshots.needs_repair};
    int r = image_change_header(self, image, edit_table, &s);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < old.n; i++)
        metadata_set_remove(&image->metadata, old.first + i);
    if (old.n)
        freed_add(&image->freed, old, host_off(0)); // §13: unlinked durably
    image->snapshots.table_bytes = table->table_bytes;
    return 0;
}
