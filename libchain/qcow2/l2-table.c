// SPDX-License-Identifier: LGPL-2.1-or-later
// The head's L2 tables: created at the first write to their range, copied when a snapshot shares
// them. In a fiber on the image's loop, under the image's l2_mutex.
//
// Write order (docs/ordering.md §6): the table's content and its refcount are durable before the L1
// entry that names it. A new table is in `new_tables` until then, which makes writeback.c write its
// slices early.

#include <assert.h>
#include <errno.h>

#include "qcow2/allocator.h"
#include "qcow2/view.h"
#include "qcow2/writeback.h"

static int copy_table(Fiber *self, Qcow2Image *image, HostOff from, HostOff to)
{
    uint32_t bytes = image->geometry.cluster_bytes;
    g_autofree void *buf = g_try_malloc(bytes);
    if (!buf)
        return -ENOMEM;
    // A shared table is never dirty in the cache, so the file has its content.
    int r = file_read(self, image->file, from, buf, bytes);
    return r < 0 ? r : file_write(self, image->file, to, buf, bytes);
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
    if (old.l2.v)
        r = copy_table(self, image, old.l2, table);
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
    if (G_LIKELY(e.l2.v && e.copied))
        return 0;
    fiber_mutex_lock(self, &image->l2_mutex);
    e = qcow2_l1_entry_decode(view->l1.entries[i1]);
    int r = e.l2.v && e.copied ? 0 : make_table(self, view, i1, e);
    fiber_mutex_unlock(self, &image->l2_mutex);
    return r;
}

// The slice with the L2 entry of `off`, held; prepare_table() came before.
static int get_slice(Fiber *self, Qcow2View *view, GuestOff off, TableSlice **ret_slice,
                     uint32_t *ret_index)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    Qcow2L1Entry l1 = qcow2_l1_entry_decode(view->l1.entries[qcow2_l1_index(g, off)]);
    assert(l1.l2.v && l1.copied);
    uint32_t i2 = qcow2_l2_index(g, off), in_slice = i2 & (g->slice_entries - 1);
    HostOff place = host_off(l1.l2.v + (uint64_t)(i2 - in_slice) * g->l2_entry_bytes);
    *ret_index = in_slice;
    int r = image_get_slice(self, image, place, TABLE_SLICE_L2, ret_slice);
    if (r == -EUCLEAN)
        return image_mark_corrupt(
            image, "L2 table at offset %#" G_GINT64_MODIFIER "x overlaps a refcount block",
            place.v);
    return r;
}

int view_begin_change(Fiber *self, Qcow2View *view, uint64_t first, uint64_t last,
                      EntryChange *ret_change)
{
    Qcow2Image *image = view->image;
    GuestOff off = guest_off(first << image->geometry.cluster_bits);
    int r = writeback_throttle(self, &image->writeback);
    if (r < 0)
        return r;
    cluster_lock(self, &image->locks, &ret_change->lock, first, last);
    r = prepare_table(self, view, off);
    if (r == 0)
        r = get_slice(self, view, off, &ret_change->slice, &ret_change->index);
    if (r == 0) {
        r = metadata_set_reserve_slice(self, &image->metadata, ret_change->slice);
        if (r < 0)
            table_slice_release(ret_change->slice);
    }
    if (r < 0)
        cluster_unlock(&image->locks, &ret_change->lock);
    return r;
}

void view_end_change(Qcow2View *view, EntryChange *change)
{
    table_slice_release(change->slice);
    cluster_unlock(&view->image->locks, &change->lock);
}

// Where its L1 entry and, when there is a table, its L2 slice lie.
static bool is_unwritten(const Qcow2View *view, GuestOff off)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint64_t i1 = qcow2_l1_index(g, off);
    Qcow2L1Entry l1 = qcow2_l1_entry_decode(view->l1.entries[i1]);
    uint32_t i2 = qcow2_l2_index(g, off);
    i2 -= i2 & (g->slice_entries - 1);
    HostOff slice = host_off(l1.l2.v + (uint64_t)i2 * g->l2_entry_bytes);
    return writeback_has_failed(&view->image->writeback, entry_table_place(&view->l1, i1)) ||
           (l1.l2.v && writeback_has_failed(&view->image->writeback, slice));
}

int view_make_durable(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint64_t span = (uint64_t)g->slice_entries << g->cluster_bits, end = off.v + len;
    int r = writeback_run(self, &view->image->writeback);
    if (r == 0)
        return 0;
    for (uint64_t at = off.v & ~(span - 1); at < end; at += span)
        if (is_unwritten(view, guest_off(at)))
            return r;
    return 0;
}
