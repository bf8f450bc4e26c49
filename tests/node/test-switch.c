// SPDX-License-Identifier: LGPL-2.1-or-later
// Switches: several changes are one step, an abort leaves nothing behind, and nothing is closed
// while requests are kept out. In the simulation.
#include <errno.h>

#include "../loop/in-fiber.h"
#include "chain-core/switch.h"
#include "memory-node.h"
#include "on-sim.h"
#include "pass-filter.h"

enum { SIZE = 1 << 20 };

// -- what closing costs is not paid by requests ---------------------------------------------------

typedef struct WatchedNode {
    Node node;
    Port *port; // through which requests came to it
    unsigned *n_closed;
} WatchedNode;

static void watched_close(Fiber *self, Node *node)
{
    WatchedNode *watched = (WatchedNode *)node;
    fiber_assert_equal(watched->port->stopped, 0);
    fiber_sleep(self, 1000000);
    fiber_assert_equal(watched->port->stopped, 0);
    ++*watched->n_closed;
}

static const NodeOps watched_ops = {.driver = "watched", .is_filter = true, .close = watched_close};

static Node *watched_new(Loop *loop, Port *port, unsigned *n_closed)
{
    WatchedNode *watched = g_new0(WatchedNode, 1);
    node_init(&watched->node, &watched_ops, loop, "watched", SIZE);
    watched->port = port;
    watched->n_closed = n_closed;
    return &watched->node;
}

SIM_TEST(what_a_switch_drops_is_closed_after_the_resume)
{
    Loop *loop = fiber_loop(self);
    unsigned n_closed = 0;
    MemoryNode *m = memory_node_new(loop, SIZE);
    Port port;
    Node *top = pass_filter_new(loop, "top", SIZE), *below = watched_new(loop, &port, &n_closed);
    node_set_backing(self, below, &m->node);
    node_set_backing(self, top, below);
    node_unref_close(self, below);
    port_init(&port, top, "test");

    Switch *s = switch_new(REQUESTS_ALL);
    switch_set_backing(s, top, &m->node);
    switch_drain_always(self, s);
    fiber_assert_equal(port.stopped, REQUESTS_ALL);
    switch_commit(s);
    fiber_assert(top->backing == &m->node);
    fiber_assert_equal(n_closed, 0);
    switch_resume(s);
    fiber_assert_equal(n_closed, 0);
    switch_end(self, s);
    fiber_assert_equal(n_closed, 1);

    Node *filter = watched_new(loop, &port, &n_closed);
    node_insert_filter(self, top, filter);
    Node *only_the_graphs = filter;
    node_unref_close(self, filter);
    node_remove_filter(self, only_the_graphs);
    fiber_assert_equal(n_closed, 2);

    Node *aside = watched_new(loop, &port, &n_closed);
    node_set_backing(self, aside, &m->node);
    port_replace(self, &port, aside);
    node_unref_close(self, aside);
    port_replace(self, &port, top);
    fiber_assert_equal(n_closed, 3);

    port_done(self, &port);
    node_unref_close(self, top);
    node_unref_close(self, &m->node);
}

// -- several places, one step ---------------------------------------------------------------------

typedef struct Pair {
    Port a, b;
    Node *old_a, *old_b, *new_a, *new_b;
    bool stop;
    uint64_t n_looks;
    FiberWaitGroup running;
} Pair;

// Inside both: either both show the old graph or both the new. Nobody waits at the second while
// inside the first.
static void look_at_both(Fiber *self, void *arg)
{
    Pair *pair = arg;
    while (!pair->stop) {
        Node *a = port_enter(self, &pair->a, REQUEST_WRITE);
        if (!pair->b.stopped) {
            Node *b = port_enter(self, &pair->b, REQUEST_WRITE);
            fiber_assert((a == pair->old_a) == (b == pair->old_b));
            fiber_yield(self);
            fiber_assert(pair->a.node == a && pair->b.node == b);
            pair->n_looks++;
            port_leave(&pair->b, REQUEST_WRITE);
        }
        port_leave(&pair->a, REQUEST_WRITE);
        fiber_yield(self);
    }
    fiber_wait_group_done(&pair->running);
}

static void flag(void *arg)
{
    *(bool *)arg = true;
}

