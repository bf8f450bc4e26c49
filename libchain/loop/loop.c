// SPDX-License-Identifier: LGPL-2.1-or-later
// What every loop does, whatever its back end: the run queue, messages from other threads, and
// loop_run(). The order of a turn: messages, timers, fibers, then the back end's wait. Loop thread
// unless said otherwise.
#include "loop/loop-private.h"

#include <assert.h>

#include "loop/fiber-stack.h"

enum { MAX_FIBERS_DEFAULT = 4096 };

// Fibers that wake each other go round this often before the back end gets its turn.
enum { ROUNDS_PER_TURN = 8 };

void loop_init(Loop *loop, const LoopBackend *backend, const LoopConfig *config)
{
    unsigned max_fibers = config ? config->max_fibers : 0;
    *loop = (Loop){
        .backend = backend,
        .max_fibers = max_fibers ? max_fibers : MAX_FIBERS_DEFAULT,
    };
}

void loop_done(Loop *loop)
{
    assert(!loop->fibers);
    fiber_stack_free_all(loop);
    g_clear_pointer(&loop->timers, g_free);
}

// -- figures --------------------------------------------------------------------------------------

static void count(_Atomic uint64_t *figure)
{
    uint64_t before = atomic_load_explicit(figure, memory_order_relaxed);
    atomic_store_explicit(figure, before + 1, memory_order_relaxed);
}

LoopStats loop_stats(const Loop *loop)
{
    Loop *l = (Loop *)loop;
    return (LoopStats){
        .n_turns = atomic_load_explicit(&l->n_turns, memory_order_relaxed),
        .n_sleeps = atomic_load_explicit(&l->n_sleeps, memory_order_relaxed),
    };
}

// -- messages -------------------------------------------------------------------------------------

// Takes the inbox (newest first) and appends it to `calls` in order. Seq_cst, and is_waiting is set
// before the back end looks here for the last time: either the poster sees is_waiting, or the loop
// sees the message.
static void take_inbox(Loop *loop)
{
    if (!atomic_load_explicit(&loop->inbox, memory_order_relaxed))
        return;
    LoopCall *newest = atomic_exchange(&loop->inbox, NULL);
    LoopCall *oldest = NULL;
    while (newest) {
        LoopCall *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    LoopCall **end = &loop->calls;
    while (*end)
        end = &(*end)->next;
    *end = oldest;
}

void loop_post(Loop *loop, LoopCall *call)
{
    LoopCall *head = atomic_load_explicit(&loop->inbox, memory_order_relaxed);
    do
        call->next = head;
    while (!atomic_compare_exchange_weak(&loop->inbox, &head, call));
    // With a head, whoever posted that one did what was needed.
    if (!head && atomic_load(&loop->is_waiting))
        loop->backend->notify(loop);
}

void loop_stop(Loop *loop)
{
    atomic_store(&loop->is_stopping, true);
    if (atomic_load(&loop->is_waiting))
        loop->backend->notify(loop);
}

unsigned loop_max_fibers(const Loop *loop)
{
    return loop->max_fibers;
}

uint64_t loop_now_ns(const Loop *loop)
{
    return loop->now_ns;
}

uint64_t loop_wall_us(Loop *loop)
{
    return loop->backend->wall_us ? loop->backend->wall_us(loop) : (uint64_t)g_get_real_time();
}

static bool run_calls(Loop *loop)
{
    take_inbox(loop);
    bool any = loop->calls;
    while (loop->calls) {
        LoopCall *call = loop->calls;
        loop->calls = call->next;
        call->fn(call); // `call` may be gone
    }
    return any;
}

bool loop_dispatch(Loop *loop)
{
    loop->now_ns = loop->backend->now(loop);
    count(&loop->n_turns);
    bool any = run_calls(loop);
    while (loop->n_timers && loop->timers[1]->deadline_ns <= loop->now_ns) {
        LoopTimer *timer = loop->timers[1];
        loop_timer_stop(loop, timer);
        timer->fn(timer);
        any = true;
    }
    return any;
}

static Fiber *take_runnable(Loop *loop, unsigned index)
{
    Fiber *previous = NULL, *fiber = loop->first_runnable;
    for (; index; index--) {
        previous = fiber;
        fiber = fiber->next_runnable;
    }
    if (previous)
        previous->next_runnable = fiber->next_runnable;
    else
        loop->first_runnable = fiber->next_runnable;
    if (!fiber->next_runnable)
        loop->last_runnable = previous;
    loop->n_runnable--;
    return fiber;
}

bool loop_run_one(Loop *loop)
{
    if (!loop->n_runnable)
        return false;
    unsigned index = loop->backend->pick ? loop->backend->pick(loop, loop->n_runnable) : 0;
    assert(index < loop->n_runnable);
    fiber_resume(take_runnable(loop, index));
    return true;
}

bool loop_step(Loop *loop)
{
    bool any = loop_dispatch(loop);
    for (unsigned n = loop->n_runnable; n; n--)
        any |= loop_run_one(loop);
    return any;
}

bool loop_is_ready(const Loop *loop)
{
    return loop->n_runnable || loop->calls || atomic_load(&((Loop *)loop)->inbox);
}

bool loop_is_finished(const Loop *loop)
{
    return !loop->fibers && !loop_is_ready(loop) && atomic_load(&((Loop *)loop)->is_stopping);
}

void loop_run(Loop *loop)
{
    assert(!loop->is_running && loop->backend->wait);
    if (loop->backend->start)
        loop->backend->start(loop);
    loop->is_running = true;
    for (;;) {
        loop_step(loop);
        for (int i = 1; i < ROUNDS_PER_TURN && loop->n_runnable; i++)
            for (unsigned n = loop->n_runnable; n; n--)
                loop_run_one(loop);
        if (loop_is_finished(loop))
            break;
        bool is_ready = loop_is_ready(loop);
        if (!is_ready && loop->backend->busy_poll)
            is_ready = loop->backend->busy_poll(loop, loop_next_deadline_ns(loop));
        // Announce the wait before looking for messages the last time; see take_inbox().
        atomic_store(&loop->is_waiting, true);
        is_ready = is_ready || loop_is_ready(loop) || loop_is_finished(loop);
        if (is_ready)
            atomic_store_explicit(&loop->is_waiting, false, memory_order_relaxed);
        else
            count(&loop->n_sleeps);
        loop->backend->wait(loop, is_ready ? 0 : loop_next_deadline_ns(loop));
        atomic_store_explicit(&loop->is_waiting, false, memory_order_relaxed);
    }
    loop->is_running = false;
}

int loop_work(Fiber *self, LoopWorkFn *fn, void *arg)
{
    return self->loop->backend->work(self, fn, arg);
}

void loop_free(Loop *loop)
{
    if (!loop)
        return;
    assert(!loop->is_running && !loop->fibers);
    loop->backend->free(loop);
}
