// SPDX-License-Identifier: LGPL-2.1-or-later
// Remote calls, from the test's thread and from fibers into a loop on a thread of its own, and
// between simulated loops.
#include <errno.h>
#include <pthread.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/remote-call.h"
#include "chain-core/sim.h"
#include "in-fiber.h"

enum { MAX_FIBERS = 4 };

typedef struct World {
    Loop *loop;
    pthread_t thread;
    Loop *caller;    // of call_from(); NULL: there was none
    FiberQueue held; // fibers that wait for release_all()
} World;

static void *run_loop(void *loop)
{
    loop_run(loop);
    return NULL;
}

static int make_world(void **state)
{
    World *w = g_new0(World, 1);
    w->loop = loop_new(&(LoopConfig){.max_fibers = MAX_FIBERS}, NULL);
    assert_non_null(w->loop);
    assert_int_equal(pthread_create(&w->thread, NULL, run_loop, w->loop), 0);
    *state = w;
    return 0;
}

static void release_all(Fiber *self, void *arg)
{
    World *w = arg;
    fiber_queue_wake_all(&w->held);
}

static int remove_world(void **state)
{
    World *w = *state;
    remote_call_reserve(w->loop, release_all, w); // after a failure
    loop_stop(w->loop);
    pthread_join(w->thread, NULL);
    loop_free(w->loop);
    loop_free(w->caller);
    g_free(w);
    return 0;
}

static void hold(Fiber *self, void *arg)
{
    World *w = arg;
    fiber_queue_wait(self, &w->held, false, "held");
}

static void fill_loop(Fiber *self, void *arg)
{
    while (fiber_spawn(fiber_loop(self), "held", hold, arg, NULL) == 0)
        ;
}

typedef struct Sleep {
    World *w;
    bool is_over;
} Sleep;

static void sleep_shortly(Fiber *self, void *arg)
{
    Sleep *s = arg;
    fiber_assert(fiber_loop(self) == s->w->loop);
    fiber_sleep(self, 1000);
    s->is_over = true;
}

static void a_call_returns_when_its_function_has_ended(void **state)
{
    Sleep s = {*state, false};
    assert_int_equal(remote_call(s.w->loop, sleep_shortly, &s), 0);
    assert_true(s.is_over);
    s.is_over = false;
    assert_int_equal(remote_call_reserve(s.w->loop, sleep_shortly, &s), 0);
    assert_true(s.is_over);
}

static void one_that_is_late_is_waited_for_again(void **state)
{
    World *w = *state;
    RemoteCall call;
    remote_call_start(&call, w->loop, hold, w);
    assert_int_equal(remote_call_wait(&call, g_get_monotonic_time()), -ETIMEDOUT);
    assert_int_equal(remote_call_wait(&call, 0), -ETIMEDOUT);
    assert_int_equal(remote_call(w->loop, release_all, w), 0);
    assert_int_equal(remote_call_wait(&call, -1), 0);
}

static void one_that_ended_long_ago_is_not_late(void **state)
{
    World *w = *state;
    RemoteCall call;
    remote_call_start(&call, w->loop, release_all, w);
    assert_int_equal(remote_call(w->loop, release_all, w), 0); // in order: the first has ended
    assert_int_equal(remote_call_wait(&call, 0), 0);
}

static void on_a_full_loop_only_calls_from_the_reserve_are_made(void **state)
{
    Sleep s = {*state, false};
    RemoteCall last; // takes the place that the call of fill_loop() had
    assert_int_equal(remote_call(s.w->loop, fill_loop, s.w), 0);
    remote_call_start(&last, s.w->loop, hold, s.w);
    assert_int_equal(remote_call(s.w->loop, sleep_shortly, &s), -ENOMEM);
    assert_false(s.is_over);
    assert_int_equal(remote_call_reserve(s.w->loop, sleep_shortly, &s), 0);
    assert_true(s.is_over);
    assert_int_equal(remote_call_reserve(s.w->loop, release_all, s.w), 0);
    assert_int_equal(remote_call_wait(&last, -1), 0);
}

// --- from fibers ---------------------------------------------------------------------------------

// What a fiber that calls hands over to the one that is called.
typedef struct Visit {
    Fiber *caller, *visitor;
    Loop *loop; // where it has to run
    bool was_cancelled;
    unsigned n;
} Visit;

static void visit(Fiber *self, void *arg)
{
    Visit *v = arg;
    v->visitor = self;
    fiber_assert(fiber_loop(self) == v->loop);
    fiber_sleep(self, 1000);
    v->was_cancelled = fiber_is_cancelled(self);
    v->n++;
}