SIM_TEST(changes_at_several_ports_are_one_step)
{
    Loop *loop = fiber_loop(self);
    MemoryNode *m = memory_node_new(loop, SIZE), *n = memory_node_new(loop, SIZE);
    Pair pair = {.old_a = &m->node, .old_b = &n->node};
    pair.new_a = pass_filter_new(loop, "a", SIZE);
    pair.new_b = pass_filter_new(loop, "b", SIZE);
    port_init(&pair.a, pair.old_a, "a");
    port_init(&pair.b, pair.old_b, "b");
    fiber_wait_group_add(&pair.running, 3);
    for (int i = 0; i < 3; i++)
        fiber_assert(fiber_spawn(loop, "look", look_at_both, &pair, NULL) == 0);
    for (int round = 0; round < 20; round++) {
        bool was_called = false;
        Switch *s = switch_new(REQUESTS_THAT_WRITE);
        switch_set_backing(s, pair.new_a, pair.old_a);
        switch_set_backing(s, pair.new_b, pair.old_b);
        switch_move_users(s, pair.old_a, pair.new_a);
        switch_move_users(s, pair.old_b, pair.new_b);
        switch_call(s, flag, &was_called);
        switch_drain_always(self, s);
        for (int i = 0; i < round; i++)
            fiber_yield(self);
        fiber_assert(!was_called && pair.a.node == pair.old_a);
        if (round % 3 == 0) { // an abort
            switch_end(self, s);
            fiber_assert(!was_called && pair.a.node == pair.old_a && !pair.new_a->backing);
        } else {
            switch_commit(s);
            fiber_assert(was_called && pair.a.node == pair.new_a && pair.b.node == pair.new_b);
            switch_resume(s);
            switch_end(self, s);
            node_remove_filter(self, pair.new_a);
            node_remove_filter(self, pair.new_b);
        }
        uint64_t before = pair.n_looks;
        while (pair.n_looks == before)
            fiber_yield(self);
    }
    pair.stop = true;
    fiber_wait_group_wait(self, &pair.running);
    port_done(self, &pair.a);
    port_done(self, &pair.b);
    fiber_assert(pair.new_a->n_refs == 1 && pair.new_b->n_refs == 1);
    node_unref_close(self, pair.new_a);
    node_unref_close(self, pair.new_b);
    fiber_assert(m->node.n_refs == 1 && n->node.n_refs == 1);
    node_unref_close(self, &m->node);
    node_unref_close(self, &n->node);
}

// -- what is drained ------------------------------------------------------------------------------

static void told(Node *node)
{
    for (guint i = 0; i < node->ports->len; i++)
        fiber_assert_equal(((Port *)node->ports->pdata[i])->n_in_flight[REQUEST_READ], 0);
}

static const NodeOps deriving_ops = {
    .driver = "deriving", .is_filter = true, .below_changed = told};

typedef struct Reader {
    Port port;
    bool stop;
} Reader;

static void read_fiber(Fiber *self, void *arg)
{
    Reader *reader = arg;
    port_enter(self, &reader->port, REQUEST_READ);
    while (!reader->stop)
        fiber_sleep(self, 100000);
    port_leave(&reader->port, REQUEST_READ);
}

SIM_TEST(readers_are_drained_only_where_a_driver_must_be_told)
{
    Loop *loop = fiber_loop(self);
    MemoryNode *m = memory_node_new(loop, SIZE);
    Node *filter = pass_filter_new(loop, "filter", SIZE);
    Node *deriving = g_new0(Node, 1);
    node_init(deriving, &deriving_ops, loop, "deriving", SIZE);
    for (int is_derived = 0; is_derived < 2; is_derived++) {
        if (is_derived)
            node_set_backing(self, deriving, &m->node);
        Reader reader = {.stop = false};
        Port *port = &reader.port;
        port_init(port, is_derived ? deriving : &m->node, "test");
        fiber_assert(fiber_spawn(loop, "read", read_fiber, &reader, NULL) == 0);
        while (!port->n_in_flight[REQUEST_READ])
            fiber_yield(self);
        Switch *s = switch_new(REQUESTS_THAT_WRITE);
        switch_set_backing(s, filter, &m->node);
        switch_move_users(s, &m->node, filter);
        int r = switch_drain(self, s, loop_now_ns(loop) + 1000000);
        fiber_assert_equal(r, is_derived ? -ETIMEDOUT : 0);
        fiber_assert_equal(port->stopped, is_derived ? 0 : REQUESTS_THAT_WRITE);
        reader.stop = true;
        if (r < 0)
            switch_drain_always(self, s);
        switch_commit(s);
        fiber_assert_equal(port->stopped, is_derived ? REQUESTS_ALL : REQUESTS_THAT_WRITE);
        switch_resume(s);
        switch_end(self, s);
        fiber_assert_equal(port->stopped, 0);
        Switch *removal = switch_new(REQUESTS_ALL);
        switch_move_users(removal, filter, &m->node);
        switch_set_backing(removal, filter, NULL);
        switch_drain_always(self, removal);
        switch_commit(removal);
        fiber_assert_equal(port->stopped, REQUESTS_ALL); // also where nothing drained is above
        switch_end(self, removal);
        fiber_assert_equal(port->stopped, 0);
        port_done(self, port);
    }
    node_unref_close(self, deriving);
    node_unref_close(self, filter);
    node_unref_close(self, &m->node);
}

