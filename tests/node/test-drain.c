// SPDX-License-Identifier: LGPL-2.1-or-later
// Drains by kind of request, along every edge, and those that are given up. In the simulation.
#include <errno.h>

#include "../loop/in-fiber.h"
#include "chain-core/port.h"
#include "memory-node.h"
#include "on-sim.h"
#include "pass-filter.h"

enum { SIZE = 1 << 20 };

// One request of a kind, as a fiber: enters, stays until told, leaves.
typedef struct Request {
    Port *port;
    RequestKind kind;
    FiberQueue inside;
    bool is_inside, is_over;
} Request;

static void request_fiber(Fiber *self, void *arg)
{
    Request *request = arg;
    Node *node = port_enter(self, request->port, request->kind);
    fiber_assert(node == request->port->node);
    request->is_inside = true;
    fiber_queue_wait(self, &request->inside, false, "test: request");
    port_leave(request->port, request->kind);
    request->is_over = true;
}

static void start(Fiber *self, Request *request, Port *port, RequestKind kind)
{
    *request = (Request){.port = port, .kind = kind};
    fiber_assert(fiber_spawn(fiber_loop(self), "request", request_fiber, request, NULL) == 0);
}

static void wait_inside(Fiber *self, const Request *request)
{
    while (!request->is_inside)
        fiber_yield(self);
}

static void finish(Fiber *self, Request *request)
{
    wait_inside(self, request);
    while (!request->is_over) {
        fiber_queue_wake_all(&request->inside);
        fiber_yield(self);
    }
}

static void let_others_run(Fiber *self)
{
    for (int i = 0; i < 50; i++)
        fiber_yield(self);
}

SIM_TEST(readers_and_flushes_go_on_while_writers_are_drained)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Port port;
    port_init(&port, &m->node, "test");
    Request reader, flush, late[REQUEST_KINDS];
    start(self, &reader, &port, REQUEST_READ);
    start(self, &flush, &port, REQUEST_FLUSH);
    wait_inside(self, &reader);
    wait_inside(self, &flush);
    node_drain_begin(self, &m->node, REQUESTS_THAT_WRITE);
    for (RequestKind kind = 0; kind < REQUEST_KINDS; kind++)
        start(self, &late[kind], &port, kind);
    let_others_run(self);
    for (RequestKind kind = 0; kind < REQUEST_KINDS; kind++)
        fiber_assert(late[kind].is_inside != (REQUESTS_THAT_WRITE >> kind & 1));
    // A drain of the rest nests in it, and waits for the rest.
    finish(self, &reader);
    finish(self, &flush);
    finish(self, &late[REQUEST_READ]);
    finish(self, &late[REQUEST_FLUSH]);
    node_drain_begin(self, &m->node, REQUESTS_ALL);
    node_drain_end(&m->node, REQUESTS_THAT_WRITE);
    let_others_run(self);
    fiber_assert(!late[REQUEST_WRITE].is_inside);
    node_drain_end(&m->node, REQUESTS_ALL);
    finish(self, &late[REQUEST_WRITE]);
    finish(self, &late[REQUEST_ZERO]);
    finish(self, &late[REQUEST_DISCARD]);
    port_done(self, &port);
    node_unref_close(self, &m->node);
}

typedef struct Drain {
    Node *node;
    uint64_t deadline_ns;
    int result; // 1: not over yet
} Drain;

static void drain_fiber(Fiber *self, void *arg)
{
    Drain *drain = arg;
    drain->result =
        node_drain_begin_until(self, drain->node, REQUESTS_THAT_WRITE, drain->deadline_ns);
}

