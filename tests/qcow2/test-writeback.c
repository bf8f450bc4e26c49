// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-back beside a place that cannot be written, on the simulation: what depends on it fails,
// the rest becomes durable, and nothing is lost once the place is well again.
#include "host.h"

#include <errno.h>
#include <string.h>

#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"

#define PATH "/image"
// An L2 table of one cluster maps 2 MiB, and is one slice.
enum { CLUSTER = 4096, TABLE_SPAN = CLUSTER / 8 * CLUSTER, MEMORY = 128 << 20 };

typedef struct Bad {
    SimHook hook;
    Sim *sim;
    FiberFn *fn;
    Node *node;
    uint64_t bad_off, bad_end; // writes there fail
    bool no_slices;            // writes of a slice fail, shorter ones do not
    uint64_t n_flushes;        // of the file, which each pass makes
    bool no_flush;             // fails
    uint64_t n_writes;
} Bad;

static int bad_hook(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Bad *b = (Bad *)hook;
    b->n_flushes += op == SIM_OP_FLUSH;
    b->n_writes += op == SIM_OP_WRITE;
    if (op == SIM_OP_FLUSH && b->no_flush)
        return -EIO;
    bool is_bad = (off < b->bad_end && off + len > b->bad_off) || (b->no_slices && len >= CLUSTER);
    return op == SIM_OP_WRITE && is_bad ? -EIO : 0;
}

static void open_fiber(Fiber *self, void *arg)
{
    Bad *b = arg;
    g_autoptr(GError) error = NULL;
    MapMemory *memory = map_memory_new(MEMORY);
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *image;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &b->node, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
    b->fn(self, b);
    node_unref_close(self, b->node);
    map_memory_free(memory);
}

static void check_fiber(Fiber *self, void *arg)
{
    Qcow2CheckResult result;
    File *file;
    assert_int_equal(file_open(self, PATH, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    if (result.n_corruptions || result.n_check_errors)
        fail_msg("%s", (char *)g_ptr_array_index(result.messages, 0));
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

static void run(Sim *sim, Bad *b, FiberFn *fn)
{
    assert_true(sim_run(sim, check_fiber, NULL));
    b->fn = fn;
    assert_true(sim_run(sim, open_fiber, b));
    assert_true(sim_run(sim, check_fiber, NULL));
}

// An image of 64 MiB that `prepare` worked on, a shell command.
static void with_image(const char *prepare, FiberFn *fn)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "i.qcow2", NULL);
        Bad b = {.hook.fn = bad_hook,
                 .sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = seed % 2})};
        host_shell(dir, "qemu-img create -q -f qcow2 -o cluster_size=4k i.qcow2 64M; %s", prepare);
        assert_int_equal(sim_import_file(b.sim, PATH, path), 0);
        host_remove_dir(g_steal_pointer(&dir));
        sim_set_hook(b.sim, &b.hook);
        run(b.sim, &b, fn);
        sim_free(b.sim);
    }
}

static int write_at(Fiber *self, Bad *b, uint64_t off, uint8_t byte, NodeIoFlags flags)
{
    uint8_t buf[CLUSTER];
    memset(buf, byte, sizeof(buf));
    return node_write(self, b->node, guest_off(off), buf, sizeof(buf), flags);
}

static uint8_t byte_at(Fiber *self, Bad *b, uint64_t off)
{
    uint8_t byte;
    assert_int_equal(node_read(self, b->node, guest_off(off), &byte, 1), 0);
    return byte;
}

static uint64_t on_disk64(Bad *b, uint64_t off)
{
    g_autofree void *data = NULL;
    uint64_t len;
    assert_int_equal(sim_read_file(b->sim, PATH, &data, &len), 0);
    return host_get64(data, off);
}

static uint64_t l1_on_disk(Bad *b)
{
    return on_disk64(b, 40);
}

// Entry `index` of the L1 table on disk: where the table lies.
static uint64_t table_on_disk(Bad *b, unsigned index)
{
    return on_disk64(b, l1_on_disk(b) + index * 8) & UINT64_C(0x00fffffffffffe00);
}

static uint64_t file_end(Bad *b)
{
    g_autofree void *data = NULL;
    uint64_t len;
    assert_int_equal(sim_read_file(b->sim, PATH, &data, &len), 0);
    return len;
}

