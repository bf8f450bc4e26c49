// SPDX-License-Identifier: LGPL-2.1-or-later
// The event loop: one thread, one io_uring (or one simulated back end, sim.h), fibers, timers,
// messages from other threads and a pool of workers for blocking calls and CPU work.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain-core/fiber.h"

typedef struct LoopConfig {
    unsigned max_fibers;  // 0: 4096; the bound that keeps stacks below vm.max_map_count
    unsigned max_workers; // 0: 16; threads of the pool, started on demand; with many devices more
    // How long an idle loop may poll for events before it sleeps, when its idle times keep
    // being that short: takes a processor, saves the latency of waking up. 0: never.
    uint64_t busy_poll_ns;
} LoopConfig;

// Creates an io_uring loop, owned by the calling thread until loop_run() is called (any one
// thread). Without io_uring the error is one sentence that names the sysctl
// kernel.io_uring_disabled. Returned owned; loop_free() after loop_run() returned.
Loop *loop_new(const LoopConfig *config, GError **error);
void loop_free(Loop *loop);
unsigned loop_max_fibers(const Loop *loop);

// What a loop has done so far.
typedef struct LoopStats {
    uint64_t n_turns;
    uint64_t n_sleeps; // turns that ended with a wait for events
} LoopStats;
// Any thread.
LoopStats loop_stats(const Loop *loop);

// Runs until loop_stop() was called and no fiber is left. The only function that runs a loop.
void loop_run(Loop *loop);
// Ends loop_run() once the last fiber ended. Any thread.
void loop_stop(Loop *loop);

// A message to a loop. The caller owns the storage, which must stay until `fn` runs, on the loop's
// thread, outside any fiber (so `fn` must not suspend; it may spawn). In order per sender.
typedef struct LoopCall LoopCall;
typedef void LoopCallFn(LoopCall *call);
struct LoopCall {
    LoopCallFn *fn;
    LoopCall *next; // the loop's
};
void loop_post(Loop *loop, LoopCall *call); // any thread

// Monotonic time in ns, refreshed once per turn of the loop (virtual in sim). Loop thread.
uint64_t loop_now_ns(const Loop *loop);
// The time of day: microseconds since 1970 (follows from the virtual time in sim). Loop thread.
uint64_t loop_wall_us(Loop *loop);

// 0 after `ns`, or -ECANCELED.
int fiber_sleep(Fiber *self, uint64_t ns);

// Calls `fn` after `ns` on the loop, outside any fiber; caller owns the storage. Loop thread.
typedef struct LoopTimer LoopTimer;
typedef void LoopTimerFn(LoopTimer *timer);
struct LoopTimer {
    LoopTimerFn *fn;
    uint64_t deadline_ns;
    unsigned heap_index; // the loop's; 0 when not armed
};
void loop_timer_start(Loop *loop, LoopTimer *timer, uint64_t ns);
void loop_timer_stop(Loop *loop, LoopTimer *timer);

// Runs `fn(arg)` on a worker thread and suspends until it returned; gives back its value (0 or
// negative errno by convention). For blocking calls and CPU work such as inflating a cluster. `fn`
// must touch only `arg`. Under sim it runs on the one thread, at a seeded moment.
typedef int LoopWorkFn(void *arg);
int loop_work(Fiber *self, LoopWorkFn *fn, void *arg);
