// SPDX-License-Identifier: LGPL-2.1-or-later
// An open layer becomes writable and read-only again, on the simulation: what is read through an
// overlay's map, who else may open the file, and what a power cut or a failure in between leaves.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/map-memory.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/sim.h"

enum {
    SIZE = 1 << 20,
    BLOCK = 4096,
    READING = FILE_PERM_CONSISTENT_READ,
    WRITING = FILE_PERM_CONSISTENT_READ | FILE_PERM_WRITE | FILE_PERM_RESIZE,
    UNSHARED = FILE_PERM_WRITE | FILE_PERM_RESIZE,
};

typedef struct Bytes {
    uint8_t *data;
    gsize len;
} Bytes;

typedef struct Test {
    SimHook hook;
    Sim *sim;
    MapMemory *memory;
    const char *format; // of /base
    Node *base, *top;
    Port guests;
    uint64_t seed;
    uint8_t durable, newest; // the first block of /base
    uint64_t fail_at;
    int error;
    bool is_armed, is_hit;
    unsigned n_points;
} Test;

static Bytes load_file(const char *dir, const char *name)
{
    Bytes b;
    g_autofree char *path = g_build_filename(dir, name, NULL);
    assert_true(g_file_get_contents(path, (char **)&b.data, &b.len, NULL));
    return b;
}

static const char *const commands[] = {
    "qemu-img create -q -f qcow2 -o cluster_size=4k base 1M && "
    "qemu-io -f qcow2 -c 'write -P 1 0 100k' base",
    "qemu-img create -q -f raw base 1M && qemu-io -f raw -c 'write -P 1 0 100k' base",
    // A dirty one, whose refcounts say too little.
    "qemu-img create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on base 1M && "
    "sh -c 'ulimit -c 0; qemu-io -f qcow2 -c \"write -P 1 0 100k\" -c flush -c abort base; :' "
    "2>/dev/null",
    "qemu-img create -q -f qcow2 -o cluster_size=4k base 1M && "
    "qemu-io -f qcow2 -c 'write -P 1 0 100k' base && qemu-img snapshot -c s base",
};
enum { QCOW2, RAW, DIRTY, SNAPSHOT, N_KINDS };

static Bytes bases[N_KINDS], top;

static void make_images(void)
{
    if (top.data)
        return;
    g_autofree char *dir = host_make_dir();
    for (unsigned i = 0; i < N_KINDS; i++) {
        host_shell(dir, "rm -f base; { %s; } >/dev/null", commands[i]);
        bases[i] = load_file(dir, "base");
    }
    host_shell(dir, "qemu-img create -q -u -f qcow2 -b base -F raw -o cluster_size=4k top 1M");
    top = load_file(dir, "top");
    host_remove_dir(g_steal_pointer(&dir));
}

static void setup_sim(Test *t, unsigned kind, uint64_t seed)
{
    make_images();
    t->sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = true});
    t->format = kind == RAW ? "raw" : "qcow2";
    t->durable = t->newest = 1;
    assert_int_equal(sim_write_file(t->sim, "/base", bases[kind].data, bases[kind].len), 0);
    assert_int_equal(sim_write_file(t->sim, "/top", top.data, top.len), 0);
}

static Node *open_node(Fiber *self, Test *t, const char *path, const char *format, bool read_only)
{
    LayerOptions options = {.format = format, .read_only = read_only, .memory = t->memory};
    Layer *layer;
    Node *node = NULL;
    g_autoptr(GError) error = NULL;
    if (layer_open(self, path, &options, &layer, &error) < 0 ||
        layer_load(self, layer, &node, &error) < 0)
        fail_msg("%s", error->message);
    layer_drop(self, layer);
    return node;
}

static void open_both(Fiber *self, Test *t)
{
    t->memory = map_memory_new(4 << 20);
    t->base = open_node(self, t, "/base", t->format, true);
    t->top = open_node(self, t, "/top", "qcow2", false);
    chain_set_backing(self, t->top, t->base, t->memory);
}

static void close_both(Fiber *self, Test *t)
{
    node_unref_close(self, t->top);
    node_unref_close(self, t->base);
    map_memory_free(t->memory);
}

