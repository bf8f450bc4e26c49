// SPDX-License-Identifier: LGPL-2.1-or-later
// The pace of busy clients beside one that waits for each answer, in virtual time: how much for an
// answer, how long a rest, whose turn, and what becomes of those that rest when nobody waits any
// more.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "chain-core/sim.h"
#include "connection.h"

enum { ENOUGH = 64 << 10 }; // for one answer
enum { PROMPT_REST_NS = 60000, SHORT_REST_NS = 20000, FOR_EVER_NS = 1000000000 };

typedef struct Scene {
    NbdsServerLoop home;
    NbdsConnection light, busy, other;
} Scene;

static void be_prompt(Fiber *self, Scene *s)
{
    nbds_pace_answered(&s->light);
    fiber_sleep(self, 30000);
    nbds_pace_asked(&s->light);
}

static void scene_begin(Fiber *self, Scene *s)
{
    fiber_sleep(self, 1000); // the clock of a simulated loop starts with its first turn
    *s = (Scene){.home.loop = fiber_loop(self)};
    s->light.home = s->busy.home = s->other.home = &s->home;
    s->home.connections.first = &s->busy;
    s->busy.next = &s->other;
    s->other.next = &s->light;
    s->home.light = &s->light;
    s->home.light_until_ns = loop_now_ns(s->home.loop) + FOR_EVER_NS;
    s->light.is_light = true;
    be_prompt(self, s);
}

static void scene_end(Scene *s)
{
    assert_true(fiber_queue_is_empty(&s->home.pace.resting));
    nbds_pace_stop(s->home.loop, &s->home.pace);
}

typedef struct Taking {
    NbdsConnection *c;
    uint64_t bytes;
    uint64_t done_ns; // 0: not yet
} Taking;

static void take(Fiber *self, void *arg)
{
    Taking *t = arg;
    nbds_pace_take_bytes(self, t->c, t->bytes);
    t->done_ns = loop_now_ns(fiber_loop(self));
}

static void start(Fiber *self, Taking *t)
{
    assert_int_equal(fiber_spawn(fiber_loop(self), "takes", take, t, NULL), 0);
    fiber_sleep(self, 1000); // it has run
}

static uint64_t take_now(Fiber *self, NbdsConnection *c, uint64_t bytes)
{
    uint64_t before = loop_now_ns(fiber_loop(self));
    nbds_pace_take_bytes(self, c, bytes);
    return loop_now_ns(fiber_loop(self)) - before;
}

static void nobody_rests_where_nobody_waits(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    s.home.light_until_ns = 0;
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(take_now(self, &s.busy, ENOUGH), 0);
    scene_begin(self, &s);
    for (unsigned i = 0; i < 100; i++) // nor who waits itself
        assert_int_equal(take_now(self, &s.light, ENOUGH), 0);
    scene_end(&s);
}

static void an_answer_ends_a_rest(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(take_now(self, &s.busy, ENOUGH / 2), 0);
        assert_int_equal(take_now(self, &s.other, ENOUGH / 2), 0);
        Taking t = {&s.busy, 1, 0};
        start(self, &t);
        assert_int_equal(t.done_ns, 0);
        nbds_pace_answered(&s.light);
        fiber_sleep(self, 1000);
        assert_int_not_equal(t.done_ns, 0);
        nbds_pace_answered(&s.light); // for that one byte
    }
    scene_end(&s);
}

static void a_rest_ends_by_itself(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    assert_int_equal(take_now(self, &s.busy, ENOUGH), 0);
    assert_int_equal(take_now(self, &s.busy, ENOUGH), PROMPT_REST_NS);
    fiber_sleep(self, PROMPT_REST_NS); // a rest that nobody waited out
    for (unsigned i = 0; i < 4; i++) { // it thinks for long: bytes do not count, requests rest less
        assert_int_equal(take_now(self, &s.busy, ENOUGH), 0);
        assert_int_equal(take_now(self, &s.busy, 1), PROMPT_REST_NS);
        nbds_pace_answered(&s.light);
        fiber_sleep(self, PROMPT_REST_NS);
        nbds_pace_asked(&s.light);
    }
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(take_now(self, &s.busy, ENOUGH), 0);
    nbds_pace_take_request(self, &s.busy, false);
    nbds_pace_take_request(self, &s.busy, false);
    uint64_t before = loop_now_ns(s.home.loop);
    nbds_pace_take_request(self, &s.busy, false);
    assert_int_equal(loop_now_ns(s.home.loop) - before, SHORT_REST_NS);
    nbds_pace_take_request(self, &s.busy, true);
    nbds_pace_take_request(self, &s.busy, true);
    nbds_pace_take_request(self, &s.busy, true);
    assert_in_range(loop_now_ns(s.home.loop) - before, 3 * SHORT_REST_NS, 4 * SHORT_REST_NS);
    fiber_sleep(self, PROMPT_REST_NS);
    scene_end(&s);
}

static void an_answer_is_worth_two_requests(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    for (unsigned i = 0; i < 10; i++) {
        uint64_t before = loop_now_ns(s.home.loop);
        nbds_pace_take_request(self, &s.busy, false);
        nbds_pace_take_request(self, &s.other, true);
        assert_int_equal(loop_now_ns(s.home.loop) - before, i ? PROMPT_REST_NS : 0);
    }
    fiber_sleep(self, PROMPT_REST_NS);
    scene_end(&s);
}

