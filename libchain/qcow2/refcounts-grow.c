// SPDX-License-Identifier: LGPL-2.1-or-later
// New refcount blocks and larger refcount tables: the second chapter of refcounts.c. In a fiber,
// under the grow mutex.
//
// A new block lies in the first cluster that it covers itself, so it needs no other block. Write
// order: block, sync, table entry (docs/ordering.md §3): the entry is only changed in memory here,
// and writeback.c writes entries after the blocks. A table that has to grow moves: all blocks
// durable → new table and the block that covers it written → sync → header (one sector) → sync →
// the old table is freed (docs/ordering.md §5).

#include "chain-core/mutant.h"
#include "qcow2/refcounts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t clusters_per_block(const Qcow2Image *image)
{
    return UINT64_C(1) << image->geometry.refcounts_per_block_bits;
}

// Clusters taken from the tail that nothing came of, and their space. Where another block covers
// what follows, others may have taken clusters there: then they stay unused until the next open.
static void give_tail_back(Fiber *self, Qcow2Image *image, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        metadata_set_remove(&image->metadata, first + i);
    file_discard(self, image->file, image_cluster_off(image, first),
                 n << image->geometry.cluster_bits);
    if (image->allocator.tail == first + n)
        image->allocator.tail = first;
}

// Space for a new block at `cluster`, zeroed, and for its entry in the table.
static int reserve_block(Fiber *self, Qcow2Image *image, uint64_t cluster, bool is_zeroed)
{
    uint64_t i = cluster >> image->geometry.refcounts_per_block_bits;
    HostOff entry = entry_table_place(&image->refcount_table, i);
    int r = metadata_set_reserve(self, &image->metadata, image_cluster_of(image, entry));
    if (r == 0 && !is_zeroed)
        r = file_zero(self, image->file, image_cluster_off(image, cluster),
                      image->geometry.cluster_bytes, 0);
    return r < 0 ? r : metadata_set_reserve(self, &image->metadata, cluster);
}

// Metadata in use that no block counts: the table has lost an entry, and a new block would offer
// what lies there as free.
static int refuse_uncounted_metadata(Qcow2Image *image, uint64_t cluster)
{
    uint64_t start = cluster & ~(clusters_per_block(image) - 1);
    for (uint64_t c = start; c < cluster; c++)
        if (metadata_set_contains(&image->metadata, c))
            return image_mark_corrupt(
                image,
                "cluster %" G_GUINT64_FORMAT " holds metadata, but no refcount block counts it", c);
    return 0;
}

// Puts a new, empty block that counts itself at `cluster`, the first free one it covers, and enters
// it in the table.
static int add_block(Fiber *self, Qcow2Image *image, uint64_t cluster)
{
    Allocator *a = &image->allocator;
    HostOff off = image_cluster_off(image, cluster);
    bool zeroed = cluster >= a->fresh_from;
    if (cluster >= image_host_clusters(image))
        return -ENOSPC;
    int r = refuse_uncounted_metadata(image, cluster);
    if (r < 0)
        return r;
    if (!metadata_set_add(&image->metadata, cluster))
        return image_mark_corrupt(
            image,
            "a new refcount block would overwrite metadata at offset %#" G_GINT64_MODIFIER "x",
            off.v);
    a->tail = cluster + 1;
    a->fresh_from = MAX(a->fresh_from, a->tail);
    file_debug_event(image->file, DEBUG_REFBLOCK_ALLOC);
    r = reserve_block(self, image, cluster, zeroed);
    uint64_t per_slice =
        (uint64_t)image->geometry.slice_bytes * 8 >> image->geometry.refcount_order;
    uint64_t in_block = cluster & (clusters_per_block(image) - 1);
    HostOff place = host_off(off.v + in_block / per_slice * image->geometry.slice_bytes);
    TableSlice *slice;
    if (r == 0)
        r = image_get_slice(self, image, place, TABLE_SLICE_REFCOUNT, &slice);
    if (r < 0) {
        give_tail_back(self, image, cluster, 1);
        return r;
    }
    qcow2_refcount_set(&image->geometry, slice->data, in_block % per_slice, 1);
    table_slice_set_dirty(slice, &image->writeback.parts.dirty);
    table_slice_release(slice);
    uint64_t i = cluster >> image->geometry.refcounts_per_block_bits;
    entry_table_set(&image->refcount_table, i, qcow2_refcount_table_entry_encode(off));
    return 0;
}

