// SPDX-License-Identifier: LGPL-2.1-or-later
// Remote calls: somebody has a function run in a fiber of a loop, and waits for its end. Either a
// thread that may block (remote_call(); never the loop's own thread, which would wait for itself),
// or a fiber, of the same loop or of another one (remote_call_fiber()).
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain-core/loop.h"

// The caller's storage, from its start until remote_call_wait() returned something other than
// -ETIMEDOUT.
typedef struct RemoteCall {
    LoopCall post; // first: the loop gives it back
    Loop *loop;
    FiberFn *fn;
    void *arg;
    bool is_from_reserve;
    bool is_over; // protected, like result, by the mutex
    int result;
    pthread_mutex_t mutex;
    pthread_cond_t ended;
} RemoteCall;

// Starts fn(fiber, arg); it hands results over in `arg`. Calls that one thread starts on one loop
// begin in that order. Each is waited for, once.
void remote_call_start(RemoteCall *call, Loop *loop, FiberFn *fn, void *arg);
// The same for calls that admit no new work: also on a loop full of requests (fiber_spawn_reserve).
void remote_call_start_reserve(RemoteCall *call, Loop *loop, FiberFn *fn, void *arg);
// Waits until `fn` has returned, or until `deadline_us` (of g_get_monotonic_time(); negative: for
// as long as it takes). 0; -ENOMEM: there was no stack, `fn` was not called; -ETIMEDOUT: it is
// still under way, wait again.
int remote_call_wait(RemoteCall *call, int64_t deadline_us);

// Start and wait without limit: 0 or -ENOMEM.
int remote_call(Loop *loop, FiberFn *fn, void *arg);
int remote_call_reserve(Loop *loop, FiberFn *fn, void *arg);

// From a fiber: runs fn(fiber, arg) in another fiber, of `loop`, and suspends `self` until it has
// returned; other fibers of both loops go on. `loop` may be fiber_loop(self). What the caller wrote
// is seen by `fn`, and what `fn` wrote by the caller afterwards. Calls that one loop makes to
// another begin in that order. 0; -ENOMEM: there was no stack, `fn` was not called. Cancelling the
// caller neither ends the wait nor reaches `fn`: it shows in what the caller does next.
int remote_call_fiber(Fiber *self, Loop *loop, FiberFn *fn, void *arg);
int remote_call_fiber_reserve(Fiber *self, Loop *loop, FiberFn *fn, void *arg);
// The same with a function that does not suspend, and runs outside any fiber: it cannot fail.
typedef void RemoteCallFn(void *arg);
void remote_call_plain(Fiber *self, Loop *loop, RemoteCallFn *fn, void *arg);
