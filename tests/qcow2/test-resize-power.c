// SPDX-License-Identifier: LGPL-2.1-or-later
// The size of a head changes while it is written, on the simulation: what comes new reads as zeros
// whatever lies below, and a power cut leaves the old size with its content, or the new one
// (docs/ordering.md §15).
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/sim.h"

enum { MAX_BYTES = 3 << 20, SECTOR = 512, N_SECTORS = MAX_BYTES / SECTOR, BELOW = 0xfb };

typedef struct Kind {
    const char *options; // of qemu-img create
    uint64_t size_bytes; // at first
    bool has_backing;
} Kind;

static const Kind kinds[] = {
    {"cluster_size=4k", 300 * 1024 + 512, true},
    {"cluster_size=512", 64 * 1024, false}, // an L1 entry covers 32 KiB
    {"cluster_size=512,refcount_bits=1", 33 * 1024 + 512, true},
    {"cluster_size=4k,compat=0.10", 100 * 1024, true},
    {"cluster_size=16k,extended_l2=on", 77 * 512, true},
};

typedef struct Test {
    SimHook hook;
    Sim *sim;
    MapMemory *memory;
    Node *top, *base;
    HostRandom random;
    const Kind *kind;
    uint64_t size, resizing_to; // 0: none under way
    uint8_t durable[N_SECTORS], newest[N_SECTORS];
    uint8_t now, flushed; // numbers of writes
    uint64_t seed;
    unsigned n_points;
    // faults
    uint64_t fail_at;
    bool is_armed, is_hit;
} Test;

static void load_file(const char *dir, const char *name, Sim *sim, const char *as)
{
    g_autofree char *path = g_build_filename(dir, name, NULL), *data = NULL;
    gsize len;
    assert_true(g_file_get_contents(path, &data, &len, NULL));
    assert_int_equal(sim_write_file(sim, as, data, len), 0);
}

static Test *test_new(const char *dir, const Kind *kind, uint64_t seed)
{
    Test *t = g_new0(Test, 1);
    t->kind = kind;
    t->random.state = t->seed = seed;
    t->sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = true});
    host_shell(dir, "qemu-img create -q -u -f qcow2 -o %s%s top %" PRIu64, kind->options,
               kind->has_backing ? ",backing_file=base,backing_fmt=raw" : "", kind->size_bytes);
    load_file(dir, "top", t->sim, "/top");
    g_autofree uint8_t *base = g_malloc(2 << 20);
    memset(base, BELOW, 2 << 20);
    assert_int_equal(sim_write_file(t->sim, "/base", base, 2 << 20), 0);
    t->size = kind->size_bytes;
    if (kind->has_backing) {
        memset(t->durable, BELOW, t->size / SECTOR);
        memset(t->newest, BELOW, t->size / SECTOR);
    }
    return t;
}

static void open_image(Fiber *self, Test *t)
{
    t->memory = map_memory_new(4 << 20);
    LayerOptions options = {.memory = t->memory};
    g_autoptr(GError) error = NULL;
    if (chain_open(self, "/top", &options, &t->top, NULL, &error) < 0)
        fail_msg("%s", error->message);
}

static void close_image(Fiber *self, Test *t)
{
    node_unref_close(self, t->top);
    map_memory_free(t->memory);
}

static void write_some(Fiber *self, Test *t)
{
    uint64_t n = t->size / SECTOR, first = host_random(&t->random, n);
    uint64_t count = 1 + host_random(&t->random, MIN(n - first, 60));
    g_autofree uint8_t *data = g_malloc(count * SECTOR);
    t->now++;
    assert_true(t->now < BELOW);
    memset(data, t->now, count * SECTOR);
    memset(t->newest + first, t->now, count);
    assert_int_equal(node_write(self, t->top, guest_off(first * SECTOR), data, count * SECTOR, 0),
                     0);
}

static void flush(Fiber *self, Test *t)
{
    assert_int_equal(node_flush(self, t->top), 0);
    memcpy(t->durable, t->newest, N_SECTORS);
    t->flushed = t->now;
}

static int resize(Fiber *self, Test *t)
{
    uint64_t size = (1 + host_random(&t->random, N_SECTORS)) * SECTOR;
    if (host_random(&t->random, 3) == 0) // near the size that it has
        size = CLAMP(t->size + (int64_t)(host_random(&t->random, 20) - 10) * SECTOR, SECTOR,
                     MAX_BYTES);
    g_autoptr(GError) error = NULL;
    t->resizing_to = size;
    int r = node_resize(self, t->top, size, &error);
    t->resizing_to = 0;
    if (r < 0 && !t->is_armed)
        fail_msg("%s", error->message);
    assert_int_equal(t->top->size_bytes, r == 0 ? size : t->size);
    if (r < 0)
        return r;
    uint64_t kept = MIN(size, t->size) / SECTOR;
    memset(t->durable + kept, 0, N_SECTORS - kept);
    memset(t->newest + kept, 0, N_SECTORS - kept);
    t->size = size;
    return 0;
}

