// SPDX-License-Identifier: LGPL-2.1-or-later
// Changing L2 entries of the head. Its tables are created at the first write to their range, and
// copied when a snapshot shares them, under the image's l2_mutex. In a fiber on the image's loop.
//
// Write order (docs/ordering.md §6): the table's content and its refcount are durable before the L1
// entry that names it. A new table is in `new_tables` until then, which makes writeback.c write its
// slices early.

#include "chain-core/mutant.h"
#include "qcow2/mapping.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "qcow2/allocator.h"

// What the cache has of a table, which may not be in the file yet.
static void copy_cached(const Qcow2Image *image, HostOff table, uint8_t *buf, bool *is_cached)
{
    uint32_t slice_bytes = image->geometry.slice_bytes;
    for (uint32_t o = 0; o < image->geometry.cluster_bytes; o += slice_bytes) {
        const TableSlice *slice = table_cache_find(image->cache, image, host_off(table.v + o));
        is_cached[o / slice_bytes] = slice != NULL;
        if (slice)
            memcpy(buf + o, slice->data, slice_bytes);
    }
}

static void clear_copied(const Qcow2Geometry *g, void *table)
{
    for (uint32_t i = 0; i < g->l2_entries; i++) {
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, table, i);
        if (!e.copied || e.kind == QCOW2_CLUSTER_BAD)
            continue;
        e.copied = false;
        qcow2_l2_entry_encode(g, table, i, &e);
    }
}

// Nobody changes a shared table, but for COPIED flags of one that a snapshot in the making shares:
// the copy has none of those. What is cached when this begins is newer than the file, or the same;
// the rest is in the file.
static int copy_table(Fiber *self, Qcow2Image *image, HostOff from, HostOff to, bool without_copied)
{
    const Qcow2Geometry *g = &image->geometry;
    uint32_t n_slices = g->cluster_bytes / g->slice_bytes;
    g_autofree uint8_t *cached = g_try_malloc(g->cluster_bytes),
                       *buf = g_try_malloc(g->cluster_bytes);
    g_autofree bool *is_cached = g_try_new(bool, n_slices);
    if (!buf || !cached || !is_cached)
        return -ENOMEM;
    copy_cached(image, from, cached, is_cached);
    int r = file_read(self, image->file, from, buf, g->cluster_bytes);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n_slices; i++)
        if (is_cached[i])
            memcpy(buf + i * g->slice_bytes, cached + i * g->slice_bytes, g->slice_bytes);
    if (without_copied && !MUTANT("copied-table-has-no-copied"))
        clear_copied(g, buf);
    file_debug_event(image->file, DEBUG_L2_ALLOC_WRITE);
    return file_write(self, image->file, to, buf, g->cluster_bytes);
}

static int make_table(Fiber *self, Qcow2View *view, uint64_t i1, Qcow2L1Entry old)
{
    Qcow2Image *image = view->image;
    Allocation taken;
    HostOff entry = entry_table_place(&view->l1, i1);
    int r = metadata_set_reserve(self, &image->metadata, image_cluster_of(image, entry));
    if (r == 0)
        r = allocator_take(self, image, 1, &taken);
    if (r < 0)
        return r;
    HostOff table = image_cluster_off(image, taken.range.first);
    if (!table_cache_forget(image->cache, image, table, image->geometry.cluster_bytes,
                            image->geometry.slice_bytes, &image->writeback.parts.dirty))
        return image_mark_corrupt(
            image, "cluster at offset %#" G_GINT64_MODIFIER "x is a table but has refcount 0",
            table.v);
    // Metadata from now on, though nothing names it yet: no entry may lead a write here meanwhile.
    metadata_set_add(&image->metadata, taken.range.first);
    file_debug_event(image->file, old.l2.v ? DEBUG_L2_ALLOC_COW_READ : DEBUG_L2_ALLOC_WRITE);
    if (old.l2.v)
        r = copy_table(self, image, old.l2, table, mapping_is_shared(view, i1));
    else if (!taken.is_zeroed)
        r = file_zero(self, image->file, table, image->geometry.cluster_bytes, 0);
    if (r == 0)
        r = metadata_set_reserve(self, &image->metadata, taken.range.first);
    // One slice is dirty from the start, so that the file reaches the table when L1 names it.
    TableSlice *slice;
    if (r == 0)
        r = image_get_slice(self, image, table, TABLE_SLICE_L2, &slice);
    if (r < 0) {
        metadata_set_remove(&image->metadata, taken.range.first);
        allocator_release(self, image, taken.range);
        return r;
    }
    table_slice_set_dirty(slice, &image->writeback.parts.dirty);
    table_slice_release(slice);
    cluster_set_add(&image->metadata.new_tables, taken.range.first);
    entry_table_set(&view->l1, i1, qcow2_l1_entry_encode(table, true));
    mapping_end_shared(view, i1);
    if (old.l2.v)
        freed_add(&image->freed, (ClusterRange){image_cluster_of(image, old.l2), 1}, entry);
    return 0;
}