static uint8_t read_block(Fiber *self, Node *node, uint64_t off)
{
    uint8_t block[BLOCK];
    assert_int_equal(node_read(self, node, guest_off(off), block, BLOCK), 0);
    for (unsigned i = 1; i < BLOCK; i++)
        assert_int_equal(block[i], block[0]);
    return block[0];
}

static int write_block(Fiber *self, Node *node, uint64_t off, uint8_t value)
{
    uint8_t block[BLOCK];
    memset(block, value, BLOCK);
    return node_write(self, node, guest_off(off), block, BLOCK, 0);
}

static int set_mode(Fiber *self, Node *node, bool is_writable)
{
    g_autoptr(GError) error = NULL;
    node_drain_begin(self, node, REQUESTS_ALL);
    int r = node_set_writable(self, node, is_writable, &error);
    node_drain_end(node, REQUESTS_ALL);
    assert_true((r < 0) == (error != NULL));
    return r;
}

// Another program's try.
static bool may_others(Fiber *self, const char *path, unsigned held)
{
    File *file;
    assert_int_equal(file_open(self, path, 0, &file, NULL), 0);
    int r = file_lock(self, file, held, UNSHARED, NULL);
    file_close(self, file);
    return r == 0;
}

// --- what is seen

static void writes_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_both(self, t);
    NodeIdentity first = t->base->identity;
    assert_int_equal(read_block(self, t->top, 0), 1); // the map is built
    assert_int_equal(write_block(self, t->base, 0, 2), -EROFS);
    assert_true(may_others(self, "/base", READING));

    assert_int_equal(set_mode(self, t->base, true), 0);
    assert_false(may_others(self, "/base", READING));
    assert_int_equal(write_block(self, t->base, 0, 2), 0);
    assert_int_equal(write_block(self, t->base, 512 << 10, 3), 0); // where nothing was
    assert_int_equal(read_block(self, t->top, 0), 2);
    assert_int_equal(read_block(self, t->top, 512 << 10), 3);

    node_drain_begin(self, t->base, REQUESTS_ALL);
    node_stop_writes(t->base);
    node_drain_end(t->base, REQUESTS_ALL);
    assert_true(t->base->read_only);
    assert_int_equal(write_block(self, t->base, 0, 4), -EROFS);
    assert_int_equal(read_block(self, t->top, 0), 2);
    assert_false(may_others(self, "/base", READING));
    // And back: nothing was given up.
    assert_int_equal(set_mode(self, t->base, true), 0);
    assert_int_equal(write_block(self, t->base, 0, 5), 0);
    assert_int_equal(read_block(self, t->top, 0), 5);

    assert_int_equal(set_mode(self, t->base, false), 0);
    assert_true(may_others(self, "/base", READING));
    assert_false(may_others(self, "/base", WRITING));
    assert_int_equal(read_block(self, t->top, 0), 5);
    assert_int_equal(read_block(self, t->top, 512 << 10), 3);
    assert_true(memcmp(&first, &t->base->identity, sizeof first) != 0);

    assert_int_equal(set_mode(self, t->base, true), 0);
    assert_int_equal(write_block(self, t->base, 4096, 6), 0);
    assert_int_equal(node_discard(self, t->base, guest_off(0), 32 << 10, 0), 0);
    assert_int_equal(set_mode(self, t->base, false), 0);
    assert_int_equal(read_block(self, t->top, 40 << 10), 1);
    close_both(self, t);
}

