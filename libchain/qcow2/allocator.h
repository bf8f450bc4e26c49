// SPDX-License-Identifier: LGPL-2.1-or-later
// Host clusters: taking free ones, giving them back, and the refcounts that say so. For writable
// images. On the image's loop; the functions with `self` may suspend.
#pragma once

#include "qcow2/image.h"

void allocator_init(Qcow2Image *image);
void allocator_done(Qcow2Image *image);

// Takes up to `n_wanted` contiguous clusters and sets their refcount to 1 (in memory: refcounts
// reach the disk before anything that points there, see writeback.c). Returns 0 with at least one
// cluster. *ret_zeroed: the host reads as zeros there. -ENOSPC at the format's limit, -EIO,
// -ENOMEM.
int allocator_take(Fiber *self, Qcow2Image *image, uint64_t n_wanted, ClusterRange *ret_range,
                   bool *ret_zeroed);

// Lowers the refcounts of `range` by one; clusters that reach 0 are punched and become free. Only
// for ranges that nothing on disk names, and nobody has pinned: a take of which nothing came (its
// I/O has ended), or what writeback.c has unlinked durably. On failure they leak: harmless, check
// finds them.
void allocator_release(Fiber *self, Qcow2Image *image, ClusterRange range);

// refcount-grow.c: makes sure that a refcount block covers `cluster`, which is the tail. Moves the
// tail. 0 without having done anything when the tail is elsewhere by now. -ENOSPC where there is no
// room for what that takes. Suspends.
int refcounts_cover(Fiber *self, Qcow2Image *image, uint64_t cluster);

// The block that covers `cluster`: its host offset, 0 when there is none.
int refcounts_block_of(Qcow2Image *image, uint64_t cluster, HostOff *ret_block);