// Makes sure that the head has its own writable L2 table for `off`.
static int prepare_table(Fiber *self, Qcow2View *view, GuestOff off)
{
    Qcow2Image *image = view->image;
    uint64_t i1 = qcow2_l1_index(&image->geometry, off);
    Qcow2L1Entry e = qcow2_l1_entry_decode(view->l1.entries[i1]);
    if (G_LIKELY(e.l2.v && e.copied && !mapping_is_shared(view, i1)))
        return 0;
    bool is_locked = !MUTANT("one-new-table-at-a-time");
    if (is_locked)
        fiber_mutex_lock(self, &image->l2_mutex);
    e = qcow2_l1_entry_decode(view->l1.entries[i1]);
    bool is_own = e.l2.v && e.copied && !mapping_is_shared(view, i1);
    int r = is_own ? 0 : make_table(self, view, i1, e);
    if (is_locked)
        fiber_mutex_unlock(self, &image->l2_mutex);
    return r;
}

// The slice of the span, held, with its space; prepare_table() came before.
static int get_slice(Fiber *self, Qcow2View *view, const ClusterSpan *span, TableSlice **ret_slice)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    Qcow2L1Entry l1 = qcow2_l1_entry_decode(view->l1.entries[qcow2_l1_index(g, span->off)]);
    assert(l1.l2.v && l1.copied);
    HostOff place = cluster_span_slice(g, span, l1.l2);
    int r = image_get_slice(self, image, place, TABLE_SLICE_L2, ret_slice);
    if (r == -EUCLEAN)
        return image_mark_corrupt(
            image, "L2 table at offset %#" G_GINT64_MODIFIER "x overlaps a refcount block",
            place.v);
    if (r < 0)
        return r;
    r = metadata_set_reserve_slice(self, &image->metadata, *ret_slice);
    if (r < 0)
        table_slice_release(*ret_slice);
    return r;
}

int mapping_begin(Fiber *self, Qcow2View *view, const ClusterSpan *span, MappingChange *ret_change)
{
    Qcow2Image *image = view->image;
    int r = writeback_throttle(self, &image->writeback);
    if (r < 0)
        return r;
    ret_change->view = view;
    ret_change->span = *span;
    cluster_lock(self, &image->locks, &ret_change->lock, span->first, span->first + span->n - 1);
    r = prepare_table(self, view, span->off);
    if (r == 0)
        r = get_slice(self, view, span, &ret_change->slice);
    if (r < 0)
        cluster_unlock(&image->locks, &ret_change->lock);
    return r;
}

void mapping_end(MappingChange *change)
{
    table_slice_release(change->slice);
    cluster_unlock(&change->view->image->locks, &change->lock);
}

int mapping_check(const MappingChange *change, uint32_t i)
{
    Qcow2Image *image = change->view->image;
    Qcow2L2Entry old = mapping_get(change, i);
    ClusterRange range;
    GuestOff off = cluster_span_cluster(&image->geometry, &change->span, i);
    bool has_host = old.kind == QCOW2_CLUSTER_DATA || old.kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
    if (has_host && image->geometry.external_data && old.host.v != off.v)
        return image_mark_corrupt(image,
                                  "guest offset %#" G_GINT64_MODIFIER
                                  "x maps to host offset %#" G_GINT64_MODIFIER
                                  "x, where its data cannot be",
                                  off.v, old.host.v);
    if (!cluster_range_of_entry(&image->geometry, &old, &range) ||
        image_range_is_sane(image, range))
        return 0;
    if (range.first + range.n > image->allocator.tail)
        return image_mark_cut_off(image, image_cluster_off(image, range.first),
                                  (range.n - 1) * image->geometry.cluster_bytes + 1,
                                  "the data of guest offset %#" G_GINT64_MODIFIER "x lies", off.v);
    return image_mark_corrupt(image,
                              "guest offset %#" G_GINT64_MODIFIER
                              "x maps to host offset %#" G_GINT64_MODIFIER
                              "x, which is no data cluster",
                              off.v, old.host.v);
}

void mapping_set(MappingChange *change, uint32_t i, const Qcow2L2Entry *entry)
{
    Qcow2Image *image = change->view->image;
    const Qcow2Geometry *g = &image->geometry;
    Qcow2L2Entry old = mapping_get(change, i);
    ClusterRange range, kept;
    qcow2_l2_entry_encode(g, change->slice->data, change->span.index + i, entry);
    table_slice_set_dirty(change->slice, &image->writeback.parts.dirty);
    bool is_kept = cluster_range_of_entry(g, entry, &kept) && entry->host.v == old.host.v;
    if (!is_kept && cluster_range_of_entry(g, &old, &range))
        freed_add(&image->freed, range, change->slice->host);
}

// What its L1 entry says, and when there is a table the slice.
static bool is_unwritten(const Qcow2View *view, const ClusterSpan *span)
{
    const Qcow2Geometry *g = &view->image->geometry;
    const Writeback *w = &view->image->writeback;
    uint64_t i1 = qcow2_l1_index(g, span->off);
    Qcow2L1Entry l1 = qcow2_l1_entry_decode(view->l1.entries[i1]);
    return writeback_has_failed(w, entry_table_place(&view->l1, i1)) ||
           (l1.l2.v && writeback_has_failed(w, cluster_span_slice(g, span, l1.l2)));
}

int mapping_make_durable(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    const Qcow2Geometry *g = &view->image->geometry;
    int r = writeback_run(self, &view->image->writeback);
    while (r < 0 && len) {
        ClusterSpan span = cluster_span_make(g, off, len);
        if (is_unwritten(view, &span))
            return r;
        off.v += span.len;
        len -= span.len;
    }
    return 0;
}
