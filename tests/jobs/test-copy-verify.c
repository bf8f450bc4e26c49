// SPDX-License-Identifier: LGPL-2.1-or-later
// Copies whose target does not keep what it is told, by a byte of data or of zeros: found by who
// reads back, and by nobody else.
#include "../node/on-sim.h"

#include "chain-core/io-buffers.h"
#include "copy-nodes.h"
#include "copy-verify.h"
#include "slow-disk.h"

enum { NOWHERE = SIZE };

static uint64_t wrong_at; // a byte that a target spoils; NOWHERE: none

static void spoil(Node *node, uint64_t off, uint64_t len)
{
    if (wrong_at - off < len)
        disk_of(node)->data[wrong_at] ^= 0x10;
}

static int lying_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                       NodeIoFlags flags)
{
    int r = disk_write(self, node, off, buf, len, flags);
    spoil(node, off.v, len);
    return r;
}

static int lying_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    int r = disk_zero(self, node, off, len, flags);
    spoil(node, off.v, len);
    return r;
}

static Disk *lying_disk_new(Fiber *self, GRand *rand)
{
    static NodeOps ops;
    Disk *disk = disk_new(self, rand);
    ops = disk_ops;
    ops.write = lying_write;
    ops.zero = lying_zero;
    disk->node.ops = &ops;
    return disk;
}

// What becomes of a chunk that is the whole disk.
static int copy(Fiber *self, WorkKind kind, bool verifies)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed((guint32)wrong_at + kind);
    Disk *source = disk_new(self, rand), *target = lying_disk_new(self, rand);
    Port port;
    port_init(&port, &source->node, "test");
    CopyNodes nodes = {
        .source = &source->node, .target = &target->node, .port = &port, .verifies = verifies};
    CopyChunk chunk = {.len = SIZE, .kind = kind};
    memset(source->data, kind == WORK_DATA ? 0xa5 : 0, SIZE);
    io_buffers_hold(fiber_loop(self));
    int r = copy_nodes_chunk(self, &nodes, &chunk);
    io_buffers_release(fiber_loop(self));
    bool is_same = memcmp(source->data, target->data, SIZE) == 0;
    fiber_assert_equal(is_same, wrong_at == NOWHERE);
    port_done(self, &port);
    node_unref_close(self, &source->node);
    node_unref_close(self, &target->node);
    return r;
}

static const uint64_t places[] = {0, 1, IO_TURN_BYTES - 1, IO_TURN_BYTES, SIZE / 2, SIZE - 1};

SIM_TEST(a_byte_that_the_target_spoils_is_found)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        wrong_at = places[i];
        fiber_assert_equal(copy(self, WORK_DATA, true), COPY_VERIFY_DIFFERS);
        fiber_assert_equal(copy(self, WORK_METADATA, true), COPY_VERIFY_DIFFERS);
    }
}

SIM_TEST(nobody_finds_it_without_reading_back)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        wrong_at = places[i];
        fiber_assert_equal(copy(self, WORK_DATA, false), 0);
        fiber_assert_equal(copy(self, WORK_METADATA, false), 0);
    }
}

SIM_TEST(a_target_that_keeps_all_is_found_good)
{
    wrong_at = NOWHERE;
    fiber_assert_equal(copy(self, WORK_DATA, true), 0);
    fiber_assert_equal(copy(self, WORK_METADATA, true), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_byte_that_the_target_spoils_is_found),
        cmocka_unit_test(nobody_finds_it_without_reading_back),
        cmocka_unit_test(a_target_that_keeps_all_is_found_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
