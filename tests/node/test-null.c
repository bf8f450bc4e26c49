// SPDX-License-Identifier: LGPL-2.1-or-later
// null-co in the simulation: its size, its latency, what block status says of it.
#include "driver-node.h"

#include "chain-core/sim.h"

static void look_at_defaults(Fiber *self, void *arg)
{
    Node *node = driver_node_make(self, "{'driver': 'null-co'}", NULL);
    NodeExtent extent;
    uint8_t buf[512] = {7};
    assert_int_equal(node->size_bytes, UINT64_C(1) << 30);
    assert_int_equal(node_write(self, node, guest_off(0), buf, 512, NODE_IO_FUA), 0);
    assert_int_equal(node_read(self, node, guest_off(0), buf, 512), 0);
    assert_int_equal(buf[0], 0);
    assert_int_equal(node_status(self, node, guest_off(512), 1 << 20, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_OPAQUE);
    assert_int_equal(extent.len, 1 << 20);
    assert_int_equal(node_flush(self, node), 0);
    node_unref_close(self, node);
}

static void look_at_options(Fiber *self, void *arg)
{
    Node *node = driver_node_make(
        self, "{'driver': 'null-co', 'size': '8T', 'latency-ns': 5000, 'read-zeroes': true}", NULL);
    NodeExtent extent;
    uint8_t buf[512];
    fiber_sleep(self, 1);
    assert_int_equal(node->size_bytes, UINT64_C(8) << 40);
    uint64_t start_ns = loop_now_ns(node->loop);
    assert_int_equal(node_read(self, node, guest_off(0), buf, 512), 0);
    assert_int_equal(node_discard(self, node, guest_off(0), UINT64_C(8) << 40, 0), 0);
    assert_true(loop_now_ns(node->loop) >= start_ns + 10000);
    assert_int_equal(node_status(self, node, guest_off(0), UINT64_C(8) << 40, &extent), 0);
    assert_int_equal(extent.kind, NODE_EXTENT_ZERO);
    node_unref_close(self, node);
}

static void be_read_only(Fiber *self, void *arg)
{
    DriverOptions options = {.name = "test"};
    Node *node;
    uint8_t buf[512] = {0};
    assert_int_equal(driver_node_try(self, "{'driver': 'null-co'}", &options, NULL, &node, NULL),
                     0);
    assert_int_equal(node_write(self, node, guest_off(0), buf, 512, 0), -EROFS);
    node_unref_close(self, node);
}

static void run(FiberFn *fn)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    assert_true(sim_run(sim, fn, NULL));
    sim_free(sim);
}

static void what_is_not_said_is_as_in_qemu(void **state)
{
    run(look_at_defaults);
}

static void size_latency_and_zeros_are_as_said(void **state)
{
    run(look_at_options);
}

static void a_read_only_one_takes_no_writes(void **state)
{
    run(be_read_only);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_said_is_as_in_qemu),
        cmocka_unit_test(size_latency_and_zeros_are_as_said),
        cmocka_unit_test(a_read_only_one_takes_no_writes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
