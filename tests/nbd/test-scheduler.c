// SPDX-License-Identifier: LGPL-2.1-or-later
// Deficit round robin among connections, in the simulation's virtual time: what each gets in a turn
// of the loop, what is carried, who goes first, and that nobody waits for nobody.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "chain-core/sim.h"
#include "scheduler.h"

enum {
    TURN = 256 << 10,
    BULK_TURN = 1 << 20,
    LEAST = 64 << 10,
    MOST = 256 << 10,
    PERIOD_NS = 1000000,
    SINGLE = 8
};

typedef struct Scene {
    NbdsScheduler scheduler;
    NbdsFlow flows[40];
    unsigned n_flows;
} Scene;

static void scene_begin(Fiber *self, Scene *s, unsigned n_flows)
{
    fiber_sleep(self, 1000); // the clock of a simulated loop starts with its first turn
    *s = (Scene){.n_flows = n_flows};
    nbds_scheduler_init(&s->scheduler, fiber_loop(self));
    for (unsigned i = 0; i < n_flows; i++)
        nbds_flow_init(&s->flows[i], &s->scheduler);
}

static void scene_end(Scene *s)
{
    for (unsigned i = 0; i < s->n_flows; i++)
        nbds_flow_done(&s->flows[i]);
    nbds_scheduler_done(&s->scheduler);
}

static void take_read(NbdsFlow *flow, uint64_t bytes, unsigned n_in_flight)
{
    NbdsRequestHead head = {.type = NBDS_CMD_READ, .length = bytes};
    nbds_flow_begin(flow, &head, n_in_flight);
    nbds_flow_end(flow, &head);
}

static void become_interactive(NbdsFlow *flow)
{
    for (unsigned i = 0; i < SINGLE; i++) {
        nbds_flow_received(flow);
        take_read(flow, 0, 1);
    }
    assert_true(nbds_flow_is_interactive(flow));
    flow->deficit_bytes = LEAST;
}

// Takes pieces of one size, for as long as it is told to.
typedef struct Taker {
    NbdsFlow *flow;
    uint64_t piece, taken;
    unsigned n_pieces; // left
    bool is_done;
    const struct Taker *others; // when it is done, the most that each of these took
    unsigned n_others;
    uint64_t most_taken;
} Taker;

static void take_pieces(Fiber *self, void *arg)
{
    Taker *t = arg;
    for (; t->n_pieces; t->n_pieces--) {
        nbds_flow_wait_turn(self, t->flow);
        nbds_flow_charge(t->flow, t->piece);
        t->taken += t->piece;
    }
    for (unsigned i = 0; i < t->n_others; i++)
        t->most_taken = MAX(t->most_taken, t->others[i].taken);
    t->is_done = true;
}

static void start(Fiber *self, Taker *t)
{
    assert_int_equal(fiber_spawn(fiber_loop(self), "takes", take_pieces, t, NULL), 0);
}

// All wait, in this order, before the first turn comes.
static void start_together(Fiber *self, Scene *s, Taker *t, unsigned n)
{
    s->scheduler.n_woken = 1; // no turn meanwhile
    for (unsigned i = 0; i < n; i++) {
        nbds_flow_charge(t[i].flow, LEAST);
        start(self, &t[i]);
        while (!t[i].flow->is_waiting)
            fiber_yield(self);
    }
}

static void begin_turns(Fiber *self, Scene *s)
{
    NbdsFlow *flow = &s->flows[s->n_flows - 1]; // of nobody else
    s->scheduler.n_woken = 0;
    nbds_flow_charge(flow, LEAST);
    nbds_flow_wait_turn(self, flow);
}

static void join(Fiber *self, Taker *t, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        while (!t[i].is_done)
            fiber_sleep(self, 0);
}

static void bytes_are_shared_evenly_whatever_the_size_of_a_request(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 4);
    Taker t[] = {
        {&s.flows[0], 4096, .n_pieces = 1 << 20},
        {&s.flows[1], 100000, .n_pieces = 1 << 20},
        {&s.flows[2], 1 << 20, .n_pieces = 1 << 20},
    };
    start_together(self, &s, t, 3);
    begin_turns(self, &s);
    while (t[0].taken < 50 << 20)
        fiber_sleep(self, 0);
    for (unsigned i = 1; i < 3; i++) // one piece and two quanta more or less
        assert_in_range(t[i].taken, t[0].taken - (5 << 18), t[0].taken + (5 << 18));
    for (unsigned i = 0; i < 3; i++)
        t[i].n_pieces = 1;
    join(self, t, 3);
    scene_end(&s);
}

