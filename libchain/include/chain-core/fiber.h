// SPDX-License-Identifier: LGPL-2.1-or-later
// Fibers: stackful coroutines that carry activities (an NBD request, a connection's receiver, a
// job worker) on one loop. A function that may suspend takes `Fiber *self` first; between suspend
// points code is atomic on its loop. All functions here: only on the fiber's own loop thread.
#pragma once

#include <stdbool.h>

typedef struct Fiber Fiber;
typedef struct Loop Loop;
typedef void FiberFn(Fiber *self, void *arg);

// Starts `fn(arg)` on a pooled stack of `loop`. Callable from a fiber of that loop or from code
// that the loop calls. On io_uring loops the fiber runs at once, until it first suspends or ends,
// and only then does this return; a simulated loop may queue it instead: rely on neither order.
// `name` must outlive the fiber (a literal). The Fiber frees itself at its end; `ret_fiber` (may be
// NULL) is valid until then and is set before `fn` runs. Returns 0, or -ENOMEM when no stack can
// be had (bounded by the loop's limit and vm.max_map_count).
int fiber_spawn(Loop *loop, const char *name, FiberFn *fn, void *arg, Fiber **ret_fiber);
// Like fiber_spawn() for what admits no new work: helpers below the point where work is admitted,
// and the end of it all. May exceed the loop's limit by a reserve, so that I/O in flight ends and a
// loop full of requests can be stopped.
int fiber_spawn_reserve(Loop *loop, const char *name, FiberFn *fn, void *arg);

Loop *fiber_loop(const Fiber *self);
const char *fiber_name(const Fiber *self);

// Suspends until fiber_wake(). A wake that came first is remembered (one), so suspend in a loop
// that tests the condition. `where` is a literal shown by the gdb helper.
void fiber_suspend(Fiber *self, const char *where);
// Makes `fiber` runnable; it runs later, from the loop. Not from another thread (loop_post()).
void fiber_wake(Fiber *fiber);
// Lets every other runnable fiber go first.
void fiber_yield(Fiber *self);

// Cancellation is sticky. It interrupts fiber_sleep(), stream operations and cancellable waits
// (FiberCond, FiberSemaphore), which then return -ECANCELED at once and ever after; file I/O,
// mutexes and wait groups are not interrupted, so clean-up may still suspend on them.
void fiber_cancel(Fiber *fiber);
bool fiber_is_cancelled(const Fiber *self);
