// SPDX-License-Identifier: LGPL-2.1-or-later
// Which host clusters are taken next, and what becomes of those that are free again. For writable
// images. On the image's loop; the functions with `self` may suspend.
#pragma once

#include "qcow2/refcounts.h"

// What was taken.
typedef struct Allocation {
    ClusterRange range; // contiguous
    bool is_zeroed;     // the host reads as zeros there
} Allocation;

void allocator_init(Qcow2Image *image);
void allocator_done(Qcow2Image *image);

// Takes up to `n_wanted` contiguous clusters, at least one, and sets their refcount to 1, in
// memory. -ENOSPC at the format's limit and where the host has no space for refcounts, -EIO,
// -ENOMEM.
int allocator_take(Fiber *self, Qcow2Image *image, uint64_t n_wanted, Allocation *ret_allocation);

// The same, all `n` clusters or none: for tables, which lie in one piece. -EFBIG when no such piece
// was found; as many clusters and more may be free in several.
int allocator_take_piece(Fiber *self, Qcow2Image *image, uint64_t n, Allocation *ret_allocation);

// Takes one reference from the clusters of `range`; what has none left is free. Only for ranges
// that nothing on disk names, and nobody has pinned: a take of which nothing came (its I/O has
// ended), or what write-back has unlinked durably. On failure they leak.
void allocator_release(Fiber *self, Qcow2Image *image, ClusterRange range);