static void who_took_much_rests_for_long(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    assert_int_equal(take_now(self, &s.busy, 4 * ENOUGH), 0);
    assert_int_equal(take_now(self, &s.busy, 1), 4 * PROMPT_REST_NS);
    assert_int_equal(take_now(self, &s.busy, 1ull << 60), 0); // but not for ever
    assert_in_range(take_now(self, &s.busy, 1), PROMPT_REST_NS, 17 * PROMPT_REST_NS);
    scene_end(&s);
}

static void those_that_rest_go_on_in_order(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    assert_int_equal(take_now(self, &s.busy, ENOUGH), 0);
    Taking t[6];
    for (unsigned i = 0; i < 6; i++) {
        t[i] = (Taking){i % 2 ? &s.other : &s.busy, ENOUGH / 2, 0};
        start(self, &t[i]);
    }
    for (unsigned n = 1; n <= 3; n++) { // two at a time
        fiber_sleep(self, PROMPT_REST_NS);
        for (unsigned i = 0; i < 6; i++)
            assert_int_equal(t[i].done_ns != 0, i < 2 * n);
    }
    fiber_sleep(self, PROMPT_REST_NS);
    scene_end(&s);
}

// Takes two requests after each answer, as soon as it can.
static void barge(Fiber *self, void *arg)
{
    Taking *t = arg;
    for (unsigned i = 0; i < 100; i++) {
        nbds_pace_take_request(self, t->c, false);
        nbds_pace_take_request(self, t->c, false);
        fiber_yield(self);
    }
    t->done_ns = 1;
}

static void nobody_overtakes_those_that_rest(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    assert_int_equal(take_now(self, &s.busy, ENOUGH), 0);
    Taking barging = {&s.other, 0, 0}, t[3];
    for (unsigned i = 0; i < 3; i++) {
        t[i] = (Taking){&s.busy, ENOUGH, 0};
        start(self, &t[i]);
    }
    assert_int_equal(fiber_spawn(fiber_loop(self), "barges", barge, &barging, NULL), 0);
    for (unsigned n = 1; n <= 3; n++) {
        // Whoever waits itself does not disturb the order.
        nbds_pace_take_request(self, &s.light, false);
        nbds_pace_answered(&s.light);
        nbds_pace_take_request(self, &s.light, false);
        fiber_sleep(self, 1000);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(t[i].done_ns != 0, i < n);
    }
    while (!barging.done_ns) {
        nbds_pace_answered(&s.light);
        fiber_sleep(self, 1000);
    }
    scene_end(&s);
}

static void a_stop_ends_rests(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    assert_int_equal(take_now(self, &s.busy, ENOUGH), 0);
    Taking t[3];
    for (unsigned i = 0; i < 3; i++) {
        t[i] = (Taking){&s.busy, 1, 0};
        start(self, &t[i]);
    }
    nbds_pace_stop(s.home.loop, &s.home.pace);
    fiber_sleep(self, 1000);
    for (unsigned i = 0; i < 3; i++)
        assert_int_not_equal(t[i].done_ns, 0);
    scene_end(&s);
}

static void all_go_on_when_nobody_waits_any_more(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s);
    assert_int_equal(take_now(self, &s.busy, 8 * ENOUGH), 0);
    Taking t[6];
    for (unsigned i = 0; i < 6; i++) {
        t[i] = (Taking){&s.busy, 8 * ENOUGH, 0};
        start(self, &t[i]);
    }
    s.home.light_until_ns = 0;
    fiber_sleep(self, PROMPT_REST_NS);
    for (unsigned i = 0; i < 6; i++)
        assert_int_not_equal(t[i].done_ns, 0);
    scene_end(&s);
}

static void run(FiberFn *fn)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        SimConfig config = {.seed = seed};
        Sim *sim = sim_new(&config);
        assert_true(sim_run(sim, fn, NULL));
        sim_free(sim);
    }
}

#define PACE_TEST(name)                                                                            \
    static void test_##name(void **state)                                                          \
    {                                                                                              \
        run(name);                                                                                 \
    }
PACE_TEST(nobody_rests_where_nobody_waits)
PACE_TEST(an_answer_ends_a_rest)
PACE_TEST(a_rest_ends_by_itself)
PACE_TEST(an_answer_is_worth_two_requests)
PACE_TEST(who_took_much_rests_for_long)
PACE_TEST(those_that_rest_go_on_in_order)
PACE_TEST(nobody_overtakes_those_that_rest)
PACE_TEST(a_stop_ends_rests)
PACE_TEST(all_go_on_when_nobody_waits_any_more)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody_rests_where_nobody_waits),
        cmocka_unit_test(test_an_answer_ends_a_rest),
        cmocka_unit_test(test_a_rest_ends_by_itself),
        cmocka_unit_test(test_an_answer_is_worth_two_requests),
        cmocka_unit_test(test_who_took_much_rests_for_long),
        cmocka_unit_test(test_those_that_rest_go_on_in_order),
        cmocka_unit_test(test_nobody_overtakes_those_that_rest),
        cmocka_unit_test(test_a_stop_ends_rests),
        cmocka_unit_test(test_all_go_on_when_nobody_waits_any_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
