// SPDX-License-Identifier: LGPL-2.1-or-later
// Each waits for a number that it counts when it comes, and that those before it lower when they
// go: nobody is woken to find that it has to wait on. On the target's loop.
#include "range-lock.h"

#include <stddef.h>

#include "chain-core/mutant.h"

static bool overlap(const RangeHold *a, const RangeHold *b)
{
    return (a->start > b->start ? a->start : b->start) < (a->end < b->end ? a->end : b->end);
}

void range_lock_take(Fiber *self, RangeLock *lock, RangeHold *hold, uint64_t off, uint64_t len)
{
    *hold = (RangeHold){.start = off, .end = off + len, .fiber = self, .previous = lock->last};
    for (const RangeHold *other = lock->first; other; other = other->next)
        hold->n_before += overlap(hold, other) && !MUTANT("range-lock");
    *(lock->last ? &lock->last->next : &lock->first) = hold;
    lock->last = hold;
    while (hold->n_before)
        fiber_suspend(self, "range of a target in use");
}

void range_lock_release(RangeLock *lock, RangeHold *hold)
{
    for (RangeHold *later = hold->next; later; later = later->next)
        if (overlap(hold, later) && !MUTANT("range-lock") && --later->n_before == 0)
            fiber_wake(later->fiber);
    *(hold->previous ? &hold->previous->next : &lock->first) = hold->next;
    *(hold->next ? &hold->next->previous : &lock->last) = hold->previous;
}