static void check_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    Qcow2CheckResult result;
    File *file;
    if (g_str_equal(t->format, "raw"))
        return;
    g_autoptr(GError) error = NULL;
    assert_int_equal(file_open(self, "/base", 0, &file, NULL), 0);
    if (qcow2_check(self, file, 0, &result, &error) < 0)
        fail_msg("%s", error->message);
    if (result.n_corruptions || result.n_leaks)
        fail_msg("%s", (char *)result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

static void a_layer_is_written_and_read_through_its_overlay(void **state)
{
    uint64_t seed = host_seed(0x30de);
    for (unsigned kind = 0; kind < N_KINDS; kind++)
        for (unsigned i = 0; i < 8; i++) {
            Test t = {0};
            setup_sim(&t, kind, seed + i);
            assert_true(sim_run(t.sim, writes_fiber, &t));
            assert_true(sim_run(t.sim, check_fiber, &t));
            sim_free(t.sim);
        }
}

static void refusals_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_both(self, t);
    File *other;
    assert_int_equal(file_open(self, "/base", 0, &other, NULL), 0);
    assert_int_equal(file_lock(self, other, READING, UNSHARED, NULL), 0);
    assert_int_equal(set_mode(self, t->base, true), -EAGAIN); // another reads it
    assert_true(t->base->read_only);
    assert_int_equal(read_block(self, t->top, 0), 1);
    file_close(self, other);

    // A filter goes with what it filters; the merged map cannot be asked.
    g_autoptr(GError) error = NULL;
    assert_int_equal(node_set_writable(self, t->top->backing, true, &error), -ENOTSUP);
    assert_int_equal(set_mode(self, t->base, true), 0);
    close_both(self, t);
}

static void a_layer_that_another_reads_is_not_made_writable(void **state)
{
    Test t = {0};
    setup_sim(&t, QCOW2, 3);
    assert_true(sim_run(t.sim, refusals_fiber, &t));
    sim_free(t.sim);
}

// --- guests beside a change

static int no_op_while_drained(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                               uint64_t len)
{
    const Test *t = (Test *)hook;
    if (t->guests.stopped)
        fail_msg("operation %d on %s while guests wait", op, path);
    return 0;
}

static void change_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_both(self, t);
    port_init(&t->guests, t->top, "guests");
    assert_int_equal(read_block(self, t->top, 0), 1);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(node_change_mode(self, t->base, true, NULL), 0);
        assert_int_equal(write_block(self, t->base, 0, 2 + i), 0);
        assert_int_equal(write_block(self, t->base, (512 + 8 * i) << 10, 9), 0);
        assert_int_equal(node_change_mode(self, t->base, false, NULL), 0);
        assert_int_equal(read_block(self, t->top, 0), 2 + i);
    }
    port_done(self, &t->guests);
    close_both(self, t);
}

static void guests_wait_for_nothing_that_is_read_or_written_for_a_mode_change(void **state)
{
    for (unsigned kind = 0; kind < N_KINDS; kind++) {
        Test t = {.hook = {no_op_while_drained}};
        if (kind == DIRTY) // its repair is for nobody to see
            continue;
        setup_sim(&t, kind, 11);
        sim_set_hook(t.sim, &t.hook);
        assert_true(sim_run(t.sim, change_fiber, &t));
        sim_set_hook(t.sim, NULL);
        assert_true(sim_run(t.sim, check_fiber, &t));
        sim_free(t.sim);
    }
}

// --- power cuts

static void look_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    t->memory = map_memory_new(4 << 20);
    t->base = open_node(self, t, "/base", t->format, false);
    uint8_t block[BLOCK];
    assert_int_equal(node_read(self, t->base, guest_off(0), block, BLOCK), 0);
    for (unsigned i = 0; i < BLOCK; i++) // a cut tears what is under way
        if (block[i] < t->durable || block[i] > t->newest)
            fail_msg("%u is there, of %u (durable) to %u", block[i], t->durable, t->newest);
    assert_int_equal(read_block(self, t->base, 40 << 10), 1);
    node_unref_close(self, t->base);
    map_memory_free(t->memory);
}