static void nobody_starves_beside_many(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 40);
    Taker t[39];
    for (unsigned i = 0; i < 39; i++) {
        if (i % 2)
            become_interactive(&s.flows[i]);
        t[i] = (Taker){&s.flows[i], 64 << 20, .n_pieces = 1 << 20};
    }
    t[0].piece = 4096;
    t[0].n_pieces = 64;
    t[0].others = &t[1];
    t[0].n_others = 38;
    start_together(self, &s, t, 39);
    begin_turns(self, &s);
    join(self, t, 1);
    assert_int_equal(t[0].most_taken, 64 << 20); // nobody got a second piece before
    for (unsigned i = 1; i < 39; i++)
        t[i].n_pieces = 1;
    join(self, t, 39);
    scene_end(&s);
}

// The loop comes round without waiting for anything: no time passes.
static void who_is_alone_never_waits(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 1);
    uint64_t before = loop_now_ns(s.scheduler.loop);
    Taker t = {&s.flows[0], 64 << 20, .n_pieces = 100};
    start(self, &t);
    fiber_sleep(self, 0);
    join(self, &t, 1);
    assert_int_equal(loop_now_ns(s.scheduler.loop), before);
    scene_end(&s);
}

static void turns_in_which_nobody_could_go_are_skipped(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 2);
    Taker t[] = {
        {&s.flows[0], 64 << 20, .n_pieces = 2},
        {&s.flows[1], 64 << 20, .n_pieces = 2},
    };
    start(self, &t[0]);
    start(self, &t[1]);
    unsigned n_turns = 0;
    for (; !t[0].is_done || !t[1].is_done; n_turns++)
        fiber_sleep(self, 0);
    assert_in_range(n_turns, 1, 8); // not the thousand that their debts are worth
    scene_end(&s);
}

static void a_debt_is_carried_and_what_was_not_used_is_not(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 2);
    nbds_flow_charge(&s.flows[1], 1); // two are active
    NbdsFlow *flow = &s.flows[0];
    nbds_flow_charge(flow, LEAST + 1000);
    assert_int_equal(flow->deficit_bytes, -1000);
    fiber_sleep(self, 1000);
    nbds_flow_received(flow);
    assert_int_equal(flow->deficit_bytes, MOST - 1000);
    fiber_sleep(self, 1000);
    nbds_flow_received(flow);
    assert_int_equal(flow->deficit_bytes, MOST);
    nbds_flow_received(flow); // the same turn of the loop
    assert_int_equal(flow->deficit_bytes, MOST);
    scene_end(&s);
}

static void a_turn_is_divided_by_the_active_connections(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 40);
    NbdsFlow *flow = &s.flows[0];
    nbds_flow_charge(flow, 1);
    assert_int_equal(nbds_flow_next_receive(flow, false).max_bytes, SIZE_MAX);
    static const struct {
        unsigned n_active, quantum;
    } expected[] = {{2, MOST}, {8, BULK_TURN / 8}, {40, LEAST}};
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned f = 0; f < expected[i].n_active; f++)
            nbds_flow_charge(&s.flows[f], 1);
        assert_int_equal(nbds_flow_next_receive(flow, false).max_bytes, expected[i].quantum);
        assert_int_equal(nbds_flow_send_bytes(flow), expected[i].quantum);
    }
    // They count for one more period, unless they go on.
    fiber_sleep(self, PERIOD_NS);
    nbds_flow_charge(flow, 1);
    assert_int_equal(nbds_flow_next_receive(flow, false).max_bytes, LEAST);
    fiber_sleep(self, PERIOD_NS);
    nbds_flow_charge(flow, 1);
    assert_int_equal(nbds_flow_next_receive(flow, false).max_bytes, SIZE_MAX);
    scene_end(&s);
}

static void turns_are_short_while_somebody_waits_for_each_answer(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 2);
    nbds_flow_charge(&s.flows[0], 1);
    become_interactive(&s.flows[1]);
    nbds_flow_charge(&s.flows[1], 1);
    assert_int_equal(nbds_flow_send_bytes(&s.flows[0]), TURN / 2);
    take_read(&s.flows[1], 4096, 2);
    fiber_sleep(self, 2 * PERIOD_NS);
    for (unsigned i = 0; i < 2; i++)
        nbds_flow_charge(&s.flows[i], 1);
    assert_int_equal(nbds_flow_send_bytes(&s.flows[0]), MOST);
    scene_end(&s);
}

