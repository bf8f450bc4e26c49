// SPDX-License-Identifier: LGPL-2.1-or-later
// Timers of a loop: a binary heap of pointers, ordered by deadline; each timer knows its place, so
// that stopping costs O(log n) too. Also fiber_sleep(). Loop thread.
#include <assert.h>
#include <errno.h>

#include "loop/loop-private.h"

static void place(Loop *loop, unsigned index, LoopTimer *timer)
{
    loop->timers[index] = timer;
    timer->heap_index = index;
}

static void move_up(Loop *loop, unsigned index, LoopTimer *timer)
{
    for (; index > 1 && loop->timers[index / 2]->deadline_ns > timer->deadline_ns; index /= 2)
        place(loop, index, loop->timers[index / 2]);
    place(loop, index, timer);
}

static void move_down(Loop *loop, unsigned index, LoopTimer *timer)
{
    for (;;) {
        unsigned child = 2 * index;
        if (child > loop->n_timers)
            break;
        if (child < loop->n_timers &&
            loop->timers[child + 1]->deadline_ns < loop->timers[child]->deadline_ns)
            child++;
        if (loop->timers[child]->deadline_ns >= timer->deadline_ns)
            break;
        place(loop, index, loop->timers[child]);
        index = child;
    }
    place(loop, index, timer);
}

void loop_timer_start(Loop *loop, LoopTimer *timer, uint64_t ns)
{
    loop_timer_stop(loop, timer);
    if (__builtin_add_overflow(loop->now_ns, ns, &timer->deadline_ns))
        timer->deadline_ns = UINT64_MAX;
    if (loop->n_timers + 2 > loop->timers_capacity) {
        loop->timers_capacity = loop->timers_capacity ? 2 * loop->timers_capacity : 64;
        loop->timers = g_renew(LoopTimer *, loop->timers, loop->timers_capacity);
    }
    move_up(loop, ++loop->n_timers, timer);
}

void loop_timer_stop(Loop *loop, LoopTimer *timer)
{
    unsigned index = timer->heap_index;
    if (!index)
        return;
    assert(loop->timers[index] == timer);
    timer->heap_index = 0;
    LoopTimer *last = loop->timers[loop->n_timers--];
    if (last == timer)
        return;
    // The last one takes the free place, and moves to where it belongs.
    if (index > 1 && loop->timers[index / 2]->deadline_ns > last->deadline_ns)
        move_up(loop, index, last);
    else
        move_down(loop, index, last);
}

uint64_t loop_next_deadline_ns(const Loop *loop)
{
    return loop->n_timers ? loop->timers[1]->deadline_ns : UINT64_MAX;
}

typedef struct Sleep {
    LoopTimer timer;
    Fiber *fiber;
    bool is_over;
} Sleep;

static void sleep_timer(LoopTimer *timer)
{
    Sleep *s = (Sleep *)timer;
    s->is_over = true;
    fiber_wake(s->fiber);
}

static void sleep_cancel(Fiber *self, void *arg)
{
    fiber_wake(self);
}

int fiber_sleep(Fiber *self, uint64_t ns)
{
    Sleep s = {.timer.fn = sleep_timer, .fiber = self};
    if (!fiber_begin_cancellable(self, sleep_cancel, NULL))
        return -ECANCELED;
    loop_timer_start(self->loop, &s.timer, ns);
    while (!s.is_over && !self->is_cancelled)
        fiber_suspend(self, "sleep");
    loop_timer_stop(self->loop, &s.timer);
    fiber_end_cancellable(self);
    return self->is_cancelled ? -ECANCELED : 0;
}
