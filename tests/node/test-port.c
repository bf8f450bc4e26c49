// SPDX-License-Identifier: LGPL-2.1-or-later
// Ports, drains and filters: under load no request is lost, fails, or is under way in the moment
// the graph changes. Prints how long the slowest request was kept waiting by a change.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "chain-core/raw.h"
#include "chain-core/switch.h"
#include "load.h"
#include "memory-node.h"
#include "on-loop.h"
#include "pass-filter.h"

static void filters_under_load(Fiber *self, Node *node, const char *what, unsigned times)
{
    Port port;
    port_init(&port, node, "test");
    Load idle, load;
    uint8_t *zeros = g_malloc0(LOAD_SIZE);
    load_start(self, &idle, &port);
    for (int i = 0; i < 2000; i++)
        fiber_yield(self);
    load_stop(self, &idle);
    assert_int_equal(node_write(self, node, guest_off(0), zeros, LOAD_SIZE, 0), 0);
    load_start(self, &load, &port);
    load_insert_and_remove(self, &load, node, times);
    load_stop(self, &load);
    load_print_stall(what, &idle, &load, times);
    g_free(zeros);
    assert_ptr_equal(port.node, node);
    port_done(self, &port);
}

static void memory_under_load(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), LOAD_SIZE);
    m->n_yields = 3;
    filters_under_load(self, &m->node, "memory", 5000);
    node_unref_close(self, &m->node);
}

static void filters_come_and_go_under_load_in_memory(void **state)
{
    on_loop(memory_under_load, NULL);
}

static void raw_under_load(Fiber *self, void *arg)
{
    const char *path = arg;
    File *file;
    Node *node;
    assert_int_equal(file_open(self, path, FILE_WRITABLE, &file, NULL), 0);
    assert_int_equal(raw_node_new(self, file, &node, NULL), 0);
    filters_under_load(self, node, "raw file", 3000);
    node_unref_close(self, node);
}

static void filters_come_and_go_under_load_on_a_file(void **state)
{
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("chaind-test-port-XXXXXX", &path, NULL);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, LOAD_SIZE), 0);
    close(fd);
    on_loop(raw_under_load, path);
    unlink(path);
}

// -- drains -----------------------------------------------------------------------------------

static void drained_node_sees_nothing(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), LOAD_SIZE);
    m->n_yields = 2;
    Node *over = pass_filter_new(fiber_loop(self), "over", LOAD_SIZE);
    node_set_backing(self, over, &m->node);
    Port port;
    port_init(&port, over, "test");
    Load load;
    load_start(self, &load, &port);
    for (int i = 0; i < 300; i++) {
        node_drain_begin(self, &m->node, REQUESTS_ALL);
        if (i % 3 == 0)
            node_drain_begin(self, over, REQUESTS_ALL);
        uint64_t before = load.n_requests;
        assert_int_equal(m->n_running, 0);
        for (int turns = 0; turns < 3; turns++)
            fiber_yield(self);
        assert_int_equal(m->n_running, 0);
        assert_int_equal(load.n_requests, before);
        node_drain_end(&m->node, REQUESTS_ALL);
        if (i % 3 == 0) {
            fiber_yield(self);
            assert_int_equal(m->n_running, 0);
            node_drain_end(over, REQUESTS_ALL);
        }
        for (int turns = 0; turns < 7; turns++)
            fiber_yield(self);
        assert_true(load.n_requests > before);
    }
    load_stop(self, &load);
    port_done(self, &port);
    node_unref_close(self, over);
    node_unref_close(self, &m->node);
}

static void a_drain_reaches_ports_above_and_nests(void **state)
{
    on_loop(drained_node_sees_nothing, NULL);
}

static void ports_follow_drains(Fiber *self, void *arg)
{
    MemoryNode *a = memory_node_new(fiber_loop(self), LOAD_SIZE);
    MemoryNode *b = memory_node_new(fiber_loop(self), LOAD_SIZE);
    Port port;
    port_init(&port, &a->node, "test");
    node_drain_begin(self, &a->node, REQUESTS_ALL);
    assert_int_equal(port.stopped, REQUESTS_ALL);
    Port late;
    port_init(&late, &a->node, "late");
    assert_int_equal(late.stopped, REQUESTS_ALL);
    port_replace(self, &port, &b->node);
    assert_int_equal(port.stopped, 0);
    port_replace(self, &port, &a->node);
    assert_int_equal(port.stopped, REQUESTS_ALL);
    node_drain_end(&a->node, REQUESTS_ALL);
    assert_int_equal(port.stopped, 0);
    assert_int_equal(late.stopped, 0);
    port_done(self, &port);
    port_done(self, &late);
    node_unref_close(self, &a->node);
    node_unref_close(self, &b->node);
}

static void a_port_that_comes_or_moves_takes_part_in_drains(void **state)
{
    on_loop(ports_follow_drains, NULL);
}

