// SPDX-License-Identifier: LGPL-2.1-or-later
// Fibers: start, switch, suspend, wake, cancel. A fiber always returns to whoever resumed it: the
// loop, or the fiber that spawned it. On the fiber's loop.
#include "loop/fiber-private.h"

#include <assert.h>
#include <errno.h>

#include <glib.h>

#include "loop/fiber-sanitizer.h"
#include "loop/fiber-stack.h"
#include "loop/loop-private.h"

// What admits no new work (helpers of work under way, the calls of a stop) gets this many fibers
// above the loop's limit.
enum { RESERVE = 1024 };

static void make_runnable(Fiber *fiber)
{
    Loop *loop = fiber->loop;
    fiber->state = FIBER_QUEUED;
    fiber->next_runnable = NULL;
    if (loop->last_runnable)
        loop->last_runnable->next_runnable = fiber;
    else
        loop->first_runnable = fiber;
    loop->last_runnable = fiber;
    loop->n_runnable++;
}

static void unlink_from_loop(Fiber *fiber)
{
    Loop *loop = fiber->loop;
    if (fiber->previous)
        fiber->previous->next = fiber->next;
    else
        loop->fibers = fiber->next;
    if (fiber->next)
        fiber->next->previous = fiber->previous;
    loop->n_fibers--;
}

static void leave(Fiber *self)
{
    fiber_sanitizer_fiber_leave(self);
    fiber_switch(&self->context, self->return_context);
    fiber_sanitizer_fiber_arrive(self);
}

static void fiber_main(Fiber *self)
{
    fiber_sanitizer_fiber_arrive(self);
    self->fn(self, self->arg);
    unlink_from_loop(self);
    self->state = FIBER_ENDED;
    leave(self); // fiber_resume() puts the stack away
    __builtin_unreachable();
}

void fiber_resume(Fiber *fiber)
{
    Loop *loop = fiber->loop;
    Fiber *resumer = loop->current;
    FiberSanitizerResumer sanitizer = {0};

    assert(fiber->state == FIBER_QUEUED);
    fiber->state = FIBER_RUNNING;
    loop->current = fiber;
    fiber_sanitizer_resumer_leave(&sanitizer, fiber);
    fiber_switch(&fiber->return_context, fiber->context);
    fiber_sanitizer_resumer_arrive(&sanitizer, fiber);
    loop->current = resumer;
    if (fiber->state == FIBER_ENDED)
        fiber_stack_put(loop, fiber);
}

static int spawn(Loop *loop, const char *name, FiberFn *fn, void *arg, Fiber **ret_fiber,
                 unsigned limit)
{
    if (loop->n_fibers >= limit)
        return -ENOMEM;
    Fiber *fiber = fiber_stack_take(loop);
    if (!fiber)
        return -ENOMEM;
    fiber->name = name;
    fiber->where = "start";
    fiber->fn = fn;
    fiber->arg = arg;
    fiber->next = loop->fibers;
    if (loop->fibers)
        loop->fibers->previous = fiber;
    loop->fibers = fiber;
    loop->n_fibers++;
    fiber_stack_prepare(fiber, fiber_main);
    if (ret_fiber)
        *ret_fiber = fiber;

    if (!loop->is_running || loop->backend->pick) {
        make_runnable(fiber);
    } else {
        fiber->state = FIBER_QUEUED;
        fiber_resume(fiber);
    }
    return 0;
}

int fiber_spawn(Loop *loop, const char *name, FiberFn *fn, void *arg, Fiber **ret_fiber)
{
    return spawn(loop, name, fn, arg, ret_fiber, loop->max_fibers);
}

int fiber_spawn_beyond(Loop *loop, const char *name, FiberFn *fn, void *arg, unsigned reserve)
{
    return spawn(loop, name, fn, arg, NULL, loop->max_fibers + reserve);
}

int fiber_spawn_reserve(Loop *loop, const char *name, FiberFn *fn, void *arg)
{
    return fiber_spawn_beyond(loop, name, fn, arg, RESERVE);
}

Loop *fiber_loop(const Fiber *self)
{
    return self->loop;
}

const char *fiber_name(const Fiber *self)
{
    return self->name;
}

void fiber_suspend(Fiber *self, const char *where)
{
    assert(self->loop->current == self);
    if (self->is_wake_pending) {
        self->is_wake_pending = false;
        return;
    }
    self->where = where;
    self->state = FIBER_SUSPENDED;
    leave(self);
}

void fiber_wake(Fiber *fiber)
{
    switch (fiber->state) {
    case FIBER_SUSPENDED:
        make_runnable(fiber);
        break;
    case FIBER_RUNNING:
        fiber->is_wake_pending = true;
        break;
    case FIBER_QUEUED:
        break;
    case FIBER_ENDED:
        assert(!"a fiber that ended cannot be woken");
    }
}

void fiber_yield(Fiber *self)
{
    assert(self->loop->current == self);
    self->where = "yield";
    make_runnable(self);
    leave(self);
}

void fiber_cancel(Fiber *fiber)
{
    if (fiber->is_cancelled)
        return;
    fiber->is_cancelled = true;
    FiberCancelFn *fn = fiber->cancel_fn;
    fiber->cancel_fn = NULL;
    if (fn)
        fn(fiber, fiber->cancel_arg);
}

bool fiber_is_cancelled(const Fiber *self)
{
    return self->is_cancelled;
}

bool fiber_begin_cancellable(Fiber *self, FiberCancelFn *fn, void *arg)
{
    if (self->is_cancelled)
        return false;
    assert(!self->cancel_fn);
    self->cancel_fn = fn;
    self->cancel_arg = arg;
    return true;
}

void fiber_end_cancellable(Fiber *self)
{
    self->cancel_fn = NULL;
}

#ifdef FIBER_HAS_ASAN
// What an abandoned stack points at stays reachable through a copy of it. Word by word, without
// checks: the copy crosses the red zones between its variables.
__attribute__((no_sanitize("address"))) static void keep_copy(const Fiber *fiber)
{
    static GPtrArray *copies; // until the program ends; simulations run on one thread
    const void *const *from = fiber->context;
    const void *const *end = (const void *const *)fiber; // the Fiber lies above its stack
    const void **copy = g_new(const void *, (gsize)(end - from) + 1);
    for (size_t i = 0; from + i < end; i++)
        ((const void *volatile *)copy)[i] = from[i];
    if (!copies)
        copies = g_ptr_array_new();
    g_ptr_array_add(copies, copy);
}
#endif

void fiber_abandon_all(Loop *loop)
{
    assert(!loop->current);
    while (loop->fibers) {
        Fiber *fiber = loop->fibers;
        unlink_from_loop(fiber);
#ifdef FIBER_HAS_ASAN
        keep_copy(fiber);
        __asan_unpoison_memory_region(fiber->context,
                                      (size_t)((char *)fiber - (char *)fiber->context));
#endif
        fiber_stack_put(loop, fiber);
    }
    loop->first_runnable = loop->last_runnable = NULL;
    loop->n_runnable = 0;
}
