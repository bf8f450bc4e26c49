// SPDX-License-Identifier: LGPL-2.1-or-later
// Sizes and thresholds of nodes: who hears of a change, and who is told of a write, once. On the
// simulation, with a raw file at the bottom.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "chain-core/port.h"
#include "chain-core/raw.h"
#include "chain-core/sim.h"
#include "chain-core/whole-sectors.h"
#include "pass-filter.h"

enum { SIZE = 64 << 10 };

static unsigned n_resized;

static void count_resized(Port *port)
{
    n_resized++;
}

static Node *open_file_node(Fiber *self)
{
    File *file;
    assert_int_equal(file_open(self, "/f", FILE_WRITABLE, &file, NULL), 0);
    return file_node_new(file);
}

static void run(FiberFn *fn)
{
    static uint8_t content[SIZE];
    Sim *sim = sim_new(&(SimConfig){.seed = 7});
    assert_int_equal(sim_write_file(sim, "/f", content, SIZE), 0);
    assert_true(sim_run(sim, fn, sim));
    sim_free(sim);
}

static void sizes_fiber(Fiber *self, void *arg)
{
    Node *file = open_file_node(self);
    Node *pass = pass_filter_new(file->loop, "pass", SIZE);
    node_set_backing(self, pass, file);
    Node *whole = whole_sectors_new(self, pass);
    Port port;
    port_init(&port, whole, "test");
    port.resized = count_resized;
    n_resized = 0;
    assert_int_equal(node_resize(self, whole, SIZE + 100, NULL), 0); // of what it filters
    assert_int_equal(file->size_bytes, SIZE + 100);
    assert_int_equal(pass->size_bytes, SIZE + 100);
    assert_int_equal(whole->size_bytes, SIZE + 512);
    assert_int_equal(n_resized, 1);
    assert_int_equal(node_resize(self, file, SIZE + 100, NULL), 0); // as it is
    assert_int_equal(n_resized, 1);
    assert_int_equal(node_resize(self, file, 1000, NULL), 0);
    assert_int_equal(whole->size_bytes, 1024);
    assert_int_equal(n_resized, 2);
    file->read_only = true;
    g_autoptr(GError) error = NULL;
    assert_int_equal(node_resize(self, file, 5000, &error), -EACCES);
    assert_string_equal(error->message, "Image is read-only");
    assert_int_equal(n_resized, 2);
    port_done(self, &port);
    node_unref_close(self, whole);
    node_unref_close(self, pass);
    node_unref_close(self, file);
}

static void filters_and_ports_above_hear_of_another_size(void **state)
{
    run(sizes_fiber);
}

static void device_fiber(Fiber *self, void *arg)
{
    assert_int_equal(sim_set_block_device(arg, "/f"), 0);
    Node *device = open_file_node(self);
    g_autoptr(GError) error = NULL;
    assert_int_equal(node_resize(self, device, SIZE + 512, &error), -EINVAL);
    assert_string_equal(error->message, "Cannot grow device files");
    assert_int_equal(node_resize(self, device, 512, NULL), 0); // it has the size that it has
    assert_int_equal(device->size_bytes, SIZE);
    node_unref_close(self, device);
}

static void a_device_has_the_size_that_it_has(void **state)
{
    run(device_fiber);
}

// -- thresholds -----------------------------------------------------------------------------------

static unsigned n_crossed, n_dropped;
static uint64_t last_beyond;

static void crossed(NodeThreshold *threshold, uint64_t beyond)
{
    n_crossed++;
    last_beyond = beyond;
}

static void drop(NodeThreshold *threshold)
{
    n_dropped++;
    g_free(threshold);
}

static void set_threshold(Node *node, uint64_t off)
{
    NodeThreshold *t = g_new0(NodeThreshold, 1);
    *t = (NodeThreshold){.off = off, .crossed = crossed, .drop = drop};
    node_set_write_threshold(node, t);
}

static void write_at(Fiber *self, Node *node, uint64_t off)
{
    uint8_t data[512] = {1};
    assert_int_equal(node_write(self, node, guest_off(off), data, sizeof data, 0), 0);
}

static void thresholds_fiber(Fiber *self, void *arg)
{
    Node *file = open_file_node(self), *raw;
    File *own;
    assert_int_equal(file_open(self, "/f", FILE_WRITABLE, &own, NULL), 0);
    assert_int_equal(raw_node_new(self, own, &raw, NULL), 0);
    Node *const nodes[] = {file, raw};
    for (unsigned i = 0; i < 2; i++) {
        n_crossed = n_dropped = 0;
        set_threshold(nodes[i], 4096);
        write_at(self, nodes[i], 4096 - 512);
        assert_int_equal(n_crossed, 0);
        write_at(self, nodes[i], 4096 - 256);
        assert_true(n_crossed == 1 && n_dropped == 1);
        assert_int_equal(last_beyond, 256);
        write_at(self, nodes[i], 8192);
        assert_int_equal(n_crossed, 1);
        set_threshold(nodes[i], 512);
        set_threshold(nodes[i], 1024); // instead
        assert_int_equal(n_dropped, 2);
        node_set_write_threshold(nodes[i], NULL);
        assert_int_equal(n_dropped, 3);
        write_at(self, nodes[i], 8192);
        assert_int_equal(n_crossed, 1);
        set_threshold(nodes[i], 512); // goes with the node
    }
    // A format writes the file and not through its node; another size is no write.
    assert_int_equal(file_truncate(self, node_file(file), SIZE + 4096), 0);
    assert_int_equal(n_crossed, 1);
    assert_int_equal(file_write(self, node_file(file), host_off(1000), "hello", 5), 0);
    assert_int_equal(n_crossed, 2);
    assert_int_equal(last_beyond, 1005 - 512);
    node_unref_close(self, file);
    node_unref_close(self, raw);
    assert_int_equal(n_dropped, 5);
}

static void a_write_beyond_a_threshold_is_told_once(void **state)
{
    run(thresholds_fiber);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters_and_ports_above_hear_of_another_size),
        cmocka_unit_test(a_device_has_the_size_that_it_has),
        cmocka_unit_test(a_write_beyond_a_threshold_is_told_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
