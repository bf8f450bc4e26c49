// SPDX-License-Identifier: LGPL-2.1-or-later
// The head's size. Drained; in a fiber on the image's loop.
//
// Write order (docs/ordering.md §15). Growing: a larger L1 table, moved like the refcount table
// (all durable → new table → sync → header → the old one is freed); then the new part is made to
// read as zeros, and that made durable; then the header's size. Shrinking: the header's size; then
// what lies beyond is freed like a discard. So a cut leaves the old size with all its content, or
// the new one.
//
//     old size ──┐         ┌── the backing file ends here, or nowhere
//     ...data ───┤ cluster ┤ zero clusters ┤ nothing ┤
//                │ written ┤               ┤ (what an interrupted shrinking left is freed)

#include <errno.h>

#include "base/error.h"
#include "chain-core/dirty-bitmap.h"
#include "chain-core/mutant.h"
#include "qcow2/allocator.h"
#include "qcow2/open.h"
#include "qcow2/snapshot-table.h"
#include "qcow2/view.h"

enum { SECTOR_BYTES = 512 };

static uint64_t cluster_end(const Qcow2View *view, uint64_t off)
{
    uint64_t cb = view->image->geometry.cluster_bytes;
    return (off + cb - 1) & ~(cb - 1);
}

static void set_size(Qcow2View *view, uint64_t size_bytes)
{
    view->node.size_bytes = view->image->geometry.size_bytes = size_bytes;
}

// --- The L1 table

// A larger table, which nothing names yet.
typedef struct NewL1 {
    ClusterRange range;
    Be64 *entries;
    uint64_t n;
    HostOff off;
} NewL1;

static void edit_l1(Qcow2Header *header, const void *arg)
{
    const NewL1 *l1 = arg;
    header->l1 = l1->off;
    header->l1_entries = l1->n;
}

// Changes of entries that did not reach the disk: a copy would make them durable out of their
// order.
static bool has_changed_entries(const EntryTable *table)
{
    return table->changed && table->changed->len;
}

// All refcounts, and all entries of the old table, are durable from then on.
static int write_l1(Fiber *self, Qcow2View *view, const NewL1 *l1)
{
    Qcow2Image *image = view->image;
    int r = MUTANT("write-back-before-longer-l1")
                ? 0
                : writeback_run_refcounts(self, &image->writeback);
    if (r == 0 && has_changed_entries(&view->l1))
        r = -EIO;
    if (r < 0)
        return r;
    memcpy(l1->entries, view->l1.entries, view->l1.n * sizeof(Be64));
    file_debug_event(image->file, DEBUG_L1_GROW_WRITE_TABLE);
    r = file_write(self, image->file, l1->off, l1->entries,
                   l1->range.n << image->geometry.cluster_bits);
    return r < 0 || MUTANT("sync-of-longer-l1") ? r : file_flush(self, image->file);
}

// The header names it: it is the head's, and the old one is freed.
static void adopt_l1(Qcow2View *view, NewL1 *l1)
{
    Qcow2Image *image = view->image;
    ClusterRange old = {image_cluster_of(image, view->l1.off),
                        image_clusters_for(image, view->l1.n * sizeof(Be64))};
    entry_table_done(&view->l1);
    view->l1 = (EntryTable){.off = l1->off, .entries = g_steal_pointer(&l1->entries), .n = l1->n};
    for (uint64_t c = old.first; c < old.first + old.n; c++)
        metadata_set_remove(&image->metadata, c);
    if (old.n)
        freed_add(&image->freed, old, host_off(0)); // unlinked durably
}