static uint8_t *read_all(Fiber *self, Node *node)
{
    uint8_t *data = g_malloc(node->size_bytes);
    assert_int_equal(node_read(self, node, guest_off(0), data, node->size_bytes), 0);
    return data;
}

static void compare(Fiber *self, const Test *t)
{
    g_autofree uint8_t *data = read_all(self, t->top);
    for (uint64_t i = 0; i < t->size; i++)
        if (data[i] != t->newest[i / SECTOR])
            fail_msg("at %" PRIu64 " of %" PRIu64 ": %u instead of %u", i, t->size, data[i],
                     t->newest[i / SECTOR]);
}

static char *check_file(Fiber *self)
{
    Qcow2CheckResult result;
    File *file;
    char *problem = NULL;
    assert_int_equal(file_open(self, "/top", 0, &file, NULL), 0);
    g_autoptr(GError) error = NULL;
    if (qcow2_check(self, file, 0, &result, &error) < 0)
        problem = g_strdup(error->message);
    else if (result.n_corruptions)
        problem = g_strdup(result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
    return problem;
}

static void work_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_image(self, t);
    for (unsigned i = 0; i < 24; i++) {
        switch (host_random(&t->random, 4)) {
        case 0:
            resize(self, t);
            break;
        case 1:
            flush(self, t);
            break;
        default:
            write_some(self, t);
            break;
        }
        compare(self, t);
    }
    close_image(self, t);
    g_autofree char *problem = check_file(self);
    if (problem)
        fail_msg("%s", problem);
}

static void what_comes_new_reads_as_zeros(void **state)
{
    uint64_t seed = host_seed(0x512e);
    g_autofree char *dir = host_make_dir();
    for (size_t k = 0; k < G_N_ELEMENTS(kinds); k++)
        for (unsigned i = 0; i < 10; i++) {
            Test *t = test_new(dir, &kinds[k], seed + i);
            assert_true(sim_run(t->sim, work_fiber, t));
            sim_free(t->sim);
            g_free(t);
        }
    host_remove_dir(g_steal_pointer(&dir));
}

// --- power cuts

static void look_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    g_autofree char *problem = check_file(self);
    if (problem)
        fail_msg("seed %#" PRIx64 ": %s", t->seed, problem);
    open_image(self, t);
    uint64_t size = t->top->size_bytes;
    if (size != t->size && size != t->resizing_to)
        fail_msg("seed %#" PRIx64 ": its size is %" PRIu64 ", was %" PRIu64 " and becomes %" PRIu64,
                 t->seed, size, t->size, t->resizing_to);
    g_autofree uint8_t *data = read_all(self, t->top);
    for (uint64_t i = 0; i < size; i++) {
        uint8_t v = data[i], durable = t->durable[i / SECTOR], newest = t->newest[i / SECTOR];
        bool is_new = i >= t->size;
        bool is_right = v == durable || v == newest || (v > t->flushed && v < newest);
        if (is_new ? v != 0 : !is_right)
            fail_msg("seed %#" PRIx64 ": at %" PRIu64 " of %" PRIu64 " (was %" PRIu64 "): %u",
                     t->seed, i, size, t->size, v);
    }
    // What an interrupted change left does not come back.
    assert_int_equal(node_resize(self, t->top, MAX_BYTES, NULL), 0);
    g_autofree uint8_t *grown = read_all(self, t->top);
    for (uint64_t i = 0; i < MAX_BYTES; i++)
        if (grown[i] != (i < size ? data[i] : 0))
            fail_msg("seed %#" PRIx64 ": grown, at %" PRIu64 ": %u", t->seed, i, grown[i]);
    close_image(self, t);
}

static int cut_before(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Test *t = (Test *)hook;
    if (op == SIM_OP_READ || !t->resizing_to)
        return 0;
    Test *after = g_memdup2(t, sizeof *t);
    after->seed += n;
    after->sim = sim_clone_after_power_cut(t->sim, after->seed);
    assert_true(sim_run(after->sim, look_fiber, after));
    sim_free(after->sim);
    g_free(after);
    t->n_points++;
    return 0;
}

static void a_power_cut_leaves_one_size_or_the_other(void **state)
{
    uint64_t seed = host_seed(0xc5);
    g_autofree char *dir = host_make_dir();
    for (size_t k = 0; k < G_N_ELEMENTS(kinds); k++) {
        unsigned n_points = 0;
        for (unsigned i = 0; i < 5; i++) {
            Test *t = test_new(dir, &kinds[k], seed + i * 1000);
            t->hook.fn = cut_before;
            sim_set_hook(t->sim, &t->hook);
            assert_true(sim_run(t->sim, work_fiber, t));
            n_points += t->n_points;
            sim_free(t->sim);
            g_free(t);
        }
        assert_true(n_points > 100);
    }
    host_remove_dir(g_steal_pointer(&dir));
}

