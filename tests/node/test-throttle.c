// SPDX-License-Identifier: LGPL-2.1-or-later
// throttle in the simulation's virtual time: rates of one node and of several in a group, on one
// loop and on two; changes of the limits while requests wait; who waits for nobody any more.
#include "driver-node.h"

#include <errno.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/port.h"
#include "chain-core/sim.h"

#define SECOND UINT64_C(1000000000)

typedef struct Scene {
    Sim *sim;
    ThrottleGroups *groups;
    FiberWaitGroup fibers;
    bool is_over;
} Scene;

static Node *make_throttled(Fiber *self, Scene *s)
{
    fiber_sleep(self, 1000); // the clock of a simulated loop starts with its first turn
    g_autoptr(GError) error = NULL;
    DriverOptions options = {.name = "test", .is_writable = true, .throttle_groups = s->groups};
    Node *null = driver_node_make(self, "{'driver': 'null-co', 'size': '1G'}", NULL), *node;
    if (driver_node_try(self, "{'driver': 'throttle', 'throttle-group': 'g'}", &options, null,
                        &node, &error) < 0)
        fail_msg("%s", error->message);
    node_unref_close(self, null);
    return node;
}

// Requests of one kind, one after the other.
typedef struct Guest {
    Scene *scene;
    Node *node;
    bool is_write;
    unsigned n_done;
} Guest;

static void guest_fiber(Fiber *self, void *arg)
{
    Guest *g = arg;
    uint8_t buf[512] = {0};
    while (!g->scene->is_over) {
        int r = g->is_write ? node_write(self, g->node, guest_off(0), buf, sizeof buf, 0)
                            : node_read(self, g->node, guest_off(0), buf, sizeof buf);
        assert_int_equal(r, 0);
        g->n_done++;
    }
    fiber_wait_group_done(&g->scene->fibers);
}

static void start(Fiber *self, Guest *g)
{
    fiber_wait_group_add(&g->scene->fibers, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "guest", guest_fiber, g, NULL), 0);
}

static void set_limits(Scene *s, ThrottleKind kind, uint64_t average)
{
    ThrottleLimits limits;
    throttle_limits_init(&limits);
    limits.rates[kind].average = average;
    if (throttle_groups_add(s->groups, "g", &limits))
        return;
    g_autoptr(ThrottleGroup) group = throttle_groups_find(s->groups, "g");
    throttle_group_set_limits(group, &limits);
}

static void end(Fiber *self, Scene *s)
{
    s->is_over = true;
    fiber_wait_group_wait(self, &s->fibers);
}

static void limit_one(Fiber *self, void *arg)
{
    Scene *s = arg;
    set_limits(s, THROTTLE_IOPS_WRITE, 100);
    Node *node = make_throttled(self, s);
    Guest guests[8];
    for (unsigned i = 0; i < 8; i++) {
        guests[i] = (Guest){s, node, true, 0};
        start(self, &guests[i]);
    }
    fiber_sleep(self, 10 * SECOND);
    unsigned n = 0;
    for (unsigned i = 0; i < 8; i++) {
        assert_in_range(guests[i].n_done, 120, 140); // in order of arrival, but for the first ones
        n += guests[i].n_done;
    }
    assert_in_range(n, 1008, 1013);
    assert_int_equal(throttle_groups_remove(s->groups, "g"), -EBUSY);
    end(self, s);
    node_unref_close(self, node);
    assert_int_equal(throttle_groups_remove(s->groups, "g"), 0);
    assert_int_equal(throttle_groups_remove(s->groups, "g"), -ENOENT);
}

// One node with many requests, and one with one.
static void share(Fiber *self, void *arg)
{
    Scene *s = arg;
    set_limits(s, THROTTLE_IOPS_TOTAL, 100);
    Node *deep = make_throttled(self, s), *single = make_throttled(self, s);
    Guest guests[17];
    unsigned n_deep = 0;
    for (unsigned i = 0; i < 17; i++) {
        guests[i] = (Guest){s, i ? deep : single, false, 0};
        start(self, &guests[i]);
    }
    fiber_sleep(self, 10 * SECOND);
    for (unsigned i = 1; i < 17; i++)
        n_deep += guests[i].n_done;
    assert_in_range(guests[0].n_done, 480, 520);
    assert_in_range(n_deep, 480, 530);
    end(self, s);
    node_unref_close(self, deep);
    node_unref_close(self, single);
}

static void change_limits(Fiber *self, void *arg)
{
    Scene *s = arg;
    set_limits(s, THROTTLE_BPS_READ, 1); // a byte a second
    Node *node = make_throttled(self, s);
    Guest g = {s, node, false, 0};
    start(self, &g);
    fiber_sleep(self, 100 * SECOND);
    assert_int_equal(g.n_done, 1);
    set_limits(s, THROTTLE_BPS_READ, 512 * 10);
    fiber_sleep(self, 10 * SECOND);
    assert_in_range(g.n_done, 100, 104);
    end(self, s);
    node_unref_close(self, node);
}

static void give_up(Fiber *self, void *arg)
{
    Scene *s = arg;
    set_limits(s, THROTTLE_IOPS_TOTAL, 1);
    Node *node = make_throttled(self, s);
    Guest guests[20];
    for (unsigned i = 0; i < 20; i++) {
        guests[i] = (Guest){s, node, i % 2, 0};
        start(self, &guests[i]);
    }
    fiber_sleep(self, SECOND / 10);
    s->is_over = true;
    uint64_t start_ns = loop_now_ns(node->loop);
    node_give_up(node);
    end(self, s);
    assert_true(loop_now_ns(node->loop) - start_ns < SECOND);
    node_unref_close(self, node);
}

