// SPDX-License-Identifier: LGPL-2.1-or-later
// blkdebug in the simulation: which requests meet an error, once or always, and states.
#include "driver-node.h"

#include <errno.h>

#include "chain-core/sim.h"

typedef struct Scene {
    const char *options;
    void (*fn)(Fiber *self, Node *node);
} Scene;

static int read_at(Fiber *self, Node *node, uint64_t off)
{
    uint8_t buf[512];
    return node_read(self, node, guest_off(off), buf, sizeof buf);
}

static int write_at(Fiber *self, Node *node, uint64_t off)
{
    uint8_t buf[512] = {0};
    return node_write(self, node, guest_off(off), buf, sizeof buf, 0);
}

static void run_fiber(Fiber *self, void *arg)
{
    const Scene *s = arg;
    g_autofree char *text =
        g_strdup_printf("{'driver': 'blkdebug', 'image': 'below', %s}", s->options);
    g_autofree char *json = g_strdelimit(g_steal_pointer(&text), "'", '"');
    json_t *object = json_loads(json, 0, NULL);
    NodeConfig *config = NULL;
    g_autoptr(GError) error = NULL;
    if (node_config_new(object, true, &config, &error) < 0)
        fail_msg("%s", error->message);
    json_decref(object);
    DriverOptions options = {.name = "test", .is_writable = true, .values = config->values};
    Node *null = driver_node_make(self, "{'driver': 'null-co', 'size': '1M'}", NULL), *node;
    assert_int_equal(config->driver->make(self, &options, null, &node, NULL), 0);
    node_config_free(config);
    node_unref_close(self, null);
    s->fn(self, node);
    node_unref_close(self, node);
}

static void run(const char *options, void (*fn)(Fiber *self, Node *node))
{
    Scene s = {options, fn};
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    assert_true(sim_run(sim, run_fiber, &s));
    sim_free(sim);
}

// As an image in the node would say it.
static void tell(Node *node, DebugEvent event)
{
    node->ops->debug_event(node, event);
}

static void fail_reads(Fiber *self, Node *node)
{
    assert_int_equal(read_at(self, node, 0), 0);
    tell(node, DEBUG_L2_LOAD);
    assert_int_equal(read_at(self, node, 0), 0);
    tell(node, DEBUG_READ_AIO);
    assert_int_equal(read_at(self, node, 0), -ENOSPC);
    assert_int_equal(read_at(self, node, 4096), -ENOSPC);
}

static void arm_others(Fiber *self, Node *node)
{
    tell(node, DEBUG_READ_AIO);
    tell(node, DEBUG_L2_LOAD);
    assert_int_equal(read_at(self, node, 0), -EINVAL);
    assert_int_equal(write_at(self, node, 0), 0);
}

static void arm_what_is_left(Fiber *self, Node *node)
{
    tell(node, DEBUG_READ_AIO);
    assert_int_equal(read_at(self, node, 0), -EIO);
    tell(node, DEBUG_L2_LOAD);
    tell(node, DEBUG_READ_AIO); // its rule is spent
    assert_int_equal(read_at(self, node, 0), -EINVAL);
}

static void fail_sector(Fiber *self, Node *node)
{
    assert_int_equal(write_at(self, node, 0), 0);
    assert_int_equal(write_at(self, node, 3 * 512), -EIO);
    assert_int_equal(write_at(self, node, 3 * 512), 0);
}

static void fail_flush(Fiber *self, Node *node)
{
    assert_int_equal(read_at(self, node, 0), 0);
    assert_int_equal(node_flush(self, node), -EIO);
    assert_int_equal(node_flush(self, node), -EIO);
}

static void go_through_states(Fiber *self, Node *node)
{
    assert_int_equal(write_at(self, node, 0), 0);
    tell(node, DEBUG_L2_UPDATE); // now it is state 2
    assert_int_equal(write_at(self, node, 0), -EIO);
}

static void fail_from_the_start(Fiber *self, Node *node)
{
    assert_int_equal(node_discard(self, node, guest_off(0), 4096, 0), -EPERM);
    assert_int_equal(read_at(self, node, 0), 0);
}

static void requests_of_the_event_fail(void **state)
{
    run("'inject-error': [{'event': 'read_aio', 'errno': 28}]", fail_reads);
    run("'inject-error': [{'event': 'none', 'iotype': 'flush'}]", fail_flush);
    run("'inject-error': [{'event': 'read_aio'}, {'event': 'l2_load', 'errno': 22, 'iotype': "
        "'read'}]",
        arm_others);
    run("'inject-error': [{'event': 'read_aio', 'once': true}, {'event': 'l2_load', 'errno': 22}]",
        arm_what_is_left);
    run("'inject-error': [{'event': 'none', 'errno': 1, 'iotype': 'discard'}]",
        fail_from_the_start);
}

static void an_error_may_be_for_a_sector_and_once(void **state)
{
    run("'inject-error': [{'event': 'pwritev', 'sector': 3, 'once': true}]", fail_sector);
}

static void rules_may_be_for_a_state(void **state)
{
    run("'inject-error': [{'event': 'pwritev', 'state': 2}],"
        "'set-state': [{'event': 'l2_update', 'state': 1, 'new_state': 2}]",
        go_through_states);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_of_the_event_fail),
        cmocka_unit_test(an_error_may_be_for_a_sector_and_once),
        cmocka_unit_test(rules_may_be_for_a_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
