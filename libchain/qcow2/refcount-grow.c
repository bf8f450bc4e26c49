// SPDX-License-Identifier: LGPL-2.1-or-later
// New refcount blocks and larger refcount tables. In a fiber, under the allocator's grow mutex.
//
// A new block lies in the first cluster that it covers itself, so it needs no other block. Write
// order: block, sync, table entry (docs/ordering.md §3): the entry is only changed in memory here,
// and commit.c writes entries after the blocks. A table that has to grow moves: all blocks durable
// → new table and the block that covers it written → sync → header (one sector) → sync → the old
// table is freed (docs/ordering.md §5).

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/allocator.h"
#include "qcow2/commit.h"

static uint64_t clusters_per_block(const Qcow2Image *image)
{
    return UINT64_C(1) << image->geometry.refcounts_per_block_bits;
}

// Puts a new, empty block that counts itself at `cluster`, the first free one it covers, and enters
// it in the table.
static int add_block(Fiber *self, Qcow2Image *image, uint64_t cluster)
{
    Allocator *a = &image->allocator;
    HostOff off = image_cluster_off(image, cluster);
    bool zeroed = cluster >= a->fresh_from;
    if (cluster >= a->limit)
        return -ENOSPC;
    if (!cluster_set_add(&image->metadata, cluster))
        return image_mark_corrupt(
            image,
            "a new refcount block would overwrite metadata at offset %#" G_GINT64_MODIFIER "x",
            off.v);
    a->tail = cluster + 1;
    a->fresh_from = MAX(a->fresh_from, a->tail);
    int r = 0;
    if (!zeroed)
        r = file_zero(self, image->file, off, image->geometry.cluster_bytes, 0);
    uint64_t per_slice =
        (uint64_t)image->geometry.slice_bytes * 8 >> image->geometry.refcount_order;
    uint64_t in_block = cluster & (clusters_per_block(image) - 1);
    HostOff place = host_off(off.v + in_block / per_slice * image->geometry.slice_bytes);
    TableSlice *slice;
    if (r == 0)
        r = image_get_slice(self, image, place, TABLE_SLICE_REFCOUNT, &slice);
    if (r < 0) {
        cluster_set_remove(&image->metadata, cluster);
        return r;
    }
    qcow2_refcount_set(&image->geometry, slice->data, in_block % per_slice, 1);
    table_slice_set_dirty(slice, &image->commit.dirty);
    table_slice_release(slice);
    uint64_t i = cluster >> image->geometry.refcounts_per_block_bits;
    image->refcount_table[i] = qcow2_refcount_table_entry_encode(off);
    g_array_append_val(image->dirty_refcount_table, i);
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

// Moves the refcount table to `first`, a cluster that no block covers yet, large enough for what
// comes.
static int grow_table(Fiber *self, Qcow2Image *image, uint64_t first)
{
    const Qcow2Geometry *g = &image->geometry;
    uint64_t per_block = clusters_per_block(image), per_cluster = g->cluster_bytes / 8;
    uint64_t index = first >> g->refcounts_per_block_bits;
    // New area: n_blocks blocks, then n_table clusters of table; all covered by these blocks.
    uint64_t n_entries = index + index / 2 + 1, n_blocks = 1, n_table;
    for (;;) {
        n_table = (n_entries + per_cluster - 1) / per_cluster;
        uint64_t end = (first & (per_block - 1)) + n_blocks + n_table;
        uint64_t need = (end + per_block - 1) / per_block;
        if (need <= n_blocks && index + n_blocks <= n_table * per_cluster)
            break;
        n_blocks = MAX(need, n_blocks);
        n_entries = MAX(n_entries, index + n_blocks);
    }
    if (first + n_blocks + n_table > image->allocator.limit)
        return -ENOSPC;
    if (n_table * g->cluster_bytes > QCOW2_MAX_REFCOUNT_TABLE_BYTES) {
        n_table = QCOW2_MAX_REFCOUNT_TABLE_BYTES / g->cluster_bytes;
        if (index + n_blocks > n_table * per_cluster)
            return -ENOSPC;
    }
    // Entries of the old table may name blocks that are not durable yet: they are, after this.
    int r = commit_run(self, image);
    if (r < 0)
        return r;

    uint64_t table_bytes = n_table * g->cluster_bytes, used = n_blocks + n_table;
    Be64 *table = g_try_malloc0(table_bytes);
    g_autofree void *block = g_try_malloc(g->cluster_bytes);
    if (!table || !block) {
        g_free(table);
        return -ENOMEM;
    }
    // No fiber adds a block meanwhile (grow mutex), so the old table stands still.
    memcpy(table, image->refcount_table, image->n_refcount_table * sizeof(Be64));
    image->allocator.tail = MAX(image->allocator.tail, first + used);
    image->allocator.fresh_from = MAX(image->allocator.fresh_from, image->allocator.tail);
    for (uint64_t b = 0; r == 0 && b < n_blocks; b++) {
        fill_block(image, block, index + b, (ClusterRange){first, used});
        HostOff off = image_cluster_off(image, first + b);
        r = file_write(self, image->file, off, block, g->cluster_bytes);
        table[index + b] = qcow2_refcount_table_entry_encode(off);
    }
    HostOff table_off = image_cluster_off(image, first + n_blocks);
    if (r == 0)
        r = file_write(self, image->file, table_off, table, table_bytes);
    if (r == 0)
        r = file_flush(self, image->file);
    uint8_t sector[512];
    fiber_mutex_lock(self, &image->header_mutex);
    if (r == 0)
        r = file_read(self, image->file, host_off(0), sector, sizeof(sector));
    if (r == 0) {
        qcow2_header_patch_refcount_table(sector, table_off, n_table);
        r = file_write(self, image->file, host_off(0), sector, sizeof(sector));
    }
    if (r == 0)
        r = file_flush(self, image->file);
    fiber_mutex_unlock(self, &image->header_mutex);
    if (r < 0) {
        // Nothing durable may point at the new area; if the header write is in doubt it must stay
        // as it is, so the area is leaked rather than reused.
        g_free(table);
        return r;
    }
    ClusterRange old = {image_cluster_of(image, image->header.refcount_table),
                        image->header.refcount_table_clusters};
    g_free(image->refcount_table);
    image->refcount_table = table;
    image->n_refcount_table = n_table * per_cluster;
    image->header.refcount_table = table_off;
    image->header.refcount_table_clusters = n_table;
    for (uint64_t c = old.first; c < old.first + old.n; c++)
        cluster_set_remove(&image->metadata, c);
    for (uint64_t c = first; c < first + used; c++)
        cluster_set_add(&image->metadata, c);
    commit_free(image, old);
    return 0;
}

int refcounts_cover(Fiber *self, Qcow2Image *image, uint64_t cluster)
{
    Allocator *a = &image->allocator;
    fiber_mutex_lock(self, &a->grow_mutex);
    HostOff block;
    int r = refcounts_block_of(image, cluster, &block);
    if (r == 0 && !block.v) {
        uint64_t start = cluster & ~(clusters_per_block(image) - 1);
        // Free ranges never lie where no block is, so this is the tail. If the tail has not reached
        // the block's start the block goes where the tail is.
        uint64_t place = MAX(start, a->tail);
        if (cluster >> image->geometry.refcounts_per_block_bits >= image->n_refcount_table)
            r = grow_table(self, image, place);
        else
            r = add_block(self, image, place);
    }
    fiber_mutex_unlock(self, &a->grow_mutex);
    return r;
}
