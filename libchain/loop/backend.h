// SPDX-License-Identifier: LGPL-2.1-or-later
// What a loop asks of the world around it. Two implementations: io_uring with worker threads
// (host/), and the simulation (sim/). For libchain/loop and the back ends.
#pragma once

#include <stdint.h>

#include "chain-core/loop.h"

typedef struct LoopBackend LoopBackend;

struct LoopBackend {
    const char *name;

    // Hands over what was submitted and may poll for events or messages for a moment, without
    // completing them. True when there are some: wait() shall not wait. NULL: does not look.
    bool (*busy_poll)(Loop *loop, uint64_t deadline_ns);

    // Hands over what was submitted, waits until an event comes, notify() is called or the clock
    // reaches `deadline_ns` (0: does not wait; UINT64_MAX: no limit), and completes what is
    // complete, which makes fibers runnable. Runs no fiber. Only loop_run() calls it, so a back end
    // that brings its own driver (sim_run()) may leave it NULL.
    void (*wait)(Loop *loop, uint64_t deadline_ns);
    uint64_t (*now)(Loop *loop);
    uint64_t (*wall_us)(Loop *loop); // NULL: the system's clock

    // A message was posted to a loop whose `is_waiting` is set. Any thread.
    void (*notify)(Loop *loop);

    // loop_work().
    int (*work)(Fiber *self, LoopWorkFn *fn, void *arg);

    // Index (0 = longest waiting) of the fiber to run next of the `n` ≥ 1 runnable ones. NULL:
    // always 0, and fiber_spawn() runs the new fiber at once instead of queuing it.
    unsigned (*pick)(Loop *loop, unsigned n);

    // loop_run() is about to start, on this thread. NULL: nothing to do.
    void (*start)(Loop *loop);
    // loop_free(): ends threads, undoes loop_init(), frees the loop. NULL: the back end has its
    // own.
    void (*free)(Loop *loop);
};
