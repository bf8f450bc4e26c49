// SPDX-License-Identifier: LGPL-2.1-or-later
// When a loop polls for events instead of going to sleep, and that it then misses none.
#include "../loop/in-fiber.h"

#include <pthread.h>
#include <stdatomic.h>

#include "host/busy-poll.h"

static BusyPoll after(unsigned n, uint64_t idle_ns)
{
    BusyPoll b = {.max_ns = 50000};
    while (n--)
        busy_poll_learn(&b, idle_ns);
    return b;
}

static void idle_times_that_keep_being_short_make_it_pay(void **state)
{
    BusyPoll b = after(BUSY_POLL_PAYS - 1, 20000);
    assert_false(busy_poll_pays(&b));
    b = after(BUSY_POLL_PAYS, 20000);
    assert_true(busy_poll_pays(&b));
    b = after(1000, 20000);
    for (unsigned i = 0; i < BUSY_POLL_MAX_SCORE; i++)
        busy_poll_learn(&b, 1000000);
    assert_false(busy_poll_pays(&b));
}

static void long_idle_times_and_none_at_all_do_not(void **state)
{
    BusyPoll b = after(100, 50001);
    assert_false(busy_poll_pays(&b));
    b = after(100, BUSY_POLL_MIN_NS - 1);
    assert_false(busy_poll_pays(&b));
}

static void when_events_do_not_let_the_loop_wait_it_is_not_tried_again_soon(void **state)
{
    BusyPoll b = after(BUSY_POLL_MAX_SCORE, 20000);
    unsigned pauses[8];
    for (unsigned i = 0; i < G_N_ELEMENTS(pauses); i++) {
        while (busy_poll_pays(&b))
            busy_poll_learn(&b, BUSY_POLL_MIN_NS - 1);
        for (pauses[i] = 0; !busy_poll_measures(&b); pauses[i]++)
            continue;
        // Asleep the wake-up is part of what is measured, and looks like a short idle time.
        for (unsigned n = 0; n < BUSY_POLL_PAYS; n++)
            busy_poll_learn(&b, 10000);
    }
    assert_in_range(pauses[0], BUSY_POLL_MIN_PAUSE, 2 * BUSY_POLL_MIN_PAUSE);
    assert_in_range(pauses[7], BUSY_POLL_MAX_PAUSE, 2 * BUSY_POLL_MAX_PAUSE);
    for (unsigned n = 0; n < BUSY_POLL_MAX_SCORE + 1; n++) // it pays again
        busy_poll_learn(&b, 10000);
    while (busy_poll_pays(&b))
        busy_poll_learn(&b, BUSY_POLL_MIN_NS - 1);
    assert_int_equal(b.pause, BUSY_POLL_MIN_PAUSE);
}

enum { N_PROCESSORS = 2 };

static void count(BusyPoll *b, unsigned n, unsigned n_runnable)
{
    while (n--)
        busy_poll_count(b, n_runnable, N_PROCESSORS);
}

static void it_leaves_the_processors_to_others_that_want_them(void **state)
{
    BusyPoll b = after(BUSY_POLL_MAX_SCORE, 20000);
    count(&b, BUSY_POLL_IS_CROWDED, N_PROCESSORS + 1);
    assert_false(busy_poll_is_allowed(&b));
    assert_false(busy_poll_measures(&b));
    count(&b, 1000, N_PROCESSORS + 1);
    count(&b, BUSY_POLL_MAX_CROWDING, N_PROCESSORS);
    assert_true(busy_poll_is_allowed(&b));
    assert_true(busy_poll_measures(&b)); // and still knows that it pays
}

static void a_loop_and_its_client_are_no_crowd_nor_is_a_thread_now_and_then(void **state)
{
    BusyPoll b = after(BUSY_POLL_MAX_SCORE, 20000);
    count(&b, 1000, N_PROCESSORS);
    assert_true(busy_poll_is_allowed(&b));
    for (unsigned i = 0; i < 1000; i++) {
        count(&b, BUSY_POLL_IS_CROWDED - 1, N_PROCESSORS + 1);
        assert_true(busy_poll_is_allowed(&b));
        count(&b, BUSY_POLL_IS_CROWDED - 1, 1);
    }
}

static void the_kernel_is_asked_now_and_then_and_not_for_a_loop_that_never_polls(void **state)
{
    BusyPoll b = {.max_ns = 50000}, never = {0};
    assert_true(busy_poll_shall_count(&b, 5));
    assert_false(busy_poll_shall_count(&b, 5 + BUSY_POLL_COUNT_NS - 1));
    assert_true(busy_poll_shall_count(&b, 5 + BUSY_POLL_COUNT_NS));
    assert_false(busy_poll_shall_count(&never, UINT64_MAX));
    assert_false(busy_poll_is_allowed(&never));
}

enum { N_ROUNDS = 20000 };

// One message at a time to and fro, the next as soon as the last came: the loop keeps being idle
// for a short time, polls, and must see each message whether it polls, is about to sleep, or
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

static void a_loop_that_polls_misses_no_message(void **state)
{
    Pinger p = {0};
    Loop *loop = loop_new(&(LoopConfig){.busy_poll_ns = 50000}, NULL);
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
        cmocka_unit_test(it_leaves_the_processors_to_others_that_want_them),
        cmocka_unit_test(a_loop_and_its_client_are_no_crowd_nor_is_a_thread_now_and_then),
        cmocka_unit_test(the_kernel_is_asked_now_and_then_and_not_for_a_loop_that_never_polls),
        cmocka_unit_test(a_loop_that_polls_misses_no_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
