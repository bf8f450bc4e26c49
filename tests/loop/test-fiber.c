// SPDX-License-Identifier: LGPL-2.1-or-later
// Fibers: start, nesting, wake, yield, cancel, limits.
#include "in-fiber.h"

#include <errno.h>
#include <string.h>

typedef struct Trace {
    char text[64];
    Fiber *fiber;
    bool may_end;
} Trace;

static void trace(Trace *t, char c)
{
    size_t n = strlen(t->text);
    t->text[n] = c;
    t->text[n + 1] = '\0';
}

static void child_suspends_once(Fiber *self, void *arg)
{
    Trace *t = arg;
    trace(t, 'b');
    fiber_suspend(self, "test");
    trace(t, 'd');
}

FIBER_TEST(a_spawned_fiber_runs_at_once_until_it_suspends)
{
    Trace t = {"a"};
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "child", child_suspends_once, &t, &t.fiber),
                       0);
    trace(&t, 'c');
    fiber_wake(t.fiber);
    fiber_assert(!strcmp(t.text, "abc")); // a wake does not run it
    fiber_yield(self);
    fiber_assert(!strcmp(t.text, "abcd"));
}

static void child_spawns(Fiber *self, void *arg)
{
    Trace *t = arg;
    size_t depth = strlen(t->text);
    trace(t, (char)('0' + depth));
    if (depth < 9)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "nested", child_spawns, t, NULL), 0);
    trace(t, 'e');
}

FIBER_TEST(fibers_nest)
{
    Trace t = {""};
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "nested", child_spawns, &t, NULL), 0);
    fiber_assert(!strcmp(t.text, "0123456789eeeeeeeeee"));
}

FIBER_TEST(a_wake_before_the_suspend_is_remembered_once)
{
    fiber_wake(self);
    fiber_wake(self);
    fiber_suspend(self, "returns at once");
    // The second one would hang now, were it not for the timer.
    uint64_t before = loop_now_ns(fiber_loop(self));
    fiber_assert_equal(fiber_sleep(self, 1000000), 0);
    fiber_assert(loop_now_ns(fiber_loop(self)) - before >= 1000000);
}

static void wake_from_call(LoopCall *call);

typedef struct WakeCall {
    LoopCall call;
    Fiber *fiber;
    int n;
} WakeCall;

static void wake_from_call(LoopCall *call)
{
    WakeCall *w = (WakeCall *)call;
    w->n++;
    fiber_wake(w->fiber);
    fiber_wake(w->fiber); // already queued: nothing
}

FIBER_TEST(a_suspended_fiber_is_woken_by_a_message)
{
    WakeCall w = {{wake_from_call, NULL}, self, 0};
    loop_post(fiber_loop(self), &w.call);
    while (!w.n)
        fiber_suspend(self, "message");
    fiber_assert_equal(w.n, 1);
}

static void yields(Fiber *self, void *arg)
{
    Trace *t = arg;
    char c = (char)('a' + strlen(t->text));
    for (int i = 0; i < 3; i++) {
        trace(t, c);
        fiber_yield(self);
    }
}

FIBER_TEST(yield_lets_all_others_go_first)
{
    Trace t = {""};
    for (int i = 0; i < 3; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "yields", yields, &t, NULL), 0);
    for (int i = 0; i < 4; i++)
        fiber_yield(self);
    fiber_assert(!strcmp(t.text, "abcabcabc"));
}

static void sleeps_long(Fiber *self, void *arg)
{
    int *result = arg;
    *result = fiber_sleep(self, UINT64_MAX);
    fiber_assert_equal(fiber_sleep(self, 0), -ECANCELED); // sticky
    fiber_assert(fiber_is_cancelled(self));
}

FIBER_TEST(cancel_ends_a_sleep_and_sticks)
{
    Fiber *fiber;
    int result = 1;
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "sleeps", sleeps_long, &result, &fiber), 0);
    fiber_cancel(fiber);
    fiber_cancel(fiber);
    fiber_yield(self);
    fiber_assert_equal(result, -ECANCELED);
}

static void waits_for_end(Fiber *self, void *arg)
{
    Trace *t = arg;
    while (!t->may_end)
        fiber_suspend(self, "end");
}

static void limit_fiber(Fiber *self, void *arg)
{
    Trace t[7] = {0};
    for (int i = 0; i < 7; i++)
        fiber_assert_equal(
            fiber_spawn(fiber_loop(self), "waits", waits_for_end, &t[i], &t[i].fiber), 0);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "one more", waits_for_end, &t[0], NULL),
                       -ENOMEM);
    for (int i = 0; i < 7; i++) {
        t[i].may_end = true;
        fiber_wake(t[i].fiber);
    }
    fiber_yield(self);
    Trace again = {.may_end = true};
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "again", waits_for_end, &again, NULL), 0);
}

static void spawning_over_the_limit_is_refused(void **state)
{
    LoopConfig config = {.max_fibers = 8};
    run_in_fiber_of(&config, limit_fiber, NULL);
}

static void fills_its_stack(Fiber *self, void *arg)
{
    volatile uint8_t space[32 * 1024];
    for (size_t i = 0; i < sizeof(space); i += 64)
        space[i] = (uint8_t)i;
    fiber_yield(self);
    for (size_t i = 0; i < sizeof(space); i += 64)
        fiber_assert_equal(space[i], (uint8_t)i);
    ++*(int *)arg;
}

FIBER_TEST(stacks_are_apart_and_reused)
{
    int n = 0;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 300; i++)
            fiber_assert_equal(fiber_spawn(fiber_loop(self), "fills", fills_its_stack, &n, NULL),
                               0);
        fiber_yield(self);
        fiber_assert_equal(n, 300 * (round + 1));
    }
}

static double keeps_registers(Fiber *self, double x)
{
    double a = x * 1.5, b = x * 2.5, c = x * 3.5;
    fiber_yield(self);
    return a + b + c;
}

static void computes(Fiber *self, void *arg)
{
    double x = *(double *)arg;
    for (int i = 0; i < 10; i++)
        x = keeps_registers(self, x) / 7.5;
    *(double *)arg = x;
}

FIBER_TEST(registers_survive_switches)
{
    double x[4] = {1, 2, 3, 4};
    for (int i = 0; i < 4; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "computes", computes, &x[i], NULL), 0);
    for (int i = 0; i < 12; i++)
        fiber_yield(self);
    for (int i = 0; i < 4; i++)
        fiber_assert(x[i] > i + 0.999 && x[i] < i + 1.001);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_spawned_fiber_runs_at_once_until_it_suspends),
        cmocka_unit_test(fibers_nest),
        cmocka_unit_test(a_wake_before_the_suspend_is_remembered_once),
        cmocka_unit_test(a_suspended_fiber_is_woken_by_a_message),
        cmocka_unit_test(yield_lets_all_others_go_first),
        cmocka_unit_test(cancel_ends_a_sleep_and_sticks),
        cmocka_unit_test(spawning_over_the_limit_is_refused),
        cmocka_unit_test(stacks_are_apart_and_reused),
        cmocka_unit_test(registers_survive_switches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