static void call_both_ways(Fiber *self, Loop *loop)
{
    Visit v = {.loop = loop};
    for (unsigned n = 1; n < 20; n += 2) {
        fiber_assert_equal(remote_call_fiber(self, loop, visit, &v), 0);
        fiber_assert_equal(v.n, n);
        fiber_assert_equal(remote_call_fiber_reserve(self, loop, visit, &v), 0);
        fiber_assert_equal(v.n, n + 1);
        fiber_assert(v.visitor != self);
    }
}

// In a fiber of a loop that is freed when the other one has ended: it may still be posting.
static void call_from(World *w, FiberFn *fn, void *arg)
{
    w->caller = run_in_fiber_of_loop(NULL, fn, arg);
}

static void call_other_and_own(Fiber *self, void *arg)
{
    call_both_ways(self, arg);
    call_both_ways(self, fiber_loop(self));
}

static void a_fiber_calls_into_another_loop_and_into_its_own(void **state)
{
    World *w = *state;
    call_from(w, call_other_and_own, w->loop);
}

static void a_fiber_calls_between_simulated_loops(void **state)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        sim_loop_new(sim);
        assert_true(sim_run(sim, call_other_and_own, sim_loop_new(sim)));
        sim_free(sim);
    }
}

static void note_visit(void *arg)
{
    ((Visit *)arg)->n++;
}

static void call_plain(Fiber *self, void *arg)
{
    Visit v = {.loop = arg};
    remote_call_plain(self, arg, note_visit, &v);
    remote_call_plain(self, fiber_loop(self), note_visit, &v);
    fiber_assert_equal(v.n, 2);
}

static void a_call_without_a_fiber_is_made_on_a_full_loop(void **state)
{
    World *w = *state;
    RemoteCall last; // takes the place that the call of fill_loop() had
    assert_int_equal(remote_call(w->loop, fill_loop, w), 0);
    remote_call_start(&last, w->loop, hold, w);
    call_from(w, call_plain, w->loop);
    assert_int_equal(remote_call_reserve(w->loop, release_all, w), 0);
    assert_int_equal(remote_call_wait(&last, -1), 0);
}

static void cancel_caller(Fiber *self, void *arg)
{
    Visit *v = arg;
    fiber_cancel(v->caller); // its own loop
    fiber_sleep(self, 1000);
    v->was_cancelled = fiber_is_cancelled(self);
    v->n++;
}

static void be_cancelled_in_call(Fiber *self, void *arg)
{
    Visit v = {.caller = self, .loop = arg};
    fiber_assert_equal(remote_call_fiber(self, fiber_loop(self), cancel_caller, &v), 0);
    fiber_assert_equal(v.n, 1);
    fiber_assert(!v.was_cancelled);
    fiber_assert(fiber_is_cancelled(self));
    fiber_assert_equal(remote_call_fiber(self, v.loop, visit, &v), 0); // a clean-up, say
    fiber_assert_equal(v.n, 2);
    fiber_assert(!v.was_cancelled);
    fiber_assert_equal(fiber_sleep(self, 1), -ECANCELED);
}

static void a_cancelled_caller_waits_to_the_end_and_the_called_does_not_notice(void **state)
{
    World *w = *state;
    call_from(w, be_cancelled_in_call, w->loop);
}

static void call_full_loop(Fiber *self, void *arg)
{
    World *w = arg;
    Visit v = {.loop = w->loop};
    fiber_assert_equal(remote_call_fiber(self, w->loop, visit, &v), -ENOMEM);
    fiber_assert_equal(v.n, 0);
    fiber_assert_equal(remote_call_fiber_reserve(self, w->loop, visit, &v), 0);
    fiber_assert_equal(v.n, 1);
}

static void a_fiber_is_told_that_the_other_loop_is_full(void **state)
{
    World *w = *state;
    RemoteCall last; // takes the place that the call of fill_loop() had
    assert_int_equal(remote_call(w->loop, fill_loop, w), 0);
    remote_call_start(&last, w->loop, hold, w);
    call_from(w, call_full_loop, w);
    assert_int_equal(remote_call_reserve(w->loop, release_all, w), 0);
    assert_int_equal(remote_call_wait(&last, -1), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_world, remove_world)
    const struct CMUnitTest tests[] = {
        TEST(a_call_returns_when_its_function_has_ended),
        TEST(one_that_is_late_is_waited_for_again),
        TEST(one_that_ended_long_ago_is_not_late),
        TEST(on_a_full_loop_only_calls_from_the_reserve_are_made),
        TEST(a_fiber_calls_into_another_loop_and_into_its_own),
        TEST(a_fiber_calls_between_simulated_loops),
        TEST(a_call_without_a_fiber_is_made_on_a_full_loop),
        TEST(a_cancelled_caller_waits_to_the_end_and_the_called_does_not_notice),
        TEST(a_fiber_is_told_that_the_other_loop_is_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
