// SPDX-License-Identifier: LGPL-2.1-or-later
// The Fiber itself and the hook through which cancellable waits hear of a cancellation. For
// libchain/loop and the back ends. On the fiber's loop.
//
// Life of a fiber:
//     QUEUED ──loop──► RUNNING ──fiber_suspend──► SUSPENDED ──fiber_wake──► QUEUED
//                         └──fn returns──► ENDED (stack back in the pool)
// A wake that finds the fiber RUNNING is remembered; one that finds it QUEUED has nothing to do.
#pragma once

#include <stddef.h>

#include "chain-core/fiber.h"

typedef enum FiberState { FIBER_QUEUED, FIBER_RUNNING, FIBER_SUSPENDED, FIBER_ENDED } FiberState;

typedef void FiberCancelFn(Fiber *fiber, void *arg);

// Lies at the upper end of its own stack.
struct Fiber {
    void *context;        // saved stack pointer while not RUNNING
    void *return_context; // of whoever resumed it
    Loop *loop;
    const char *name;
    const char *where; // literal; where it is suspended
    FiberFn *fn;
    void *arg;
    Fiber *next_runnable;
    FiberState state;
    bool is_wake_pending;
    bool is_cancelled;
    bool is_reserve; // taken from the reserve above the loop's limit
    FiberCancelFn *cancel_fn;
    void *cancel_arg;
    Fiber *previous, *next; // all fibers of the loop; `next` also links the pool of free stacks
    void *stack;            // lowest address of the mapping (its guard page)
    size_t stack_bytes;     // of the mapping
    void *sanitizer[4];     // fiber-sanitizer.h
    unsigned valgrind_id;
};

// While a fiber waits, `fn(self, arg)` is called once when it is cancelled; it must make the fiber
// runnable sooner or later. Set and cleared around the wait. Returns false, and sets nothing, when
// the fiber is cancelled already.
bool fiber_begin_cancellable(Fiber *self, FiberCancelFn *fn, void *arg);
void fiber_end_cancellable(Fiber *self);

// Like fiber_spawn_reserve(), with a reserve of its own.
int fiber_spawn_beyond(Loop *loop, const char *name, FiberFn *fn, void *arg, unsigned reserve);

// Switches to `fiber` (QUEUED) until it suspends or ends. For the loop.
void fiber_resume(Fiber *fiber);

// Gives back the stacks of all fibers of `loop`, whatever they were doing, without running them:
// what they own leaks. For a simulated power cut. Under AddressSanitizer copies of the stacks are
// kept, so that its leak checker does not report what they point at.
void fiber_abandon_all(Loop *loop);