// Fills `buf`: the block with number `block`, counting the clusters of `used` that it covers.
static void fill_block(const Qcow2Image *image, void *buf, uint64_t block, ClusterRange used)
{
    uint64_t per_block = clusters_per_block(image), start = block * per_block;
    memset(buf, 0, image->geometry.cluster_bytes);
    for (uint64_t c = MAX(start, used.first); c < MIN(start + per_block, used.first + used.n); c++)
        qcow2_refcount_set(&image->geometry, buf, c - start, 1);
}

// Where a larger refcount table goes: n_blocks blocks from `first` on, then n_table clusters of
// table, all of them covered by these blocks.
typedef struct NewArea {
    uint64_t first, n_blocks, n_table;
    uint64_t index; // of the first block in the table
    HostOff table;
} NewArea;

static uint64_t area_clusters(const NewArea *area)
{
    return area->n_blocks + area->n_table;
}

static int plan_area(const Qcow2Image *image, uint64_t first, NewArea *ret_area)
{
    const Qcow2Geometry *g = &image->geometry;
    uint64_t per_block = clusters_per_block(image), per_cluster = g->cluster_bytes / 8;
    NewArea area = {.first = first, .n_blocks = 1, .index = first >> g->refcounts_per_block_bits};
    uint64_t n_entries = area.index + area.index / 2 + 1;
    for (;;) {
        area.n_table = (n_entries + per_cluster - 1) / per_cluster;
        uint64_t end = (first & (per_block - 1)) + area.n_blocks + area.n_table;
        uint64_t need = (end + per_block - 1) / per_block;
        if (need <= area.n_blocks && area.index + area.n_blocks <= area.n_table * per_cluster)
            break;
        area.n_blocks = MAX(need, area.n_blocks);
        n_entries = MAX(n_entries, area.index + area.n_blocks);
    }
    if (first + area_clusters(&area) > image_host_clusters(image))
        return -ENOSPC;
    if (area.n_table * g->cluster_bytes > QCOW2_MAX_REFCOUNT_TABLE_BYTES) {
        area.n_table = QCOW2_MAX_REFCOUNT_TABLE_BYTES / g->cluster_bytes;
        if (area.index + area.n_blocks > area.n_table * per_cluster)
            return -ENOSPC;
    }
    area.table = image_cluster_off(image, first + area.n_blocks);
    *ret_area = area;
    return 0;
}

// Blocks and table, durable. Enters the blocks in `table`.
static int write_area(Fiber *self, Qcow2Image *image, const NewArea *area, Be64 *table)
{
    uint32_t bytes = image->geometry.cluster_bytes;
    g_autofree void *block = g_try_malloc(bytes);
    int r = block ? 0 : -ENOMEM;
    file_debug_event(image->file, DEBUG_REFBLOCK_ALLOC_WRITE_BLOCKS);
    for (uint64_t b = 0; r == 0 && b < area->n_blocks; b++) {
        ClusterRange used = {area->first, area_clusters(area)};
        HostOff off = image_cluster_off(image, area->first + b);
        fill_block(image, block, area->index + b, used);
        r = file_write(self, image->file, off, block, bytes);
        table[area->index + b] = qcow2_refcount_table_entry_encode(off);
    }
    file_debug_event(image->file, DEBUG_REFBLOCK_ALLOC_WRITE_TABLE);
    if (r == 0)
        r = file_write(self, image->file, area->table, table, area->n_table * bytes);
    return r < 0 || MUTANT("sync-of-new-refcount-table") ? r : file_flush(self, image->file);
}