static int grow_l1(Fiber *self, Qcow2View *view, uint64_t size_bytes)
{
    Qcow2Image *image = view->image;
    NewL1 l1 = {.n = qcow2_l1_entries_for(&image->geometry, size_bytes)};
    if (l1.n <= view->l1.n)
        return 0;
    if (l1.n > QCOW2_MAX_L1_BYTES / sizeof(Be64))
        return -EFBIG;
    file_debug_event(image->file, DEBUG_L1_GROW_ALLOC_TABLE);
    int r = snapshot_table_take_clusters(self, image, l1.n * sizeof(Be64), &l1.range);
    if (r < 0)
        return r;
    l1.off = image_cluster_off(image, l1.range.first);
    l1.entries = g_try_malloc0(l1.range.n << image->geometry.cluster_bits);
    r = l1.entries ? write_l1(self, view, &l1) : -ENOMEM;
    file_debug_event(image->file, DEBUG_L1_GROW_ACTIVATE_TABLE);
    if (r == 0)
        r = image_change_header(self, image, edit_l1, &l1);
    if (r == 0) {
        adopt_l1(view, &l1);
    } else if (!image->writeback.has_ended) { // else the disk may name it
        for (uint64_t i = 0; i < l1.range.n; i++)
            metadata_set_remove(&image->metadata, l1.range.first + i);
        allocator_release(self, image, l1.range);
    }
    g_free(l1.entries);
    return r;
}

// --- Content

// Frees what whole clusters of [from, to) name, where there are L2 tables at all.
static int free_clusters(Fiber *self, Qcow2View *view, uint64_t from, uint64_t to)
{
    const Qcow2Geometry *g = &view->image->geometry;
    int r = 0;
    while (from < to && r == 0) {
        uint64_t i1 = qcow2_l1_index(g, guest_off(from));
        uint64_t end = MIN((i1 + 1) * g->l2_entries * g->cluster_bytes, to);
        if (view->l1.entries[i1].raw)
            r = view_zero_clusters(self, view, from, end);
        from = end;
    }
    return r;
}

// With the new size in memory: what came from `old` on reads as zeros, durably.
static int zero_new_part(Fiber *self, Qcow2View *view, uint64_t old)
{
    uint64_t size = view->node.size_bytes, tail = MIN(cluster_end(view, old), size);
    uint64_t shown = MAX(tail, MIN(cluster_end(view, view_shown_below(view)), size));
    int r = 0;
    if (shown > old)
        r = view_zero(self, &view->node, guest_off(old), shown - old, 0);
    if (r == 0)
        r = free_clusters(self, view, shown, size);
    return r < 0 || MUTANT("zeros-before-size") ? r : writeback_run(self, &view->image->writeback);
}

// --- Growing and shrinking

static void edit_size(Qcow2Header *header, const void *arg)
{
    header->size_bytes = *(const uint64_t *)arg;
}

// A raw data file is as long as the disk; another has room for it.
static int resize_data_file(Fiber *self, Qcow2View *view, uint64_t size_bytes)
{
    File *data = view->image->data_file;
    if (!data || (file_size(data) >= size_bytes && !image_has_raw_data(view->image)))
        return 0;
    int r = file_truncate(self, data, size_bytes);
    return r < 0 ? r : file_flush(self, data);
}

static int grow(Fiber *self, Qcow2View *view, uint64_t size_bytes, GError **error)
{
    uint64_t old = view->node.size_bytes;
    int r = grow_l1(self, view, size_bytes);
    if (r < 0)
        return error_set(error, r, "Failed to grow the L1 table: %s", g_strerror(-r));
    r = resize_data_file(self, view, size_bytes);
    if (r < 0)
        return error_set(error, r, "Failed to extend data file: %s", g_strerror(-r));
    set_size(view, size_bytes);
    r = zero_new_part(self, view, old);
    if (r == 0)
        r = image_change_header(self, view->image, edit_size, &size_bytes);
    if (r < 0) {
        set_size(view, old);
        return error_set(error, r, "Failed to update the image size: %s", g_strerror(-r));
    }
    return 0;
}

