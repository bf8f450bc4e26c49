// SPDX-License-Identifier: LGPL-2.1-or-later
// A point in time beside others who come to own what is saved: when the save has ended the point
// owns it durably, whoever made it its own (docs/ordering.md §18 (c)). In the simulation, with a
// power cut the moment after.
#include "../loop/in-fiber.h"

#include "chain-core/chain.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/sim.h"
#include "keep-points.h"

enum { CLUSTER = 65536, DISK = 64 * CLUSTER, N_SEEDS = 60, SECTOR = 512 };

typedef struct Scene {
    Sim *sim;
    MapMemory *memory;
    Node *point;
    Port guest;
    KeepPoints keep;
    uint64_t other_len; // what is saved by another chunk; 0: a guest writes instead
    bool is_over;
} Scene;

static Node *open_chain(Fiber *self, MapMemory *memory, bool is_writable)
{
    LayerOptions options = {.format = "qcow2", .memory = memory, .read_only = !is_writable};
    Node *node = NULL;
    fiber_assert_equal(chain_open(self, "/point", &options, &node, NULL, NULL), 0);
    return node;
}

static void make_chain(Fiber *self)
{
    static const uint8_t data[SECTOR] = {1};
    Qcow2CreateOptions options = {.size_bytes = DISK, .cluster_bytes = CLUSTER};
    MapMemory *memory = map_memory_new(1 << 20);
    LayerOptions opening = {.format = "qcow2", .memory = memory};
    Node *base;
    fiber_assert_equal(qcow2_create(self, "/base", &options, NULL), 0);
    fiber_assert_equal(chain_open(self, "/base", &opening, &base, NULL, NULL), 0);
    for (uint64_t off = 0; off < DISK; off += CLUSTER)
        fiber_assert_equal(node_write(self, base, guest_off(off), data, SECTOR, 0), 0);
    node_unref_close(self, base);
    options.backing_name = "base";
    options.backing_format = "qcow2";
    fiber_assert_equal(qcow2_create(self, "/point", &options, NULL), 0);
    map_memory_free(memory);
}

static bool owns(Fiber *self, Node *node, uint64_t off)
{
    NodeExtent extent;
    fiber_assert_equal(node_map(self, node, guest_off(off), SECTOR, &extent), 0);
    return extent.kind != NODE_EXTENT_BELOW;
}

// The request, or the fill, by which the first cluster becomes the point's own.
static void other(Fiber *self, void *arg)
{
    static const uint8_t data[SECTOR] = {2};
    Scene *s = arg;
    CopyChunk chunk = {.len = s->other_len};
    if (s->other_len) {
        fiber_assert_equal(keep_points_save(self, &s->keep, &chunk), 0);
    } else {
        Node *node = port_enter(self, &s->guest, REQUEST_WRITE);
        fiber_assert_equal(node_write(self, node, guest_off(0), data, SECTOR, NODE_IO_FUA), 0);
        port_leave(&s->guest, REQUEST_WRITE);
    }
    s->is_over = true;
}

static void look(Fiber *self, void *arg)
{
    MapMemory *memory = map_memory_new(1 << 20);
    Node *point = open_chain(self, memory, false);
    fiber_assert(owns(self, point, 0));
    node_unref_close(self, point);
    map_memory_free(memory);
}

static void save_beside(Fiber *self, void *arg)
{
    Scene *s = arg;
    CopyChunk chunk = {.len = SECTOR};
    make_chain(self);
    s->memory = map_memory_new(1 << 20);
    s->point = open_chain(self, s->memory, true);
    port_init(&s->guest, s->point, "guest");
    keep_points_init(&s->keep, &s->point, 1);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "other", other, s, NULL), 0);
    while (!owns(self, s->point, 0))
        fiber_yield(self);
    fiber_assert_equal(keep_points_save(self, &s->keep, &chunk), 0);
    Sim *sim = sim_clone_after_power_cut(s->sim, 1);
    fiber_assert(sim_run(sim, look, NULL));
    sim_free(sim);
    while (!s->is_over)
        fiber_sleep(self, 1000000);
    keep_points_done(self, &s->keep);
    port_done(self, &s->guest);
    node_unref_close(self, s->point);
    map_memory_free(s->memory);
}

static void run_seeds(uint64_t other_len)
{
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        Scene s = {.other_len = other_len, .sim = sim_new(&(SimConfig){.seed = seed})};
        assert_true(sim_run(s.sim, save_beside, &s));
        sim_free(s.sim);
    }
}

static void what_a_guest_is_about_to_make_durable_is_durable_before(void **state)
{
    run_seeds(0);
}

static void what_another_chunk_has_filled_in_part_is_durable_before(void **state)
{
    run_seeds(DISK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_guest_is_about_to_make_durable_is_durable_before),
        cmocka_unit_test(what_another_chunk_has_filled_in_part_is_durable_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