SIM_TEST(a_drain_waits_for_the_slowest_writer_and_can_be_given_up)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Port port;
    port_init(&port, &m->node, "test");
    Request slow, kept_out;
    start(self, &slow, &port, REQUEST_WRITE);
    wait_inside(self, &slow);

    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + 5000000;
    fiber_assert_equal(node_drain_begin_until(self, &m->node, REQUESTS_THAT_WRITE, deadline_ns),
                       -ETIMEDOUT);
    fiber_assert(loop_now_ns(fiber_loop(self)) >= deadline_ns);
    fiber_assert_equal(port.stopped, 0);

    Drain drain = {.node = &m->node, .deadline_ns = UINT64_MAX, .result = 1};
    Fiber *fiber;
    fiber_assert(fiber_spawn(fiber_loop(self), "drain", drain_fiber, &drain, &fiber) == 0);
    while (!port.stopped)
        fiber_yield(self);
    start(self, &kept_out, &port, REQUEST_ZERO);
    let_others_run(self);
    fiber_assert(!kept_out.is_inside && drain.result == 1);
    fiber_cancel(fiber);
    while (drain.result == 1)
        fiber_yield(self);
    fiber_assert_equal(drain.result, -ECANCELED);
    fiber_assert_equal(port.stopped, 0);

    finish(self, &kept_out);
    finish(self, &slow);
    deadline_ns = loop_now_ns(fiber_loop(self)) + 1000;
    fiber_assert_equal(node_drain_begin_until(self, &m->node, REQUESTS_THAT_WRITE, deadline_ns), 0);
    fiber_assert_equal(port.stopped, REQUESTS_THAT_WRITE);
    node_drain_end(&m->node, REQUESTS_THAT_WRITE);
    port_done(self, &port);
    node_unref_close(self, &m->node);
}

typedef struct Entering {
    Port *port;
    int result; // 1: not over yet
} Entering;

static void enter_fiber(Fiber *self, void *arg)
{
    Entering *entering = arg;
    Node *node;
    entering->result = port_enter_until(self, entering->port, REQUEST_WRITE, UINT64_MAX, &node);
}

SIM_TEST(who_waits_at_a_port_can_give_up)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Port port;
    port_init(&port, &m->node, "test");
    node_drain_begin(self, &m->node, REQUESTS_ALL);
    Node *node;
    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + 5000000;
    fiber_assert_equal(port_enter_until(self, &port, REQUEST_READ, deadline_ns, &node), -ETIMEDOUT);
    fiber_assert(loop_now_ns(fiber_loop(self)) >= deadline_ns);

    Entering entering = {.port = &port, .result = 1};
    Fiber *fiber;
    fiber_assert(fiber_spawn(fiber_loop(self), "enter", enter_fiber, &entering, &fiber) == 0);
    let_others_run(self);
    fiber_assert_equal(entering.result, 1);
    fiber_cancel(fiber);
    while (entering.result == 1)
        fiber_yield(self);
    fiber_assert_equal(entering.result, -ECANCELED);

    node_drain_end(&m->node, REQUESTS_ALL);
    fiber_assert_equal(port_enter_until(self, &port, REQUEST_READ, 0, &node), 0);
    fiber_assert(node == &m->node);
    port_leave(&port, REQUEST_READ);
    port_done(self, &port); // asserts that nobody else is counted as inside, or waits
    node_unref_close(self, &m->node);
}

static void leave_for_good_fiber(Fiber *self, void *arg)
{
    Port *port = arg;
    port_enter(self, port, REQUEST_READ);
    while (!port->stopped)
        fiber_yield(self);
    fiber_yield(self);
    port_leave(port, REQUEST_READ);
    port_done(self, port);
    memset(port, 0xff, sizeof(*port)); // all kinds in flight, for who looks there still
    g_free(port);
}

SIM_TEST(a_port_may_go_with_its_last_request_while_it_is_drained)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Port *port = g_new(Port, 1);
    port_init(port, &m->node, "test");
    fiber_assert(fiber_spawn(fiber_loop(self), "leaves", leave_for_good_fiber, port, NULL) == 0);
    while (!port->n_in_flight[REQUEST_READ])
        fiber_yield(self);
    node_drain_begin(self, &m->node, REQUESTS_ALL);
    node_drain_end(&m->node, REQUESTS_ALL);
    node_unref_close(self, &m->node);
}