// Requests that enter through a port.
typedef struct Entrant {
    Port *port;
    bool is_done;
} Entrant;

static void enter_and_read(Fiber *self, void *arg)
{
    Entrant *e = arg;
    uint8_t buf[512];
    Node *node = port_enter(self, e->port, REQUEST_READ);
    assert_int_equal(node_read(self, node, guest_off(0), buf, sizeof buf), 0);
    port_leave(e->port, REQUEST_READ);
    e->is_done = true;
}

static void drain(Fiber *self, void *arg)
{
    Scene *s = arg;
    set_limits(s, THROTTLE_IOPS_TOTAL, 1);
    Node *node = make_throttled(self, s);
    Entrant entrants[30];
    Port port;
    port_init(&port, node, "test");
    for (unsigned i = 0; i < 30; i++) {
        entrants[i] = (Entrant){.port = &port};
        assert_int_equal(
            fiber_spawn(fiber_loop(self), "enters", enter_and_read, &entrants[i], NULL), 0);
    }
    fiber_sleep(self, SECOND / 10);
    uint64_t start_ns = loop_now_ns(node->loop);
    node_drain_begin(self, node->backing, REQUESTS_ALL);
    assert_true(loop_now_ns(node->loop) - start_ns < SECOND);
    for (unsigned i = 0; i < 30; i++)
        assert_true(entrants[i].is_done);
    node_drain_end(node->backing, REQUESTS_ALL);
    // What went on was counted: the limit holds again.
    entrants[0].is_done = false;
    assert_int_equal(fiber_spawn(fiber_loop(self), "enters", enter_and_read, &entrants[0], NULL),
                     0);
    fiber_sleep(self, 10 * SECOND);
    assert_false(entrants[0].is_done);
    fiber_sleep(self, 30 * SECOND);
    assert_true(entrants[0].is_done);
    port_done(self, &port);
    node_unref_close(self, node);
}

static void be_refused(Fiber *self, void *arg)
{
    Scene *s = arg;
    g_autoptr(GError) error = NULL;
    DriverOptions options = {.name = "test", .throttle_groups = s->groups};
    Node *null = driver_node_make(self, "{'driver': 'null-co'}", NULL), *node;
    assert_int_equal(driver_node_try(self, "{'driver': 'throttle', 'throttle-group': 'g'}",
                                     &options, null, &node, &error),
                     -ENOENT);
    assert_string_equal(error->message, "Throttle group 'g' does not exist");
    node_unref_close(self, null);
}

// --- two loops -----------------------------------------------------------------------------------

typedef struct Remote {
    LoopCall call;
    Loop *loop;
    Scene *scene;
    unsigned n_done;
} Remote;

static void remote_fiber(Fiber *self, void *arg)
{
    Remote *r = arg;
    Node *node = make_throttled(self, r->scene);
    uint8_t buf[512];
    for (uint64_t end_ns = loop_now_ns(r->loop) + 10 * SECOND; loop_now_ns(r->loop) < end_ns;) {
        assert_int_equal(node_read(self, node, guest_off(0), buf, sizeof buf), 0);
        r->n_done++;
    }
    node_unref_close(self, node);
}

static void spawn_remote(LoopCall *call)
{
    Remote *r = (Remote *)call;
    assert_int_equal(fiber_spawn(r->loop, "remote", remote_fiber, r, NULL), 0);
}

static void share_between_loops(Fiber *self, void *arg)
{
    Scene *s = arg;
    static Remote remotes[3];
    set_limits(s, THROTTLE_IOPS_TOTAL, 300);
    fiber_sleep(self, SECOND);
    for (unsigned i = 0; i < 3; i++) {
        Loop *loop = i ? sim_loop_new(s->sim) : fiber_loop(self);
        remotes[i] = (Remote){{.fn = spawn_remote}, loop, s, 0};
        loop_post(loop, &remotes[i].call);
    }
    fiber_sleep(self, 12 * SECOND);
    for (unsigned i = 0; i < 3; i++)
        assert_in_range(remotes[i].n_done, 960, 1050);
}

static void run(FiberFn *fn)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        Scene s = {.sim = sim_new(&(SimConfig){.seed = seed}), .groups = throttle_groups_new()};
        assert_true(sim_run(s.sim, fn, &s));
        throttle_groups_free(s.groups);
        sim_free(s.sim);
    }
}

static void requests_go_on_at_the_rate_in_order(void **state)
{
    run(limit_one);
}

static void members_take_turns_whatever_each_has_waiting(void **state)
{
    run(share);
}

static void new_limits_hold_for_who_waits(void **state)
{
    run(change_limits);
}

static void at_the_end_nobody_waits(void **state)
{
    run(give_up);
}

static void a_drain_does_not_wait_for_limits(void **state)
{
    run(drain);
}

static void a_group_that_is_not_there_is_refused(void **state)
{
    run(be_refused);
}

static void nodes_on_several_loops_share_a_group(void **state)
{
    run(share_between_loops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_go_on_at_the_rate_in_order),
        cmocka_unit_test(members_take_turns_whatever_each_has_waiting),
        cmocka_unit_test(new_limits_hold_for_who_waits),
        cmocka_unit_test(at_the_end_nobody_waits),
        cmocka_unit_test(a_drain_does_not_wait_for_limits),
        cmocka_unit_test(a_group_that_is_not_there_is_refused),
        cmocka_unit_test(nodes_on_several_loops_share_a_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
