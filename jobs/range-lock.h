// SPDX-License-Identifier: LGPL-2.1-or-later
// One lock on ranges of a target, for all that change it: guests' writes, zeroes and discards
// alike, and what a job copies there. Whoever comes takes a place in the order of arrival, in one
// step, and waits for those before it that overlap. So nobody holds one range while waiting for
// another, and nobody waits in a circle.
//
// Rules for who holds a range: it has entered its ports before, and waits for transfers to and from
// the target (and the source, for a write that goes to both) only: never for a slot of a window,
// for memory, for a drain or a limit.
//
// On the target's loop.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "chain-core/fiber.h"

// A range that is held, or waited for; on its fiber's stack.
typedef struct RangeHold RangeHold;
struct RangeHold {
    uint64_t start, end;
    uint32_t n_before; // that came before, overlap, and have not been given up yet
    Fiber *fiber;
    RangeHold *previous, *next; // in order of arrival
};

// A value, zero-initialised.
typedef struct RangeLock {
    RangeHold *first, *last;
} RangeLock;

// Held on return. Not cancellable. An empty range conflicts with nothing.
void range_lock_take(Fiber *self, RangeLock *lock, RangeHold *hold, uint64_t off, uint64_t len);
void range_lock_release(RangeLock *lock, RangeHold *hold);
static inline bool range_lock_is_free(const RangeLock *lock)
{
    return !lock->first;
}
