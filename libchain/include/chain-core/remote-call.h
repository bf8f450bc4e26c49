// SPDX-License-Identifier: LGPL-2.1-or-later
// Remote calls: a thread that may block has a function run in a fiber of a loop, and waits for its
// end. Never from the loop's own thread, which would wait for itself.
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
