// SPDX-License-Identifier: LGPL-2.1-or-later
// Finds out whether an image has preallocated metadata: clusters that are counted and mapped as
// data, and that the host's file does not store (qemu-img create -o preallocation=metadata). The
// rule is QEMU's, so that both report one map: clusters counted against space taken. It is decided
// once for an open image, when block status is first asked for. On the image's loop, in a fiber.
#include "qcow2/view.h"

enum { ENTRIES_A_READ = 64 };

// Counts the clusters in use among those that `block` counts, up to `n`.
static uint64_t count_in_block(const Qcow2Image *image, const void *block, uint64_t n)
{
    uint64_t n_used = 0;
    for (uint64_t i = 0; i < n; i++)
        n_used += qcow2_refcount_get(&image->geometry, block, i) != 0;
    return n_used;
}

// Are at least `wanted` of the first `n_clusters` in use? As the file says: what is changed in
// memory only is too little to matter.
static bool has_so_many(Fiber *self, Qcow2Image *image, uint64_t n_clusters, uint64_t wanted)
{
    const Qcow2Geometry *g = &image->geometry;
    uint64_t per_block = UINT64_C(1) << g->refcounts_per_block_bits, n_used = 0;
    uint64_t n_table = (uint64_t)image->header.refcount_table_clusters << g->cluster_bits >> 3;
    n_table = MIN(n_table, (n_clusters + per_block - 1) / per_block);
    void *block = image_take_cow_buffer(image);
    bool is_good = block;
    Be64 entries[ENTRIES_A_READ];
    for (uint64_t i = 0; is_good && i < n_table && n_used < wanted; i++) {
        HostOff at = host_off(image->header.refcount_table.v + i * sizeof(Be64));
        if (i % ENTRIES_A_READ == 0)
            is_good = file_read(self, image->file, at, entries, sizeof entries) == 0;
        HostOff place;
        if (!is_good ||
            !qcow2_refcount_table_entry_decode(g, entries[i % ENTRIES_A_READ], &place) || !place.v)
            continue;
        is_good = file_read(self, image->file, place, block, g->cluster_bytes) == 0;
        n_used += count_in_block(image, block, MIN(per_block, n_clusters - i * per_block));
        fiber_yield(self); // there may be many, all of them in the page cache
    }
    image_put_cow_buffer(image, block);
    return is_good && n_used >= wanted;
}

static bool find_out(Fiber *self, Qcow2Image *image)
{
    uint64_t allocated;
    if (image->geometry.external_data || file_allocated_bytes(self, image->file, &allocated) < 0)
        return false;
    uint64_t n_stored = allocated >> image->geometry.cluster_bits;
    uint64_t cutoff = MAX(n_stored * 10 / 9, n_stored + 2);
    uint64_t n_clusters = image_clusters_for(image, file_size(image->file));
    return cutoff <= n_clusters && has_so_many(self, image, n_clusters, cutoff);
}

bool view_data_may_be_hole(Fiber *self, Node *node)
{
    Qcow2Image *image = view_of(node)->image;
    if (image->preallocation == PREALLOCATION_UNKNOWN)
        image->preallocation = find_out(self, image) ? PREALLOCATION_YES : PREALLOCATION_NO;
    return image->preallocation == PREALLOCATION_YES;
}
