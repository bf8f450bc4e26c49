// SPDX-License-Identifier: LGPL-2.1-or-later
// Look-ups whose range is used afterwards, as a job that copies from file to file does: a cluster
// that a guest discards meanwhile becomes nothing else before they are over (docs/ordering.md §4).
// In the simulation.
#include <string.h>

#include "../node/on-sim.h"
#include "chain-core/chain.h"
#include "chain-core/qcow2-create.h"

enum { CLUSTER = 4096, N_CLUSTERS = 64, DISK = CLUSTER * N_CLUSTERS, OLD = 0x11, NEW = 0x22 };

static void fill(Fiber *self, Node *node, unsigned cluster, int byte)
{
    uint8_t data[CLUSTER];
    memset(data, byte, sizeof data);
    fiber_assert_equal(
        node_write(self, node, guest_off((uint64_t)cluster * CLUSTER), data, sizeof data, 0), 0);
}

// Whether any of the clusters behind the first lies at `host`.
static bool is_taken(Fiber *self, Node *node, HostOff host)
{
    for (unsigned i = 1; i < N_CLUSTERS; i++) {
        NodeExtent e;
        fiber_assert_equal(node_map(self, node, guest_off((uint64_t)i * CLUSTER), CLUSTER, &e), 0);
        if (e.kind == NODE_EXTENT_DATA && e.host.v == host.v)
            return true;
    }
    return false;
}

// The next clusters, with all that a write-back does for what is freed.
static void write_more(Fiber *self, Node *node, unsigned *next)
{
    for (unsigned i = 0; i < 8; i++)
        fill(self, node, (*next)++, NEW);
    fiber_assert_equal(node_flush(self, node), 0);
    fiber_assert_equal(node_flush(self, node), 0);
    fiber_sleep(self, 10000000);
}

static Node *open_disk(Fiber *self, MapMemory *memory)
{
    Qcow2CreateOptions options = {.size_bytes = DISK, .cluster_bytes = CLUSTER};
    LayerOptions how = {.memory = memory, .format = "qcow2"};
    Node *node;
    fiber_assert_equal(qcow2_create(self, "/disk", &options, NULL), 0);
    fiber_assert_equal(chain_open(self, "/disk", &how, &node, NULL, NULL), 0);
    return node;
}

static void look_up(Fiber *self, Node *node, IoBatch *batch, NodeExtent *ret_extent)
{
    io_batch_init(batch, self);
    fiber_assert_equal(node_status_pinned(self, node, guest_off(0), CLUSTER, batch, ret_extent), 0);
    fiber_assert_equal(ret_extent->kind, NODE_EXTENT_DATA);
}

SIM_TEST(a_discarded_cluster_is_not_reused_while_a_look_up_has_it)
{
    MapMemory *memory = map_memory_new(1 << 20);
    Node *node = open_disk(self, memory);
    unsigned next = 1;
    IoBatch batch;
    NodeExtent e;
    uint8_t data[CLUSTER];
    fill(self, node, 0, OLD);
    fiber_assert_equal(node_flush(self, node), 0);
    look_up(self, node, &batch, &e);
    fiber_assert_equal(node_discard(self, node, guest_off(0), CLUSTER, 0), 0);
    for (unsigned i = 0; i < 3; i++) {
        write_more(self, node, &next);
        fiber_assert(!is_taken(self, node, e.host));
    }
    fiber_assert_equal(file_read(self, e.file, e.host, data, sizeof data), 0);
    for (unsigned i = 0; i < CLUSTER; i++)
        fiber_assert_equal(data[i], OLD);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);

    for (unsigned i = 0; i < 3; i++)
        write_more(self, node, &next);
    fiber_assert(is_taken(self, node, e.host)); // or the test would show nothing
    node_unref_close(self, node);
    map_memory_free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_discarded_cluster_is_not_reused_while_a_look_up_has_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
