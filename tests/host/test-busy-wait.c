// SPDX-License-Identifier: LGPL-2.1-or-later
// When a loop looks out for events instead of going to sleep, and that it then misses none.
#include "../loop/in-fiber.h"

#include <pthread.h>
#include <stdatomic.h>

#include "host/busy-wait.h"

static BusyWait after(unsigned n, uint64_t idle_ns)
{
    BusyWait b = {.max_ns = 50000};
    while (n--)
        busy_wait_learn(&b, idle_ns);
    return b;
}

static void idle_times_that_keep_being_short_make_it_pay(void **state)
{
    BusyWait b = after(BUSY_WAIT_PAYS - 1, 20000);
    assert_false(busy_wait_pays(&b));
    b = after(BUSY_WAIT_PAYS, 20000);
    assert_true(busy_wait_pays(&b));
    b = after(1000, 20000);
    for (unsigned i = 0; i < BUSY_WAIT_MAX_SCORE; i++)
        busy_wait_learn(&b, 1000000);
    assert_false(busy_wait_pays(&b));
}

static void long_idle_times_and_none_at_all_do_not(void **state)
{
    BusyWait b = after(100, 50001);
    assert_false(busy_wait_pays(&b));
    b = after(100, BUSY_WAIT_MIN_NS - 1);
    assert_false(busy_wait_pays(&b));
}

static void when_events_do_not_let_the_loop_wait_it_is_not_tried_again_soon(void **state)
{
    BusyWait b = after(BUSY_WAIT_MAX_SCORE, 20000);
    unsigned pauses[8];
    for (unsigned i = 0; i < G_N_ELEMENTS(pauses); i++) {
        while (busy_wait_pays(&b))
            busy_wait_learn(&b, BUSY_WAIT_MIN_NS - 1);
        for (pauses[i] = 0; !busy_wait_measures(&b); pauses[i]++)
            continue;
        // Asleep the wake-up is part of what is measured, and looks like a short idle time.
        for (unsigned n = 0; n < BUSY_WAIT_PAYS; n++)
            busy_wait_learn(&b, 10000);
    }
    assert_in_range(pauses[0], BUSY_WAIT_MIN_PAUSE, 2 * BUSY_WAIT_MIN_PAUSE);
    assert_in_range(pauses[7], BUSY_WAIT_MAX_PAUSE, 2 * BUSY_WAIT_MAX_PAUSE);
    for (unsigned n = 0; n < BUSY_WAIT_MAX_SCORE + 1; n++) // it pays again
        busy_wait_learn(&b, 10000);
    while (busy_wait_pays(&b))
        busy_wait_learn(&b, BUSY_WAIT_MIN_NS - 1);
    assert_int_equal(b.pause, BUSY_WAIT_MIN_PAUSE);
}

enum { N_ROUNDS = 20000 };

// One message at a time to and fro, the next as soon as the last came: the loop keeps being idle
// for a short time, looks out, and must see each message whether it looks, is about to sleep, or
// sleeps.
typedef struct Pinger {
    pthread_t thread;
    Loop *loop;
    Fiber *fiber;
    LoopCall call;
    atomic_uint n_taken;
} Pinger;

static void take(LoopCall *call)
{
    Pinger *p = (Pinger *)((char *)call - offsetof(Pinger, call));
    if (atomic_fetch_add(&p->n_taken, 1) + 1 == N_ROUNDS)
        fiber_wake(p->fiber);
}

static void *ping(void *arg)
{
    Pinger *p = arg;
    p->call.fn = take;
    for (unsigned i = 0; i < N_ROUNDS; i++) {
        loop_post(p->loop, &p->call);
        while (atomic_load(&p->n_taken) == i)
            continue;
        if (i % 64 == 0)
            g_usleep(100);
    }
    return NULL;
}

static void ping_fiber(Fiber *self, void *arg)
{
    Pinger *p = arg;
    p->fiber = self;
    p->loop = fiber_loop(self);
    pthread_create(&p->thread, NULL, ping, p);
    while (atomic_load(&p->n_taken) < N_ROUNDS)
        fiber_suspend(self, "pings");
    loop_stop(p->loop);
}

static void a_loop_that_looks_out_misses_no_message(void **state)
{
    Pinger p = {0};
    Loop *loop = loop_new(&(LoopConfig){.busy_wait_ns = 50000}, NULL);
    assert_non_null(loop);
    assert_int_equal(fiber_spawn(loop, "pings", ping_fiber, &p, NULL), 0);
    loop_run(loop);
    pthread_join(p.thread, NULL);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idle_times_that_keep_being_short_make_it_pay),
        cmocka_unit_test(long_idle_times_and_none_at_all_do_not),
        cmocka_unit_test(when_events_do_not_let_the_loop_wait_it_is_not_tried_again_soon),
        cmocka_unit_test(a_loop_that_looks_out_misses_no_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
