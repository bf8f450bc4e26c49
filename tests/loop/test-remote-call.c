// SPDX-License-Identifier: LGPL-2.1-or-later
// Remote calls, from the test's thread into a loop on a thread of its own.
#include <errno.h>
#include <pthread.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/remote-call.h"
#include "in-fiber.h"

enum { MAX_FIBERS = 4 };

typedef struct World {
    Loop *loop;
    pthread_t thread;
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

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_world, remove_world)
    const struct CMUnitTest tests[] = {
        TEST(a_call_returns_when_its_function_has_ended),
        TEST(one_that_is_late_is_waited_for_again),
        TEST(one_that_ended_long_ago_is_not_late),
        TEST(on_a_full_loop_only_calls_from_the_reserve_are_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