static void look_after_cut(Fiber *self, void *arg)
{
    Bad *b = arg;
    assert_int_equal(byte_at(self, b, 0), 1);
    assert_int_equal(byte_at(self, b, TABLE_SPAN), 5);
    assert_int_equal(byte_at(self, b, TABLE_SPAN + CLUSTER), 4);
    assert_int_equal(byte_at(self, b, TABLE_SPAN + 2 * CLUSTER), 0);
}

static void look_at_a_cut(Bad *b, FiberFn *look)
{
    for (uint64_t outcome = 1; outcome < 9; outcome++) {
        Bad after = {.sim = sim_clone_after_power_cut(b->sim, outcome)};
        run(after.sim, &after, look);
        sim_free(after.sim);
    }
}

static void beside_a_bad_slice(Fiber *self, void *arg)
{
    Bad *b = arg;
    assert_int_equal(write_at(self, b, 0, 1, 0), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(write_at(self, b, TABLE_SPAN + i * CLUSTER, 2, 0), 0);
    assert_int_equal(node_flush(self, b->node), 0);
    b->bad_off = table_on_disk(b, 0);
    b->bad_end = b->bad_off + CLUSTER;
    assert_int_equal(write_at(self, b, CLUSTER, 3, 0), 0);
    assert_int_equal(write_at(self, b, 64 * CLUSTER, 3, NODE_IO_FUA), -EIO);
    assert_int_equal(node_flush(self, b->node), -EIO);
    // Beside it everything is as always, also what allocates and what frees.
    uint64_t used = sim_used_bytes(b->sim);
    assert_int_equal(
        node_discard(self, b->node, guest_off(TABLE_SPAN + 2 * CLUSTER), CLUSTER, NODE_IO_FUA), 0);
    assert_int_equal(write_at(self, b, TABLE_SPAN + CLUSTER, 4, NODE_IO_FUA), 0);
    assert_int_equal(write_at(self, b, TABLE_SPAN, 5, NODE_IO_FUA), 0);
    assert_int_equal(write_at(self, b, 8 * TABLE_SPAN, 6, NODE_IO_FUA), 0);
    assert_in_range(sim_used_bytes(b->sim), 0, used + 2 * CLUSTER); // a table and its data
    look_at_a_cut(b, look_after_cut);
    b->bad_end = 0;
    assert_int_equal(node_flush(self, b->node), 0);
    assert_int_equal(byte_at(self, b, CLUSTER), 3);
    assert_int_equal(write_at(self, b, 64 * CLUSTER, 7, NODE_IO_FUA), 0);
}

static void a_slice_that_cannot_be_written_fails_what_it_maps_and_nothing_else(void **state)
{
    with_image("", beside_a_bad_slice);
}

static void beside_a_bad_new_table(Fiber *self, void *arg)
{
    Bad *b = arg;
    assert_int_equal(write_at(self, b, 0, 1, NODE_IO_FUA), 0);
    b->bad_off = file_end(b); // where the next table will be
    b->bad_end = b->bad_off + CLUSTER;
    assert_int_equal(write_at(self, b, 2 * TABLE_SPAN, 2, 0), 0);
    assert_int_equal(write_at(self, b, 3 * TABLE_SPAN, 3, NODE_IO_FUA), 0);
    assert_int_equal(node_flush(self, b->node), -EIO);
    assert_int_equal(table_on_disk(b, 2), 0);
    assert_int_not_equal(table_on_disk(b, 3), 0);
    assert_int_equal(byte_at(self, b, 2 * TABLE_SPAN), 2);
    b->bad_end = 0;
    assert_int_equal(node_flush(self, b->node), 0);
    assert_int_not_equal(table_on_disk(b, 2), 0);
}

static void a_new_table_that_cannot_be_written_keeps_no_other_from_its_entry(void **state)
{
    with_image("", beside_a_bad_new_table);
}

static void look_at_either_table(Fiber *self, void *arg)
{
    // What failed may be on the disk all the same.
    bool is_entered = byte_at(self, arg, 0) == 1;
    assert_int_equal(byte_at(self, arg, 0), is_entered ? 1 : 9);
    assert_int_equal(byte_at(self, arg, CLUSTER), is_entered ? 0 : 9);
}

// The copy of a shared table is written, its entry is not: the disk still has the shared one, and
// what that names keeps both of its references.
static void beside_a_bad_l1(Fiber *self, void *arg)
{
    Bad *b = arg;
    b->bad_off = l1_on_disk(b);
    b->bad_end = b->bad_off + 512;
    assert_int_equal(write_at(self, b, 0, 1, NODE_IO_FUA), -EIO);
    assert_int_equal(node_discard(self, b->node, guest_off(CLUSTER), CLUSTER, NODE_IO_FUA), -EIO);
    for (unsigned i = 0; i < 3; i++) // what was freed would be released, and counted less
        assert_int_equal(node_flush(self, b->node), -EIO);
    look_at_a_cut(b, look_at_either_table);
    b->bad_end = 0;
    assert_int_equal(node_flush(self, b->node), 0);
    assert_int_equal(byte_at(self, b, 0), 1);
    assert_int_equal(byte_at(self, b, CLUSTER), 0);
}

static void a_copied_table_that_is_not_entered_frees_nothing(void **state)
{
    with_image("qemu-io -f qcow2 -c 'write -P 9 0 64k' i.qcow2 >/dev/null; "
               "qemu-img snapshot -c one i.qcow2",
               beside_a_bad_l1);
}

// --- how often it is tried -----------------------------------------------------------------------

static const char large_image[] = "qemu-img create -q -f qcow2 -o cluster_size=4k i.qcow2 8G";
enum { SECTOR = 512 };

static void write_sectors(Fiber *self, Bad *b, uint64_t first, uint64_t n, uint64_t stride)
{
    uint8_t buf[SECTOR] = {1};
    for (uint64_t i = first; i < first + n; i++)
        assert_int_equal(node_write(self, b->node, guest_off(i * stride), buf, SECTOR, 0), 0);
}

// Fails, and not without having tried. The second one ends after any pass that was wanted before.
static void flush_in_vain(Fiber *self, Bad *b)
{
    for (unsigned i = 0; i < 2; i++) {
        uint64_t n = b->n_flushes;
        assert_int_equal(node_flush(self, b->node), -EIO);
        assert_in_range(b->n_flushes, n + 1, UINT64_MAX);
    }
}

static void with_much_dirty(Fiber *self, void *arg)
{
    Bad *b = arg;
    write_sectors(self, b, 0, 1, TABLE_SPAN);
    assert_int_equal(node_flush(self, b->node), 0);
    b->no_slices = true;
    write_sectors(self, b, 1, 1100, TABLE_SPAN); // a table each: more than 4 MiB of them
    flush_in_vain(self, b);
    uint64_t n = b->n_flushes;
    write_sectors(self, b, 1101, 256, TABLE_SPAN);
    assert_int_equal(b->n_flushes, n);
    flush_in_vain(self, b);
    b->no_slices = false;
    assert_int_equal(node_flush(self, b->node), 0);
}

static void much_that_cannot_be_written_is_not_tried_again_with_each_write(void **state)
{
    with_image(large_image, with_much_dirty);
}

// docs/ordering.md §9
static void lose_a_flush(Fiber *self, void *arg)
{
    Bad *b = arg;
    assert_int_equal(write_at(self, b, 0, 1, 0), 0);
    assert_int_equal(node_flush(self, b->node), 0);
    assert_int_equal(write_at(self, b, TABLE_SPAN, 2, 0), 0);
    b->no_flush = true;
    assert_int_equal(node_flush(self, b->node), -EIO);
    b->no_flush = false;
    assert_int_equal(write_at(self, b, 2 * TABLE_SPAN, 3, 0), 0);
    b->n_writes = 0;
    assert_int_equal(node_flush(self, b->node), -EIO);
    assert_int_equal(b->n_writes, 0);
    assert_int_equal(byte_at(self, b, 2 * TABLE_SPAN), 3);
}

static void after_a_sync_that_failed_nothing_is_written_back(void **state)
{
    with_image("true", lose_a_flush);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slice_that_cannot_be_written_fails_what_it_maps_and_nothing_else),
        cmocka_unit_test(a_new_table_that_cannot_be_written_keeps_no_other_from_its_entry),
        cmocka_unit_test(a_copied_table_that_is_not_entered_frees_nothing),
        cmocka_unit_test(after_a_sync_that_failed_nothing_is_written_back),
        cmocka_unit_test(much_that_cannot_be_written_is_not_tried_again_with_each_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