static void edit_refcount_table(Qcow2Header *header, const void *arg)
{
    const NewArea *area = arg;
    header->refcount_table = area->table;
    header->refcount_table_clusters = area->n_table;
}

// Nobody else is to take or write it.
static void claim_area(Qcow2Image *image, const NewArea *area)
{
    Allocator *a = &image->allocator;
    for (uint64_t i = 0; i < area_clusters(area); i++)
        metadata_set_add(&image->metadata, area->first + i);
    a->tail = area->first + area_clusters(area);
    a->fresh_from = MAX(a->fresh_from, a->tail);
}

// The header names the new table, which lay at `old` before: from now on it is the image's.
static void adopt_table(Qcow2Image *image, const NewArea *area, Be64 *table, ClusterRange old)
{
    entry_table_done(&image->refcount_table);
    image->refcount_table = (EntryTable){
        .off = area->table,
        .entries = table,
        .n = area->n_table * image->geometry.cluster_bytes / sizeof(Be64),
    };
    for (uint64_t c = old.first; c < old.first + old.n; c++)
        metadata_set_remove(&image->metadata, c);
    freed_add(&image->freed, old, host_off(0)); // §5: unlinked durably
}

// Moves the refcount table to `first`, the tail, which no block covers yet, large enough for what
// comes. Nothing takes clusters there meanwhile.
static int grow_table(Fiber *self, Qcow2Image *image, uint64_t first)
{
    NewArea area;
    file_debug_event(image->file, DEBUG_REFTABLE_GROW);
    int r = plan_area(image, first, &area);
    // Entries of the old table may name blocks that are not durable yet: they are, after this.
    if (r == 0 && !MUTANT("write-back-before-new-refcount-table"))
        r = writeback_run_refcounts(self, &image->writeback);
    if (r < 0 || image->allocator.tail != first) // given back meanwhile: choose again
        return r;
    Be64 *table = g_try_malloc0(area.n_table * image->geometry.cluster_bytes);
    if (!table)
        return -ENOMEM;
    // No fiber adds a block meanwhile (grow mutex), so the old table stands still.
    memcpy(table, image->refcount_table.entries, image->refcount_table.n * sizeof(Be64));
    const Qcow2Header *h = &image->header;
    ClusterRange old = {image_cluster_of(image, h->refcount_table), h->refcount_table_clusters};
    claim_area(image, &area);
    r = write_area(self, image, &area, table);
    file_debug_event(image->file, DEBUG_REFBLOCK_ALLOC_SWITCH_TABLE);
    if (r == 0)
        r = image_change_header(self, image, edit_refcount_table, &area);
    if (r == 0) {
        adopt_table(image, &area, table, old);
        return 0;
    }
    g_free(table);
    // What the disk may name stays as it is.
    if (!image->writeback.has_ended)
        give_tail_back(self, image, first, area_clusters(&area));
    return r;
}

int refcounts_grow(Fiber *self, Qcow2Image *image, uint64_t cluster)
{
    Allocator *a = &image->allocator;
    bool is_locked = !MUTANT("one-growth-at-a-time");
    if (is_locked)
        fiber_mutex_lock(self, &a->grow_mutex);
    int r = 0;
    // Another may have moved the tail on meanwhile: the caller chooses again. As long as no block
    // covers it nothing else moves it.
    if (cluster == a->tail) {
        HostOff block;
        r = refcounts_block_of(image, cluster, &block);
        if (r == 0 && !block.v)
            r = cluster >> image->geometry.refcounts_per_block_bits < image->refcount_table.n
                    ? add_block(self, image, cluster)
                    : grow_table(self, image, cluster);
    }
    if (is_locked)
        fiber_mutex_unlock(self, &a->grow_mutex);
    return r;
}