// Leaks are allowed.
static void check_corruptions_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    Qcow2CheckResult result;
    File *file;
    if (g_str_equal(t->format, "raw"))
        return;
    assert_int_equal(file_open(self, "/base", 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    if (result.n_corruptions)
        fail_msg("%s", (char *)result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

static int cut_before(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Test *t = (Test *)hook;
    if (op == SIM_OP_READ)
        return 0;
    Test after = *t;
    after.sim = sim_clone_after_power_cut(t->sim, t->seed + n);
    assert_true(sim_run(after.sim, look_fiber, &after)); // repairs it if need be
    assert_true(sim_run(after.sim, check_corruptions_fiber, &after));
    sim_free(after.sim);
    t->n_points++;
    return 0;
}

static void rounds_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_both(self, t);
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(set_mode(self, t->base, true), 0);
        for (unsigned i = 0; i < 3; i++) {
            t->newest++;
            assert_int_equal(write_block(self, t->base, 0, t->newest), 0);
            assert_int_equal(write_block(self, t->base, (512 + 4 * t->newest) << 10, 9), 0);
        }
        if (round != 1)
            node_stop_writes(t->base);
        assert_int_equal(set_mode(self, t->base, false), 0);
        t->durable = t->newest; // the way down is a flush
    }
    close_both(self, t);
}

static void a_power_cut_loses_nothing_written_before_a_mode_change(void **state)
{
    uint64_t seed = host_seed(0xc07);
    for (unsigned kind = 0; kind < N_KINDS; kind++)
        for (unsigned i = 0; i < 12; i++) {
            Test t = {.hook = {cut_before}, .seed = seed + i * 1000};
            setup_sim(&t, kind, seed + i);
            sim_set_hook(t.sim, &t.hook);
            assert_true(sim_run(t.sim, rounds_fiber, &t));
            assert_true(t.n_points > 20);
            sim_free(t.sim);
        }
}

// --- failures

static int fail_one(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Test *t = (Test *)hook;
    if (!t->is_armed || n != t->fail_at)
        return 0;
    t->is_hit = true;
    return t->error;
}

// Each failure leaves a node that can be read, and a mode that what it answers agrees with.
static void failing_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_both(self, t);
    assert_int_equal(read_block(self, t->top, 0), 1);
    t->fail_at += sim_n_ops(t->sim);
    t->is_armed = true;
    int up = set_mode(self, t->base, true);
    assert_true(t->base->read_only == (up < 0));
    int w = write_block(self, t->base, 0, 2);
    assert_true(up == 0 || w == -EROFS);
    int down = set_mode(self, t->base, false);
    assert_true(t->base->read_only);
    t->is_armed = false;
    if (w == 0 && down == 0)
        t->durable = 2;
    t->newest = w == -EROFS ? 1 : 2;
    if (w == 0 || w == -EROFS) // a write that failed may be there in part
        assert_int_equal(read_block(self, t->top, 0), t->newest);
    // A second time, unless something of the first is lost for good.
    if (set_mode(self, t->base, true) == 0 && write_block(self, t->base, 0, 3) == 0) {
        assert_int_equal(read_block(self, t->top, 0), 3);
        t->newest = 3;
        if (set_mode(self, t->base, false) == 0)
            t->durable = 3;
    }
    close_both(self, t);
}

static void a_failed_mode_change_leaves_what_was_there(void **state)
{
    const int errors[] = {-EIO, -ENOSPC};
    for (unsigned kind = 0; kind < N_KINDS; kind++)
        for (unsigned e = 0; e < 2; e++) {
            bool is_hit = true;
            for (uint64_t n = 1; is_hit; n++) {
                Test t = {.hook = {fail_one}, .fail_at = n, .error = errors[e]};
                setup_sim(&t, kind, n);
                sim_set_hook(t.sim, &t.hook);
                assert_true(sim_run(t.sim, failing_fiber, &t));
                sim_set_hook(t.sim, NULL);
                is_hit = t.is_hit;
                assert_true(sim_run(t.sim, look_fiber, &t));
                assert_true(sim_run(t.sim, check_corruptions_fiber, &t));
                sim_free(t.sim);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_is_written_and_read_through_its_overlay),
        cmocka_unit_test(guests_wait_for_nothing_that_is_read_or_written_for_a_mode_change),
        cmocka_unit_test(a_layer_that_another_reads_is_not_made_writable),
        cmocka_unit_test(a_power_cut_loses_nothing_written_before_a_mode_change),
        cmocka_unit_test(a_failed_mode_change_leaves_what_was_there),
    };
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    for (unsigned i = 0; i < N_KINDS; i++)
        g_free(bases[i].data);
    g_free(top.data);
    return r;
}
