// SPDX-License-Identifier: LGPL-2.1-or-later
// A list is enough: it is as long as there are allocating requests in flight. On the image's loop.

#include "qcow2/cluster-lock.h"
#include "chain-core/mutant.h"

#include <stddef.h>

static ClusterLock *find_overlap(const ClusterLocks *locks, uint64_t first, uint64_t last)
{
    for (ClusterLock *l = locks->held; l; l = l->next)
        if (l->first <= last && first <= l->last)
            return l;
    return NULL;
}

void cluster_lock(Fiber *self, ClusterLocks *locks, ClusterLock *lock, uint64_t first,
                  uint64_t last)
{
    for (ClusterLock *other;
         (other = find_overlap(locks, first, last)) && !MUTANT("cluster-locks");)
        fiber_queue_wait(self, &other->waiters, false, "cluster lock");
    *lock = (ClusterLock){.first = first, .last = last, .next = locks->held};
    if (locks->held)
        locks->held->prev = lock;
    locks->held = lock;
}

void cluster_unlock(ClusterLocks *locks, ClusterLock *lock)
{
    if (lock->prev)
        lock->prev->next = lock->next;
    else
        locks->held = lock->next;
    if (lock->next)
        lock->next->prev = lock->prev;
    fiber_queue_wake_all(&lock->waiters);
}
