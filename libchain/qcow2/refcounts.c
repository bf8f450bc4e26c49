// SPDX-License-Identifier: LGPL-2.1-or-later
// Refcounts by slices of their blocks. A count is changed in one step, with its slice found, and
// only where write-back will have its space (docs/ordering.md §10). Growing is the second chapter,
// refcounts-grow.c. In fibers on the image's loop.
//
// Order on disk: refcounts before L2 (docs/ordering.md §2) is writeback.c's work. A cluster whose
// last reference goes is punched while it still counts as used, so no scan can find it early.

#include "qcow2/refcounts.h"

#include <errno.h>

#include "qcow2/inflated-cache.h"

// One hole of the file: guests' writes to it wait while the host makes it, and on memory the loop
// does. Dropping so many cached pages takes some tenths of a millisecond.
enum { MAX_HOLE_BYTES = 1 << 20 };

int refcounts_block_of(Qcow2Image *image, uint64_t cluster, HostOff *ret_block)
{
    uint64_t i = cluster >> image->geometry.refcounts_per_block_bits;
    *ret_block = host_off(0);
    if (i >= image->refcount_table.n)
        return 0;
    if (!qcow2_refcount_table_entry_decode(&image->geometry, image->refcount_table.entries[i],
                                           ret_block))
        return image_mark_corrupt(
            image, "entry %" G_GUINT64_FORMAT " of the refcount table is damaged", i);
    if (ret_block->v && image_cluster_of(image, *ret_block) >= image->allocator.tail)
        return image_mark_cut_off(image, *ret_block, 1, "refcount block %" G_GUINT64_FORMAT " lies",
                                  i);
    return 0;
}

// The slice with the refcount of `cluster`: its place, and the index within. -ENOENT: no block.
static int slice_place(Qcow2Image *image, uint64_t cluster, HostOff *ret_slice, uint64_t *ret_index)
{
    HostOff block;
    int r = refcounts_block_of(image, cluster, &block);
    if (r < 0)
        return r;
    if (!block.v)
        return -ENOENT;
    uint64_t in_block = cluster & ((UINT64_C(1) << image->geometry.refcounts_per_block_bits) - 1);
    uint64_t per_slice = refcounts_per_slice(image);
    *ret_slice = host_off(block.v + in_block / per_slice * image->geometry.slice_bytes);
    *ret_index = in_block % per_slice;
    return 0;
}

int refcounts_get(Fiber *self, Qcow2Image *image, uint64_t cluster, RefcountPlace *ret_place)
{
    HostOff off;
    int r = slice_place(image, cluster, &off, &ret_place->index);
    if (r == 0)
        r = image_get_slice(self, image, off, TABLE_SLICE_REFCOUNT, &ret_place->slice);
    if (r == -EUCLEAN)
        return image_mark_corrupt(
            image, "refcount block at offset %#" G_GINT64_MODIFIER "x overlaps another table",
            off.v);
    return r;
}

int refcounts_find(Fiber *self, Qcow2Image *image, uint64_t cluster, RefcountPlace *ret_place)
{
    HostOff off;
    int r = slice_place(image, cluster, &off, &ret_place->index);
    if (r < 0)
        return r;
    TableSlice *slice = ret_place->slice = table_cache_find(image->cache, image, off);
    if (slice && slice->kind == TABLE_SLICE_REFCOUNT && slice->has_space)
        return 0;
    r = refcounts_get(self, image, cluster, ret_place);
    if (r < 0)
        return r;
    r = metadata_set_reserve_slice(self, &image->metadata, ret_place->slice);
    table_slice_release(ret_place->slice);
    return r < 0 ? r : 1;
}

int refcounts_raise(Qcow2Image *image, RefcountPlace place, uint64_t n)
{
    const Qcow2Geometry *g = &image->geometry;
    uint8_t *data = place.slice->data;
    for (uint64_t i = 0; i < n; i++)
        if (qcow2_refcount_get(g, data, place.index + i) >= qcow2_refcount_max(g))
            return -EOVERFLOW;
    for (uint64_t i = 0; i < n; i++)
        qcow2_refcount_set(g, data, place.index + i,
                           qcow2_refcount_get(g, data, place.index + i) + 1);
    table_slice_set_dirty(place.slice, &image->writeback.parts.dirty);
    return 0;
}

// The last reference to the clusters of `range` goes: punched, then free. What was punched is room
// for the slice. False: leaked rather than handed out.
static bool free_run(Fiber *self, Qcow2Image *image, RefcountPlace place, ClusterRange range)
{
    HostOff off = image_cluster_off(image, range.first);
    uint64_t bytes = range.n << image->geometry.cluster_bits;
    if (!table_cache_forget(image->cache, image, off, bytes, image->geometry.slice_bytes,
                            &image->writeback.parts.dirty))
        return false;
    inflated_cache_forget(image->inflated, off, bytes);
    image_leave_packed(image, off, bytes);
    for (uint64_t i = 0; i < range.n; i++)
        metadata_set_remove(&image->metadata, range.first + i);
    file_debug_event(image->file, DEBUG_CLUSTER_FREE);
    file_discard(self, image->file, off, bytes);
    if (metadata_set_reserve_slice(self, &image->metadata, place.slice) < 0)
        return false;
    for (uint64_t i = 0; i < range.n; i++)
        qcow2_refcount_set(&image->geometry, place.slice->data, place.index + i, 0);
    table_slice_set_dirty(place.slice, &image->writeback.parts.dirty);
    return true;
}

// A cluster that others share, or that should not be there. Returns how many clusters are done: 0
// when it has become unshared meanwhile.
static uint64_t lower_shared(Fiber *self, Qcow2Image *image, RefcountPlace place, uint64_t cluster)
{
    int r = metadata_set_reserve_slice(self, &image->metadata, place.slice);
    uint64_t count = qcow2_refcount_get(&image->geometry, place.slice->data, place.index);
    if (count == 1)
        return 0;
    if (!count) {
        // Other entries may name it as well.
        image_mark_corrupt(image, "cluster %" G_GUINT64_FORMAT " was in use but has refcount 0",
                           cluster);
    } else if (r == 0) {
        qcow2_refcount_set(&image->geometry, place.slice->data, place.index, count - 1);
        table_slice_set_dirty(place.slice, &image->writeback.parts.dirty);
    }
    return 1;
}

void refcounts_lower(Fiber *self, Qcow2Image *image, ClusterRange *range, ClusterRange *ret_free)
{
    const Qcow2Geometry *g = &image->geometry;
    RefcountPlace place;
    *ret_free = (ClusterRange){0};
    if (refcounts_get(self, image, range->first, &place) < 0) {
        range->n = 0;
        return;
    }
    uint64_t max_hole = MAX(MAX_HOLE_BYTES >> g->cluster_bits, 1), n = 0;
    uint64_t max = MIN(MIN(refcounts_per_slice(image) - place.index, range->n), max_hole);
    while (n < max && qcow2_refcount_get(g, place.slice->data, place.index + n) == 1)
        n++;
    ClusterRange run = {range->first, n};
    if (n && free_run(self, image, place, run))
        *ret_free = run;
    else if (!n)
        n = lower_shared(self, image, place, range->first);
    table_slice_release(place.slice);
    range->first += n;
    range->n -= n;
}