// What cannot be freed stays unused: growing again finds it.
static int shrink(Fiber *self, Qcow2View *view, uint64_t size_bytes, GError **error)
{
    Qcow2Image *image = view->image;
    uint64_t old_end = cluster_end(view, view->node.size_bytes);
    if (MUTANT("smaller-size-before-freeing"))
        free_clusters(self, view, cluster_end(view, size_bytes), old_end);
    int r = writeback_run(self, &image->writeback);
    if (r == 0)
        r = image_change_header(self, image, edit_size, &size_bytes);
    if (r < 0)
        return error_set(error, r, "Failed to update the image size: %s", g_strerror(-r));
    r = free_clusters(self, view, cluster_end(view, size_bytes), old_end);
    set_size(view, size_bytes);
    if (r == 0)
        r = resize_data_file(self, view, size_bytes);
    if (r == 0)
        r = writeback_run(self, &image->writeback);
    if (r < 0)
        image_tell(image, "%s: what lies beyond its new end could not be freed: %s", image->name,
                   g_strerror(-r));
    return 0;
}

static int check_bitmaps(Fiber *self, const Node *node, GError **error)
{
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    int r = 0;
    for (guint i = 0; bitmaps && r == 0 && i < bitmaps->len; i++)
        if (dirty_bitmap_is_persistent(bitmaps->pdata[i]))
            r = dirty_bitmap_check(bitmaps->pdata[i], DIRTY_BITMAP_USE_CHANGE, error);
    return r;
}

// Their size changes with the disk's: until they are stored again the file's are not to be
// believed.
static int mark_bitmaps(Fiber *self, const Node *node)
{
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    int r = 0;
    for (guint i = 0; bitmaps && r == 0 && i < bitmaps->len; i++)
        r = dirty_bitmap_before_change(self, bitmaps->pdata[i]);
    return r;
}

// What comes new in the cluster where the disk ends becomes zeros by an entry for all of it. What
// lies before is copied from below, so that has to be there.
static int check_end(Fiber *self, Qcow2View *view, GError **error)
{
    uint64_t end = view->node.size_bytes, len;
    NodeExtentKind kind;
    bool is_hidden = view->image->header.backing_name && !view->node.backing;
    if (!is_hidden || cluster_end(view, end) == end)
        return 0;
    int r = view_find_kind(self, &view->node, guest_off(end - 1), 1, &kind, &len);
    if (r < 0)
        return error_set(error, r, "%s: %s", view->node.name, g_strerror(-r));
    if (kind != NODE_EXTENT_BELOW)
        return 0;
    return error_set(error, -ENOTSUP,
                     "%s cannot grow while its backing file is not open, since the cluster in "
                     "which it ends shows what that has; open it with its backing file, or create "
                     "it with the size that it is to have",
                     view->node.name);
}

static int check(Fiber *self, Qcow2View *view, uint64_t size_bytes, GError **error)
{
    const Qcow2Image *image = view->image;
    if (size_bytes % SECTOR_BYTES)
        return error_set(error, -EINVAL, "The new size must be a multiple of %d", SECTOR_BYTES);
    if (snapshot_list_count(&image->snapshots) && image->header.version < 3)
        return error_set(error, -ENOTSUP, "Can't resize a v2 image which has snapshots");
    if (snapshot_list_count(&image->snapshots) && size_bytes < view->node.size_bytes)
        return error_set(error, -ENOTSUP, "Can't shrink an image which has snapshots");
    int r = size_bytes > view->node.size_bytes ? check_end(self, view, error) : 0;
    return r < 0 ? r : check_bitmaps(self, &view->node, error);
}

int view_resize(Fiber *self, Node *node, uint64_t size_bytes, GError **error)
{
    Qcow2View *view = view_of(node);
    SnapshotList *snapshots = &view->image->snapshots;
    snapshot_list_begin_change(self, snapshots); // none is in the making
    int r = check(self, view, size_bytes, error);
    if (r == 0) {
        r = image_begin_change(self, view->image);
        if (r == 0)
            r = mark_bitmaps(self, node);
        if (r < 0)
            error_set(error, r, "%s: cannot be changed: %s", node->name, g_strerror(-r));
    }
    if (r == 0)
        r = size_bytes > node->size_bytes   ? grow(self, view, size_bytes, error)
            : size_bytes < node->size_bytes ? shrink(self, view, size_bytes, error)
                                            : 0;
    snapshot_list_end_change(snapshots);
    return r;
}
