// SPDX-License-Identifier: LGPL-2.1-or-later
// Who decides in a simulation what happens next, instead of its seed: for tests that go through the
// orders in which things can happen, or that hold something back until something else is over.
//
// With a chooser each operation of a file takes effect in one step, at any moment after it was
// asked for, and time goes on only when nothing else can happen. So a run is a sequence of choices,
// and the same choices are the same run.
#pragma once

#include "chain-core/sim.h"

// What may happen next.
typedef struct SimAction {
    const Fiber *fiber; // who goes on, or waits for what takes effect; NULL: nobody is known to
    unsigned number;    // of the fiber: the same in two runs whose fibers ran in the same order
    bool is_effect;     // an operation takes effect; else the fiber runs until it suspends
} SimAction;

typedef struct SimChooser SimChooser;
struct SimChooser {
    // Index of the one that happens; of `n` ≥ 1. Runnable fibers come first, the longest waiting of
    // them first, then operations in the order in which they were asked for. Outside any fiber.
    // NULL: always the first.
    unsigned (*choose)(SimChooser *chooser, const SimAction *actions, unsigned n);
};

// Before sim_run(), or from a fiber while nothing of a file is under way. NULL: the seed decides.
void sim_set_chooser(Sim *sim, SimChooser *chooser);

// With a chooser, between two actions: equal hashes (of two runs that begin alike) mean that the
// same things can follow, though they came to it by other ways. It covers which fiber ran when and
// what it read, what is under way, and the files; not what tests keep outside the simulation.
uint64_t sim_state_hash(const Sim *sim);
// The files alone: what they hold, durably and not, so what a power cut could leave.
uint64_t sim_files_hash(const Sim *sim);
