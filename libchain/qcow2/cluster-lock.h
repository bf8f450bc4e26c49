// SPDX-License-Identifier: LGPL-2.1-or-later
// Locks on ranges of guest clusters, held while their L2 entries are being changed (allocation,
// zero, discard), so that two requests never allocate the same cluster. They protect ranges, not
// calls: writes elsewhere go on. Writes in place take none. On the image's loop.
#pragma once

#include "chain-core/fiber-sync.h"

typedef struct ClusterLock ClusterLock;
struct ClusterLock {
    uint64_t first, last; // guest clusters, inclusive
    ClusterLock *prev, *next;
    FiberQueue waiters;
};

typedef struct ClusterLocks {
    ClusterLock *held;
} ClusterLocks;

// Takes [first, last] into `lock` (the caller's storage, until unlock). May suspend: what was
// looked up before is stale.
void cluster_lock(Fiber *self, ClusterLocks *locks, ClusterLock *lock, uint64_t first,
                  uint64_t last);
void cluster_unlock(ClusterLocks *locks, ClusterLock *lock);