SIM_TEST(a_drain_follows_children_beside_the_backing_child)
{
    MemoryNode *source = memory_node_new(fiber_loop(self), SIZE);
    MemoryNode *target = memory_node_new(fiber_loop(self), SIZE);
    Node *copier = pass_filter_new(fiber_loop(self), "copier", SIZE);
    node_set_backing(self, copier, &source->node);
    Port port;
    port_init(&port, copier, "test");
    Request writer, late;
    start(self, &writer, &port, REQUEST_WRITE);
    wait_inside(self, &writer);
    node_add_child(copier, &target->node);

    Drain drain = {.node = &target->node, .deadline_ns = UINT64_MAX, .result = 1};
    fiber_assert(fiber_spawn(fiber_loop(self), "drain", drain_fiber, &drain, NULL) == 0);
    let_others_run(self);
    fiber_assert_equal(drain.result, 1);
    finish(self, &writer);
    while (drain.result == 1)
        fiber_yield(self);
    start(self, &late, &port, REQUEST_WRITE);
    let_others_run(self);
    fiber_assert(!late.is_inside);
    // What is no longer reached is not kept out.
    node_unref_close(self, node_take_child(copier, &target->node));
    finish(self, &late);
    node_add_child(copier, &target->node);
    fiber_assert_equal(port.stopped, REQUESTS_THAT_WRITE);
    node_drain_end(&target->node, REQUESTS_THAT_WRITE);
    fiber_assert_equal(port.stopped, 0);
    port_done(self, &port);
    node_unref_close(self, copier);
    fiber_assert_equal(target->node.n_refs, 1);
    fiber_assert_equal(target->node.parents->len, 0);
    node_unref_close(self, &target->node);
    node_unref_close(self, &source->node);
}

static const NodeOps reads_write_ops = {
    .driver = "reads-write", .is_filter = true, .reads_write = true};

SIM_TEST(reads_that_write_are_drained_with_what_writes)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    Node *copier = g_new0(Node, 1);
    node_init(copier, &reads_write_ops, fiber_loop(self), "copier", SIZE);
    node_set_backing(self, copier, &m->node);
    Port port, beside;
    port_init(&port, copier, "test");
    port_init(&beside, &m->node, "beside");
    Request reader, late, other;
    start(self, &reader, &port, REQUEST_READ);
    wait_inside(self, &reader);
    Drain drain = {.node = &m->node, .deadline_ns = UINT64_MAX, .result = 1};
    fiber_assert(fiber_spawn(fiber_loop(self), "drain", drain_fiber, &drain, NULL) == 0);
    let_others_run(self);
    fiber_assert_equal(drain.result, 1);
    start(self, &other, &beside, REQUEST_READ);
    finish(self, &other);
    finish(self, &reader);
    while (drain.result == 1)
        fiber_yield(self);
    start(self, &late, &port, REQUEST_READ);
    let_others_run(self);
    fiber_assert(!late.is_inside);
    node_drain_end(&m->node, REQUESTS_THAT_WRITE);
    finish(self, &late);
    port_done(self, &port);
    port_done(self, &beside);
    node_unref_close(self, copier);
    node_unref_close(self, &m->node);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_and_flushes_go_on_while_writers_are_drained),
        cmocka_unit_test(a_drain_waits_for_the_slowest_writer_and_can_be_given_up),
        cmocka_unit_test(who_waits_at_a_port_can_give_up),
        cmocka_unit_test(a_port_may_go_with_its_last_request_while_it_is_drained),
        cmocka_unit_test(a_drain_follows_children_beside_the_backing_child),
        cmocka_unit_test(reads_that_write_are_drained_with_what_writes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