static void interactive_ones_go_first(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 5);
    become_interactive(&s.flows[1]);
    become_interactive(&s.flows[3]);
    Taker t[4];
    for (unsigned i = 0; i < 4; i++)
        t[i] = (Taker){&s.flows[i], 1, .n_pieces = 1};
    start_together(self, &s, t, 4);
    char waiting[5] = "";
    for (const NbdsFlow *flow = s.scheduler.waiting; flow; flow = flow->next)
        waiting[strlen(waiting)] = 'a' + (flow - s.flows);
    assert_string_equal(waiting, "bdac"); // each kind in its order
    begin_turns(self, &s);
    join(self, t, 4);
    scene_end(&s);
}

static void an_answer_to_an_interactive_one_is_sent_at_once_beside_others(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 2);
    become_interactive(&s.flows[0]);
    assert_false(nbds_flow_sends_at_once(&s.flows[0]));
    take_read(&s.flows[1], 4096, 2);
    assert_true(nbds_flow_sends_at_once(&s.flows[0]));
    assert_false(nbds_flow_sends_at_once(&s.flows[1]));
    scene_end(&s);
}

static void depth_tells_the_class(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 1);
    NbdsFlow *flow = &s.flows[0];
    become_interactive(flow);
    take_read(flow, 4096, 2);
    assert_false(nbds_flow_is_interactive(flow));
    for (unsigned i = 0; i < SINGLE; i++) { // one now and then proves nothing
        assert_false(nbds_flow_is_interactive(flow));
        nbds_flow_received(flow);
        take_read(flow, 4096, 1);
    }
    assert_true(nbds_flow_is_interactive(flow));
    nbds_flow_received(flow);
    take_read(flow, 1 << 20, 1); // takes more than one turn: bulk at any depth
    assert_false(nbds_flow_is_interactive(flow));
    become_interactive(flow);
    nbds_flow_refuse(flow);
    assert_false(nbds_flow_is_interactive(flow));
    scene_end(&s);
}

// With its answers sent at once, a deep queue that is received in one piece looked like single
// requests.
static void many_requests_of_one_receive_are_bulk_however_soon_they_are_answered(Fiber *self,
                                                                                 void *arg)
{
    Scene s;
    scene_begin(self, &s, 1);
    NbdsFlow *flow = &s.flows[0];
    become_interactive(flow);
    nbds_flow_received(flow);
    take_read(flow, 4096, 1);
    assert_true(nbds_flow_is_interactive(flow));
    take_read(flow, 4096, 1);
    assert_false(nbds_flow_is_interactive(flow));
    scene_end(&s);
}

static void receives_coalesce_only_for_small_requests_that_are_done(Fiber *self, void *arg)
{
    Scene s;
    scene_begin(self, &s, 1);
    NbdsFlow *flow = &s.flows[0];
    take_read(flow, 4096, 2);
    assert_int_equal(nbds_flow_next_receive(flow, false).wait, NBDS_WAIT_READER);
    assert_int_equal(nbds_flow_next_receive(flow, true).wait, NBDS_WAIT_NOTHING);
    NbdsRequestHead head = {.type = NBDS_CMD_READ, .length = 4096};
    nbds_flow_begin(flow, &head, 2); // a disk is not kept waiting for requests
    assert_int_equal(nbds_flow_next_receive(flow, false).wait, NBDS_WAIT_NOTHING);
    nbds_flow_end(flow, &head);
    nbds_flow_received(flow);
    take_read(flow, 65536, 2);
    assert_int_equal(nbds_flow_next_receive(flow, false).wait, NBDS_WAIT_NOTHING);
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

#define SCHEDULER_TESTS(X)                                                                         \
    X(bytes_are_shared_evenly_whatever_the_size_of_a_request)                                      \
    X(nobody_starves_beside_many)                                                                  \
    X(who_is_alone_never_waits)                                                                    \
    X(turns_in_which_nobody_could_go_are_skipped)                                                  \
    X(a_debt_is_carried_and_what_was_not_used_is_not)                                              \
    X(a_turn_is_divided_by_the_active_connections)                                                 \
    X(turns_are_short_while_somebody_waits_for_each_answer)                                        \
    X(interactive_ones_go_first)                                                                   \
    X(an_answer_to_an_interactive_one_is_sent_at_once_beside_others)                               \
    X(depth_tells_the_class)                                                                       \
    X(many_requests_of_one_receive_are_bulk_however_soon_they_are_answered)                        \
    X(receives_coalesce_only_for_small_requests_that_are_done)

#define DEFINE(name)                                                                               \
    static void test_##name(void **state)                                                          \
    {                                                                                              \
        run(name);                                                                                 \
    }
SCHEDULER_TESTS(DEFINE)

int main(void)
{
#define ENTRY(name) cmocka_unit_test(test_##name),
    const struct CMUnitTest tests[] = {SCHEDULER_TESTS(ENTRY)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
