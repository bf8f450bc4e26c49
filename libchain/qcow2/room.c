// SPDX-License-Identifier: LGPL-2.1-or-later
// How many clusters an image can still take: what no refcount counts, as far as the device goes or
// the host has space for. Tables and refcount blocks are left out, for how many come new depends on
// what is written where: an image may be full a little earlier. On the image's loop, in a fiber.

#include <errno.h>

#include "qcow2/allocator.h"
#include "qcow2/view.h"

// Clusters below the tail that nothing uses, or soon will; *ret_n is exact up to `enough`.
static int count_free(Fiber *self, Qcow2Image *image, uint64_t enough, uint64_t *ret_n)
{
    uint64_t per_slice = refcounts_per_slice(image), n = freed_n_pending(&image->freed);
    for (uint64_t first = 0; first < image->allocator.tail && n < enough;) {
        uint64_t end = MIN(first - first % per_slice + per_slice, image->allocator.tail);
        RefcountPlace place;
        int r = refcounts_get(self, image, first, &place);
        if (r == -ENOENT)
            n += end - first;
        else if (r < 0)
            return r;
        for (uint64_t i = 0; r == 0 && i < end - first; i++)
            n += qcow2_refcount_get(&image->geometry, place.slice->data, place.index + i) == 0;
        if (r == 0)
            table_slice_release(place.slice);
        if (fiber_sleep(self, 0) < 0) // slices may all be in the cache
            return -ECANCELED;
        first = end;
    }
    *ret_n = n;
    return 0;
}

static int device_room(Fiber *self, Qcow2Image *image, uint64_t enough, uint64_t *ret_clusters)
{
    if (file_has_write_threshold(image->file)) // whose user makes it larger as it is written
        return -ENOTSUP;
    int r = file_refresh_size(self, image->file); // he may have done so already
    uint64_t end = image_host_clusters(image), n = 0;
    uint64_t past = end - MIN(image->allocator.tail, end);
    if (r == 0 && past < enough)
        r = count_free(self, image, enough - past, &n);
    *ret_clusters = past + n;
    return r;
}

// Space that the file has, but no cluster uses, is used before that of the host.
static int file_room(Fiber *self, Qcow2Image *image, uint64_t enough, uint64_t *ret_clusters,
                     bool *ret_can_share)
{
    uint64_t free_bytes, allocated_bytes, n = 0;
    int r = file_free_bytes(self, image->file, &free_bytes, ret_can_share);
    if (r == 0)
        r = file_allocated_bytes(self, image->file, &allocated_bytes);
    if (r < 0)
        return r;
    uint64_t host = image_clusters_for(image, free_bytes);
    if (host < enough)
        r = count_free(self, image, enough - host, &n);
    *ret_clusters = host + MIN(n, image_clusters_for(image, allocated_bytes));
    return r;
}

int view_room(Fiber *self, Node *node, uint64_t enough, NodeRoom *ret_room)
{
    Qcow2Image *image = ((Qcow2View *)node)->image;
    // Elsewhere data has its place already, or shares a cluster.
    if (!image->writable || image->data_file || image->geometry.extended_l2)
        return -ENOTSUP;
    uint64_t clusters, enough_clusters = image_clusters_for(image, enough);
    int r = file_is_block_device(image->file)
                ? device_room(self, image, enough_clusters, &clusters)
                : file_room(self, image, enough_clusters, &clusters, &ret_room->can_share);
    if (r < 0)
        return r;
    ret_room->granule_bytes = image->geometry.cluster_bytes;
    ret_room->most_bytes = clusters << image->geometry.cluster_bits;
    return 0;
}
