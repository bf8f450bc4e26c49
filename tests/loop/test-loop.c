// SPDX-License-Identifier: LGPL-2.1-or-later
// The loop: timers, messages from threads, workers, stop.
#include "in-fiber.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { N_TIMERS = 200 };

typedef struct TestTimer {
    LoopTimer timer;
    Loop *loop;
    unsigned *n_fired;
    uint64_t *last_deadline;
} TestTimer;

static void timer_fires(LoopTimer *timer)
{
    TestTimer *t = (TestTimer *)timer;
    fiber_assert(loop_now_ns(t->loop) >= timer->deadline_ns);
    fiber_assert(timer->deadline_ns >= *t->last_deadline);
    *t->last_deadline = timer->deadline_ns;
    ++*t->n_fired;
}

FIBER_TEST(timers_fire_in_order_and_not_early_and_stopped_ones_do_not)
{
    static TestTimer timers[N_TIMERS];
    unsigned n_fired = 0, n_expected = 0;
    uint64_t last = 0;
    Loop *loop = fiber_loop(self);
    GRand *rand = g_rand_new_with_seed(1);
    for (int i = 0; i < N_TIMERS; i++) {
        timers[i] = (TestTimer){{timer_fires, 0, 0}, loop, &n_fired, &last};
        loop_timer_start(loop, &timers[i].timer, g_rand_int(rand) % 5000000);
    }
    for (int i = 0; i < N_TIMERS; i++)
        switch (g_rand_int(rand) % 3) {
        case 0:
            loop_timer_stop(loop, &timers[i].timer);
            loop_timer_stop(loop, &timers[i].timer); // no harm
            break;
        case 1:
            loop_timer_start(loop, &timers[i].timer, g_rand_int(rand) % 5000000); // re-armed
            n_expected++;
            break;
        default:
            n_expected++;
        }
    fiber_assert_equal(fiber_sleep(self, 6000000), 0);
    fiber_assert_equal(n_fired, n_expected);
    g_rand_free(rand);
}

static void must_not_fire(LoopTimer *timer)
{
    g_error("a stopped timer fired");
}

static void may_fire(LoopTimer *timer)
{
}

static int takes_2_ms(void *arg)
{
    g_usleep(2000);
    return 0;
}

static uint64_t slept_ns(Fiber *self, uint64_t ns)
{
    gint64 start = g_get_monotonic_time();
    fiber_assert_equal(fiber_sleep(self, ns), 0);
    return (uint64_t)(g_get_monotonic_time() - start) * 1000;
}

// The kernel's timer stays armed for one that was stopped.
FIBER_TEST(a_stopped_timer_neither_delays_nor_hastens_others)
{
    static const uint64_t hour_ns = 3600000000000, soon_ns = 100000000;
    Loop *loop = fiber_loop(self);
    LoopTimer far = {.fn = must_not_fire}, soon = {.fn = may_fire};
    loop_timer_start(loop, &far, hour_ns);
    fiber_assert_equal(loop_work(self, takes_2_ms, NULL), 0); // the loop sleeps, and arms it
    fiber_assert(slept_ns(self, 1000000) < hour_ns);          // an earlier one
    loop_timer_start(loop, &soon, soon_ns);
    fiber_assert_equal(loop_work(self, takes_2_ms, NULL), 0);
    loop_timer_stop(loop, &soon);
    fiber_assert(slept_ns(self, soon_ns + 10000000) >= soon_ns + 10000000);
    loop_timer_stop(loop, &far);
    fiber_assert(slept_ns(self, 1000000) < hour_ns);
}

enum { N_THREADS = 3, N_CALLS = 20000 };

typedef struct Sender {
    pthread_t thread;
    Loop *loop;
    Fiber *fiber;
    unsigned n_seen;
    struct SenderCall {
        LoopCall call;
        struct Sender *sender;
        unsigned number;
    } * calls;
} Sender;

static void call_comes(LoopCall *call)
{
    struct SenderCall *c = (struct SenderCall *)call;
    fiber_assert_equal(c->number, c->sender->n_seen); // in order per sender
    if (++c->sender->n_seen == N_CALLS)
        fiber_wake(c->sender->fiber);
}

static void *sends(void *arg)
{
    Sender *s = arg;
    for (unsigned i = 0; i < N_CALLS; i++) {
        s->calls[i] = (struct SenderCall){{call_comes, NULL}, s, i};
        loop_post(s->loop, &s->calls[i].call);
    }
    return NULL;
}