static void replace_under_load(Fiber *self, void *arg)
{
    // Both show the same array, so that the load's own checks hold on either.
    MemoryNode *m = memory_node_new(fiber_loop(self), LOAD_SIZE);
    m->n_yields = 2;
    Node *way = pass_filter_new(fiber_loop(self), "way", LOAD_SIZE);
    node_set_backing(self, way, &m->node);
    Port port;
    port_init(&port, &m->node, "test");
    Load load;
    load_start(self, &load, &port);
    for (int i = 0; i < 1000; i++) {
        port_replace(self, &port, i % 2 ? &m->node : way);
        fiber_yield(self);
    }
    load_stop(self, &load);
    port_done(self, &port);
    node_unref_close(self, way);
    node_unref_close(self, &m->node);
}

static void a_port_moves_under_load(void **state)
{
    on_loop(replace_under_load, NULL);
}

static void parents_and_ports_move(Fiber *self, void *arg)
{
    unsigned n_closed = 0;
    MemoryNode *m = memory_node_new(fiber_loop(self), LOAD_SIZE);
    m->ret_n_closed = &n_closed;
    Node *parent = pass_filter_new(fiber_loop(self), "parent", LOAD_SIZE);
    node_set_backing(self, parent, &m->node);
    Port port;
    port_init(&port, &m->node, "test");
    Node *filter = pass_filter_new(fiber_loop(self), "filter", LOAD_SIZE);
    node_insert_filter(self, &m->node, filter);
    assert_ptr_equal(parent->backing, filter);
    assert_ptr_equal(port.node, filter);
    assert_ptr_equal(filter->backing, &m->node);
    assert_int_equal(m->node.n_refs, 2);
    assert_int_equal(filter->n_refs, 3);
    node_remove_filter(self, filter);
    assert_ptr_equal(parent->backing, &m->node);
    assert_ptr_equal(port.node, &m->node);
    assert_null(filter->backing);
    assert_int_equal(filter->n_refs, 1);
    assert_int_equal(m->node.n_refs, 3);
    node_unref_close(self, filter);
    port_done(self, &port);
    node_unref_close(self, parent);
    assert_int_equal(n_closed, 0);
    node_unref_close(self, &m->node);
    assert_int_equal(n_closed, 1);
}

static void a_filter_takes_over_all_parents_and_ports(void **state)
{
    on_loop(parents_and_ports_move, NULL);
}

// -- closing ----------------------------------------------------------------------------------

typedef struct SlowNode {
    Node node;
    FiberQueue *closing; // its close() waits here
    unsigned *n_told;    // below_changed() calls
} SlowNode;

static void slow_below_changed(Node *node)
{
    ++*((SlowNode *)node)->n_told;
}

static void slow_close(Fiber *self, Node *node)
{
    fiber_queue_wait(self, ((SlowNode *)node)->closing, false, "test: close");
}

static const NodeOps slow_ops = {
    .driver = "slow", .below_changed = slow_below_changed, .close = slow_close};

static void close_slowly(Fiber *self, void *arg)
{
    node_unref_close(self, arg);
}

static void change_below_a_closing_node(Fiber *self, void *arg)
{
    FiberQueue closing = {0};
    unsigned n_told = 0;
    MemoryNode *m = memory_node_new(fiber_loop(self), LOAD_SIZE);
    SlowNode *slow = g_new0(SlowNode, 1);
    node_init(&slow->node, &slow_ops, fiber_loop(self), "slow", LOAD_SIZE);
    slow->closing = &closing;
    slow->n_told = &n_told;
    node_set_backing(self, &slow->node, &m->node);
    assert_int_equal(n_told, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "close", close_slowly, slow, NULL), 0);
    while (fiber_queue_is_empty(&closing))
        fiber_yield(self);
    assert_int_equal(m->node.parents->len, 0);
    Node *filter = pass_filter_new(fiber_loop(self), "filter", LOAD_SIZE);
    node_insert_filter(self, &m->node, filter);
    assert_int_equal(n_told, 1);
    assert_int_equal(filter->parents->len, 0);
    node_remove_filter(self, filter);
    node_unref_close(self, filter);
    fiber_queue_wake_all(&closing);
    while (m->node.n_refs > 1)
        fiber_yield(self);
    node_unref_close(self, &m->node);
}

static void a_node_that_is_closing_is_no_longer_told_of_changes_below(void **state)
{
    on_loop(change_below_a_closing_node, NULL);
}

int main(void)
{
    if (getenv("CHAIND_TEST_SEED"))
        load_seed = strtoull(getenv("CHAIND_TEST_SEED"), NULL, 0);
    print_message("# seed %" G_GUINT64_FORMAT " (CHAIND_TEST_SEED)\n", load_seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_filter_takes_over_all_parents_and_ports),
        cmocka_unit_test(a_drain_reaches_ports_above_and_nests),
        cmocka_unit_test(a_port_that_comes_or_moves_takes_part_in_drains),
        cmocka_unit_test(a_port_moves_under_load),
        cmocka_unit_test(a_node_that_is_closing_is_no_longer_told_of_changes_below),
        cmocka_unit_test(filters_come_and_go_under_load_in_memory),
        cmocka_unit_test(filters_come_and_go_under_load_on_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
