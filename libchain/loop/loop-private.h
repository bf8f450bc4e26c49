// SPDX-License-Identifier: LGPL-2.1-or-later
// What all loops have in common, whatever their back end: the run queue, timers, messages from
// other threads and the free stacks. A back end's own loop struct starts with a Loop. For
// libchain/loop and the back ends. Loop thread unless said otherwise.
//
// One turn of a loop: loop_dispatch() (messages, due timers), loop_run_one() for each fiber that is
// runnable, then the back end waits for events, which make more fibers runnable.
#pragma once

#include <stdatomic.h>

#include "chain-core/loop.h"
#include "loop/backend.h"
#include "loop/fiber-private.h"

enum { LOOP_MAX_SLOTS = 8 };
typedef struct LoopSlot {
    const void *key;
    void *value;
} LoopSlot;

struct Loop {
    const LoopBackend *backend;
    uint64_t now_ns;
    // loop_stats(): only the loop writes them.
    _Atomic uint64_t n_turns, n_sleeps;
    // Run queue, FIFO unless the back end picks.
    Fiber *first_runnable, *last_runnable;
    unsigned n_runnable;
    Fiber *current;  // running now, NULL in the loop itself
    bool is_running; // inside loop_run() or sim_run(); before, spawned fibers are queued
    // Fibers and their stacks.
    Fiber *fibers; // all, most recent first
    unsigned n_fibers, max_fibers;
    Fiber *free_stacks; // LIFO: the warmest first
    unsigned n_free_stacks, n_stacks_made;
    // Timers: a binary heap, heap[1] is due first.
    LoopTimer **timers;
    unsigned n_timers, timers_capacity;
    // Messages. `inbox` is a stack pushed by any thread, reversed when taken.
    _Atomic(LoopCall *) inbox;
    atomic_bool is_waiting; // the back end sleeps, or is about to: notify() is needed
    atomic_bool is_stopping;
    LoopSlot slots[LOOP_MAX_SLOTS]; // loop-slot.h
    LoopCall *calls;                // taken from the inbox, in order, not yet run
};

void loop_init(Loop *loop, const LoopBackend *backend, const LoopConfig *config);
// No fiber may be left (fiber_abandon_all() first otherwise). Frees stacks and timers, not
// `loop`.
void loop_done(Loop *loop);

// Refreshes loop_now_ns(), runs the messages that have come and the timers that are due. True when
// there was one.
bool loop_dispatch(Loop *loop);
// Runs one runnable fiber until it suspends or ends. False when none is runnable.
bool loop_run_one(Loop *loop);
// loop_dispatch(), then each fiber that is runnable now. True when anything ran.
bool loop_step(Loop *loop);

// When the first timer is due; UINT64_MAX without one.
uint64_t loop_next_deadline_ns(const Loop *loop);
// Something to run without waiting: runnable fibers or messages.
bool loop_is_ready(const Loop *loop);
// Stopped and without fibers: the end of loop_run().
bool loop_is_finished(const Loop *loop);