// --- failures

static int fail_one(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Test *t = (Test *)hook;
    if (!t->is_armed || n != t->fail_at)
        return 0;
    t->is_hit = true;
    return -EIO;
}

static void failing_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_image(self, t);
    for (unsigned i = 0; i < 4; i++)
        write_some(self, t);
    flush(self, t);
    t->fail_at += sim_n_ops(t->sim);
    t->is_armed = true;
    resize(self, t);
    t->is_armed = false;
    compare(self, t);
    uint64_t size = t->size;
    g_autoptr(GError) error = NULL;
    int r = node_resize(self, t->top, size + SECTOR, &error);
    assert_int_equal(t->top->size_bytes, r == 0 ? size + SECTOR : size);
    close_image(self, t);
    g_autofree char *problem = check_file(self);
    if (problem)
        fail_msg("operation %" PRIu64 ": %s", t->fail_at, problem);
}

static void a_failed_resize_leaves_the_size_and_the_content(void **state)
{
    uint64_t seed = host_seed(0xfa11);
    g_autofree char *dir = host_make_dir();
    for (size_t k = 0; k < G_N_ELEMENTS(kinds); k++) {
        bool is_hit = true;
        for (uint64_t n = 1; is_hit; n++) {
            Test *t = test_new(dir, &kinds[k], seed + n % 3);
            t->hook.fn = fail_one;
            t->fail_at = n;
            sim_set_hook(t->sim, &t->hook);
            assert_true(sim_run(t->sim, failing_fiber, t));
            is_hit = t->is_hit;
            sim_free(t->sim);
            g_free(t);
        }
    }
    host_remove_dir(g_steal_pointer(&dir));
}

// --- refusals

static void refuse(Fiber *self, Node *node, uint64_t size, const char *text)
{
    g_autoptr(GError) error = NULL;
    uint64_t before = node->size_bytes;
    assert_true(node_resize(self, node, size, &error) < 0);
    assert_string_equal(error->message, text);
    assert_int_equal(node->size_bytes, before);
}

static void refusals_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    open_image(self, t);
    refuse(self, t->top, 1000, "The new size must be a multiple of 512");
    refuse(self, t->top, UINT64_C(1) << 62, "Failed to grow the L1 table: File too large");
    refuse(self, chain_backing(t->top), 512, "Image is read-only");
    assert_int_equal(qcow2_snapshot_create(self, t->top, "s", NULL, NULL), 0);
    refuse(self, t->top, 512, "Can't shrink an image which has snapshots");
    assert_int_equal(node_resize(self, t->top, MAX_BYTES, NULL), 0);
    close_image(self, t);
}

static void sizes_that_cannot_be_are_refused(void **state)
{
    g_autofree char *dir = host_make_dir();
    Test *t = test_new(dir, &kinds[0], 1);
    assert_true(sim_run(t->sim, refusals_fiber, t));
    sim_free(t->sim);
    g_free(t);
    host_remove_dir(g_steal_pointer(&dir));
}

static void alone_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    uint64_t end = t->kind->size_bytes;
    uint8_t data[SECTOR] = {1};
    t->memory = map_memory_new(4 << 20);
    LayerOptions options = {.memory = t->memory};
    Layer *layer;
    assert_int_equal(layer_open(self, "/top", &options, &layer, NULL), 0);
    assert_int_equal(layer_load(self, layer, &t->top, NULL), 0);
    layer_drop(self, layer);
    refuse(self, t->top, MAX_BYTES,
           "/top cannot grow while its backing file is not open, since the cluster in which it "
           "ends shows what that has; open it with its backing file, or create it with the size "
           "that it is to have");
    assert_int_equal(node_write(self, t->top, guest_off(end - SECTOR), data, SECTOR, 0), 0);
    assert_int_equal(node_resize(self, t->top, MAX_BYTES, NULL), 0);
    close_image(self, t);
}

static void an_overlay_without_its_backing_file_does_not_hide_what_that_has(void **state)
{
    g_autofree char *dir = host_make_dir();
    Test *t = test_new(dir, &kinds[0], 1);
    assert_true(sim_run(t->sim, alone_fiber, t));
    sim_free(t->sim);
    g_free(t);
    host_remove_dir(g_steal_pointer(&dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_new_reads_as_zeros),
        cmocka_unit_test(a_power_cut_leaves_one_size_or_the_other),
        cmocka_unit_test(a_failed_resize_leaves_the_size_and_the_content),
        cmocka_unit_test(sizes_that_cannot_be_are_refused),
        cmocka_unit_test(an_overlay_without_its_backing_file_does_not_hide_what_that_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
