// SPDX-License-Identifier: LGPL-2.1-or-later
// Who is cut off while others wait for the loop's budget, in the simulation's virtual time: a
// client that takes no replies, whatever else it sends, and not one whose requests took long.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "admission.h"
#include "chain-core/sim.h"

#define STALL_NS UINT64_C(1000000000)
enum { LARGE = 8 << 20, SMALL = 1 << 10, ROOM = 1 << 20 };

// One client holds most of the budget, with a request in flight; another waits for it.
typedef struct Scene {
    NbdsLimits limits;
    NbdsBudget budget;
    NbdsScheduler scheduler;
    bool has_privileged;
    NbdsFlow flows[2];
    NbdsAdmission holder, waiter;
    Stream *stream, *peer, *stream_of_waiter, *peer_of_waiter;
    NbdsRequestHead head;
    NbdsCharge charge;
    bool is_cut;
    FiberWaitGroup fibers;
} Scene;

static void watch(Fiber *self, void *arg)
{
    Scene *s = arg;
    uint8_t byte;
    while (stream_recv(self, s->peer, &byte, 1) > 0)
        continue;
    s->is_cut = true;
    fiber_wait_group_done(&s->fibers);
}

static void wait_for_budget(Fiber *self, void *arg)
{
    Scene *s = arg;
    NbdsCharge charge;
    assert_int_equal(nbds_admission_enter(self, &s->waiter, LARGE, &charge), 0);
    nbds_admission_leave(&s->waiter, &charge);
    fiber_wait_group_done(&s->fibers);
}

static void scene_begin(Fiber *self, Scene *s)
{
    Loop *loop = fiber_loop(self);
    fiber_sleep(self, 1000);
    *s = (Scene){
        .limits = {.max_requests = 1000,
                   .max_bytes = 64 << 20,
                   .max_loop_bytes = LARGE + ROOM,
                   .stall_timeout_ns = STALL_NS},
        .has_privileged = true, // so that nobody gets on beyond the budget
        .head = {.type = NBDS_CMD_READ, .length = LARGE},
    };
    nbds_scheduler_init(&s->scheduler, loop);
    nbds_budget_init(&s->budget, loop, &s->limits);
    sim_stream_pair(loop, &s->stream, &s->peer);
    sim_stream_pair(loop, &s->stream_of_waiter, &s->peer_of_waiter);
    nbds_flow_init(&s->flows[0], &s->scheduler);
    nbds_flow_init(&s->flows[1], &s->scheduler);
    nbds_admission_init(&s->holder, &s->budget, &s->has_privileged, &s->flows[0], s->stream);
    nbds_admission_init(&s->waiter, &s->budget, &s->has_privileged, &s->flows[1],
                        s->stream_of_waiter);
    assert_int_equal(nbds_admission_enter(self, &s->holder, LARGE, &s->charge), 0);
    nbds_flow_begin(&s->flows[0], &s->head, 1);
    fiber_wait_group_add(&s->fibers, 2);
    assert_int_equal(fiber_spawn(loop, "watches", watch, s, NULL), 0);
    assert_int_equal(fiber_spawn(loop, "waits", wait_for_budget, s, NULL), 0);
}

// The node has answered; the reply waits for the socket.
static void end_execution(Scene *s)
{
    nbds_flow_end(&s->flows[0], &s->head);
    nbds_admission_excuse_execution(&s->holder);
}

static void scene_end(Fiber *self, Scene *s)
{
    stream_shutdown(s->stream);
    nbds_admission_leave(&s->holder, &s->charge);
    fiber_wait_group_wait(self, &s->fibers);
    nbds_admission_done(&s->holder);
    nbds_admission_done(&s->waiter);
    nbds_flow_done(&s->flows[0]);
    nbds_flow_done(&s->flows[1]);
    stream_free(s->stream);
    stream_free(s->peer);
    stream_free(s->stream_of_waiter);
    stream_free(s->peer_of_waiter);
}

static void execute_slowly(Fiber *self, void *arg)
{
    Scene *s = arg;
    scene_begin(self, s);
    fiber_sleep(self, 10 * STALL_NS);
    assert_false(s->is_cut);
    end_execution(s);
    fiber_sleep(self, STALL_NS / 2);
    assert_false(s->is_cut);
    fiber_sleep(self, STALL_NS);
    assert_true(s->is_cut);
    scene_end(self, s);
}

static void send_small_requests(Fiber *self, void *arg)
{
    Scene *s = arg;
    scene_begin(self, s);
    end_execution(s);
    for (unsigned i = 0; i < 40 && !s->is_cut; i++) {
        NbdsCharge charge;
        assert_int_equal(nbds_admission_enter(self, &s->holder, SMALL, &charge), 0);
        nbds_admission_note_progress(&s->holder, SMALL);
        nbds_admission_leave(&s->holder, &charge);
        fiber_sleep(self, STALL_NS / 4);
    }
    assert_true(s->is_cut);
    scene_end(self, s);
}

static void take_replies_slowly(Fiber *self, void *arg)
{
    Scene *s = arg;
    scene_begin(self, s);
    end_execution(s);
    for (unsigned i = 0; i < 20; i++) {
        nbds_admission_note_progress(&s->holder, 64 << 10);
        fiber_sleep(self, STALL_NS / 2);
        assert_false(s->is_cut);
    }
    scene_end(self, s);
}

static void run(FiberFn *fn)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        Scene scene;
        assert_true(sim_run(sim, fn, &scene));
        sim_free(sim);
    }
}

static void the_time_that_requests_execute_is_not_the_clients(void **state)
{
    run(execute_slowly);
}

static void small_requests_do_not_excuse_who_takes_no_replies(void **state)
{
    run(send_small_requests);
}

static void who_takes_replies_slowly_has_not_stalled(void **state)
{
    run(take_replies_slowly);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_time_that_requests_execute_is_not_the_clients),
        cmocka_unit_test(small_requests_do_not_excuse_who_takes_no_replies),
        cmocka_unit_test(who_takes_replies_slowly_has_not_stalled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
