// SPDX-License-Identifier: LGPL-2.1-or-later
// The refcounts of host clusters: get, raise, lower, grow. They change in memory; writeback.c puts
// them on disk before anything that relies on them. For writable images, on their loop.
#pragma once

#include "qcow2/image.h"

static inline uint64_t refcounts_per_slice(const Qcow2Image *image)
{
    return (uint64_t)image->geometry.slice_bytes * 8 >> image->geometry.refcount_order;
}

// The refcounts of some clusters: those of one slice, from `index` on.
typedef struct RefcountPlace {
    TableSlice *slice;
    uint64_t index;
} RefcountPlace;

// Where the refcount of `cluster` is; the slice is held: table_slice_release(). May suspend.
// -ENOENT: no block counts it. -EIO, also where the image is corrupt.
int refcounts_get(Fiber *self, Qcow2Image *image, uint64_t cluster, RefcountPlace *ret_place);
// The same without holding it: 0, the slice stays until the next suspend point, has its space on
// the host, and nothing was suspended. 1: it was not there; it may be now, and others may have run.
int refcounts_find(Fiber *self, Qcow2Image *image, uint64_t cluster, RefcountPlace *ret_place);
// The block that counts `cluster`: its host offset, 0 when there is none.
int refcounts_block_of(Qcow2Image *image, uint64_t cluster, HostOff *ret_block);

// One more reference to each of `n` clusters at `place`, whose slice has its space. Suspends
// nowhere. -EOVERFLOW, and nothing is changed, where a refcount is at the most its width can hold.
int refcounts_raise(Qcow2Image *image, RefcountPlace place, uint64_t n);

// One reference less to the clusters of `range`, of which nothing on disk may say more and which
// nobody has pinned. Goes through part of the range, which it takes off; *ret_free: clusters in it
// that reached 0, punched, or none. When it returns nothing has been suspended since they did. On
// failure clusters leak: harmless, check finds them.
void refcounts_lower(Fiber *self, Qcow2Image *image, ClusterRange *range, ClusterRange *ret_free);

// Makes sure that a refcount block covers `cluster`, which is the tail; moves the tail
// (refcounts-grow.c). 0 without having done anything when the tail is elsewhere by now. -ENOSPC
// where there is no room for what that takes. Suspends.
int refcounts_grow(Fiber *self, Qcow2Image *image, uint64_t cluster);
