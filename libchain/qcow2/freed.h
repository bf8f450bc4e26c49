// SPDX-License-Identifier: LGPL-2.1-or-later
// The way of clusters that lost a reference, from the change in memory until they may be taken
// again, and the pins that keep them from it (docs/ordering.md §4). For writable images, on their
// loop.
#pragma once

#include <glib.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/io-batch.h"
#include "chain-core/loop.h"
#include "chain-core/units.h"
#include "qcow2/cluster-range.h"

typedef struct FreedClusters FreedClusters;

// Nothing on disk names `range` and nobody has it pinned: its references are lowered. In a fiber.
typedef void FreedReleaseFn(Fiber *self, void *arg, ClusterRange range);

// One generation of pins on an image's host ranges.
typedef struct FreedPin {
    IoPin pin; // must be first
    FreedClusters *freed;
    unsigned index;
} FreedPin;

// Clusters that are unlinked once the metadata at `by` has been written: an L2 slice, or an entry
// of the L1 table. 0: once a write-back has ended.
typedef struct FreedRange {
    ClusterRange range;
    HostOff by;
} FreedRange;

struct FreedClusters {
    Loop *loop;
    FiberWaitGroup *fibers; // counts those that release
    FreedReleaseFn *release;
    void *release_arg;
    GArray *unlinked;    // FreedRange: in memory
    GArray *durable;     // ClusterRange: on disk too
    GArray *releasing;   // ClusterRange: waiting for `pins[!pin_now]` to drain
    uint64_t n_unlinked; // clusters
    unsigned n_holds;    // while there are any, no further release begins
    unsigned n_fibers;   // that release, under way
    uint64_t n_released; // such fibers that ended
    FiberQueue released; // woken when one of them ends
    FreedPin pins[2];    // holders of host ranges; two generations
    unsigned pin_now;
};

void freed_init(FreedClusters *f, Loop *loop, FiberWaitGroup *fibers, FreedReleaseFn *release,
                void *arg);
void freed_done(FreedClusters *f);

// What a request that looks host ranges up must hold.
static inline IoPin *freed_pin(FreedClusters *f)
{
    return &f->pins[f->pin_now].pin;
}

// An entry at `by` that named `range` has been changed in memory, and is dirty.
void freed_add(FreedClusters *f, ClusterRange range, HostOff by);

// For write-back: what was unlinked so far (owned), and then for each range that it is durable, or
// (freed_add() again) that it is not. freed_turn() once all were said.
GArray *freed_take(FreedClusters *f);
void freed_add_durable(FreedClusters *f, ClusterRange range);
void freed_turn(FreedClusters *f);

// From hold to resume nothing that is unlinked after the call is released: references that are not
// counted yet may depend on it.
void freed_hold(FreedClusters *f);
void freed_resume(FreedClusters *f);

// Is anything on its way? Waits until what is durable now has been released,
// for the end of a hold too.
bool freed_is_pending(const FreedClusters *f);
uint64_t freed_n_pending(const FreedClusters *f); // clusters, at least
void freed_wait(Fiber *self, FreedClusters *f);