FIBER_TEST(messages_from_threads_all_come_and_in_order)
{
    Sender senders[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        senders[i] = (Sender){.loop = fiber_loop(self), .fiber = self};
        senders[i].calls = calloc(N_CALLS, sizeof(struct SenderCall));
        fiber_assert_equal(pthread_create(&senders[i].thread, NULL, sends, &senders[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        while (senders[i].n_seen < N_CALLS)
            fiber_suspend(self, "messages");
        pthread_join(senders[i].thread, NULL);
        free(senders[i].calls);
    }
}

static void spawned_by_message(Fiber *self, void *arg)
{
    fiber_wake(arg);
}

static void spawns(LoopCall *call);

typedef struct SpawnCall {
    LoopCall call;
    Fiber *fiber;
    bool has_run;
} SpawnCall;

static void spawns(LoopCall *call)
{
    SpawnCall *s = (SpawnCall *)call;
    s->has_run = true;
    fiber_assert_equal(
        fiber_spawn(fiber_loop(s->fiber), "by message", spawned_by_message, s->fiber, NULL), 0);
}

FIBER_TEST(a_message_may_spawn)
{
    SpawnCall s = {{spawns, NULL}, self, false};
    loop_post(fiber_loop(self), &s.call);
    while (!s.has_run)
        fiber_suspend(self, "message");
}

typedef struct Workshop {
    atomic_int n_running, n_max, n_done;
    atomic_bool may_end;
    pthread_t loop_thread;
} Workshop;

static int works(void *arg)
{
    Workshop *w = arg;
    fiber_assert(!pthread_equal(pthread_self(), w->loop_thread));
    int n = atomic_fetch_add(&w->n_running, 1) + 1;
    int max = atomic_load(&w->n_max);
    while (n > max && !atomic_compare_exchange_weak(&w->n_max, &max, n))
        ;
    while (n < 4 && !atomic_load(&w->may_end)) // four must be in here at once
        sched_yield();
    atomic_store(&w->may_end, true);
    atomic_fetch_sub(&w->n_running, 1);
    return -1000 - atomic_fetch_add(&w->n_done, 1);
}

static void gives_work(Fiber *self, void *arg)
{
    fiber_assert(loop_work(self, works, arg) <= -1000);
}

static void workers_fiber(Fiber *self, void *arg)
{
    Workshop w = {.loop_thread = pthread_self()};
    for (int i = 0; i < 20; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "work", gives_work, &w, NULL), 0);
    while (atomic_load(&w.n_done) < 20)
        fiber_assert_equal(fiber_sleep(self, 100000), 0);
    fiber_assert_equal(atomic_load(&w.n_max), 4);
    fiber_assert_equal(loop_work(self, works, &w), -1020); // also when all was idle
}

static void workers_run_in_parallel_up_to_their_bound(void **state)
{
    LoopConfig config = {.max_workers = 4};
    run_in_fiber_of(&config, workers_fiber, NULL);
}

static void outlives_stop(Fiber *self, void *arg)
{
    fiber_assert_equal(fiber_sleep(self, 2000000), 0);
    *(bool *)arg = true;
}

static void *stops(void *arg)
{
    loop_stop(arg);
    return NULL;
}

static void stop_from_a_thread_ends_the_loop_after_its_last_fiber(void **state)
{
    pthread_t thread;
    bool has_ended = false;
    Loop *loop = loop_new(NULL, NULL);
    assert_non_null(loop);
    assert_int_equal(fiber_spawn(loop, "outlives", outlives_stop, &has_ended, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, stops, loop), 0);
    loop_run(loop);
    pthread_join(thread, NULL);
    assert_true(has_ended);
    loop_free(loop);
}

static void *runs_loop(void *arg)
{
    loop_run(arg);
    return NULL;
}

static void a_loop_without_fibers_waits_for_stop_on_another_thread(void **state)
{
    pthread_t thread;
    Loop *loop = loop_new(NULL, NULL);
    assert_int_equal(pthread_create(&thread, NULL, runs_loop, loop), 0);
    loop_stop(loop);
    pthread_join(thread, NULL);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timers_fire_in_order_and_not_early_and_stopped_ones_do_not),
        cmocka_unit_test(a_stopped_timer_neither_delays_nor_hastens_others),
        cmocka_unit_test(messages_from_threads_all_come_and_in_order),
        cmocka_unit_test(a_message_may_spawn),
        cmocka_unit_test(workers_run_in_parallel_up_to_their_bound),
        cmocka_unit_test(stop_from_a_thread_ends_the_loop_after_its_last_fiber),
        cmocka_unit_test(a_loop_without_fibers_waits_for_stop_on_another_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