SIM_TEST(other_children_move_with_the_users)
{
    Loop *loop = fiber_loop(self);
    MemoryNode *source = memory_node_new(loop, SIZE), *target = memory_node_new(loop, SIZE);
    Node *copier = pass_filter_new(loop, "copier", SIZE);
    node_set_backing(self, copier, &source->node);
    node_add_child(copier, &target->node);
    Node *filter = pass_filter_new(loop, "filter", SIZE);
    node_insert_filter(self, &target->node, filter);
    fiber_assert(copier->others->pdata[0] == filter && filter->backing == &target->node);
    node_remove_filter(self, filter);
    fiber_assert(copier->others->pdata[0] == &target->node && filter->n_refs == 1);
    node_unref_close(self, filter);
    node_unref_close(self, copier);
    fiber_assert(source->node.n_refs == 1 && target->node.n_refs == 1);
    node_unref_close(self, &source->node);
    node_unref_close(self, &target->node);
}

typedef struct Removal {
    Node *filter;
    FiberWaitGroup *running;
} Removal;

static void remove_fiber(Fiber *self, void *arg)
{
    const Removal *removal = arg;
    node_remove_filter(self, removal->filter);
    fiber_wait_group_done(removal->running);
}

// As two backups of a disk that end at one time.
SIM_TEST(filters_over_each_other_can_leave_at_once)
{
    Loop *loop = fiber_loop(self);
    MemoryNode *m = memory_node_new(loop, SIZE);
    for (int lower_first = 0; lower_first < 2; lower_first++) {
        Node *filters[] = {pass_filter_new(loop, "upper", SIZE),
                           pass_filter_new(loop, "lower", SIZE)};
        FiberWaitGroup running = {0};
        Reader reader = {.stop = false};
        port_init(&reader.port, &m->node, "test");
        node_insert_filter(self, &m->node, filters[1]);
        node_insert_filter(self, filters[1], filters[0]);
        fiber_assert(fiber_spawn(loop, "read", read_fiber, &reader, NULL) == 0);
        while (!reader.port.n_in_flight[REQUEST_READ])
            fiber_yield(self);
        Removal removals[] = {{filters[lower_first], &running}, {filters[!lower_first], &running}};
        fiber_wait_group_add(&running, 2);
        for (int i = 0; i < 2; i++)
            fiber_assert(fiber_spawn(loop, "remove", remove_fiber, &removals[i], NULL) == 0);
        fiber_sleep(self, 1000000);
        reader.stop = true;
        fiber_wait_group_wait(self, &running);
        fiber_assert(reader.port.node == &m->node && !reader.port.stopped);
        for (int i = 0; i < 2; i++) {
            fiber_assert(!filters[i]->backing && filters[i]->n_refs == 1);
            node_unref_close(self, filters[i]);
        }
        port_done(self, &reader.port);
    }
    fiber_assert(m->node.n_refs == 1);
    node_unref_close(self, &m->node);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_switch_drops_is_closed_after_the_resume),
        cmocka_unit_test(changes_at_several_ports_are_one_step),
        cmocka_unit_test(readers_are_drained_only_where_a_driver_must_be_told),
        cmocka_unit_test(other_children_move_with_the_users),
        cmocka_unit_test(filters_over_each_other_can_leave_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
