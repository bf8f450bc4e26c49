// SPDX-License-Identifier: LGPL-2.1-or-later
// The budget for metadata: one for all images and loops, dirty slices included. In the simulation,
// whose time is virtual, on images made by qemu-img.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/chain.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/raw.h"
#include "chain-core/sim.h"
#include "engine-fixture.h"
#include "qcow2/cow-buffers.h"
#include "qcow2/table-cache.h"

static uint64_t seed = 31;

typedef struct Test {
    EngineFixture f;
    Sim *sim;
    Loop *loops[2];
    FiberWaitGroup running;
    uint64_t most_dirty, most_used, most_steps;
} Test;

static char *path_of(const Test *t, const char *name)
{
    return g_build_filename(t->f.dir, name, NULL);
}

static void test_init(Test *t, uint64_t memory_bytes)
{
    *t = (Test){0};
    engine_fixture_init(&t->f, memory_bytes);
    t->sim = sim_new(&(SimConfig){.seed = seed});
    for (int i = 0; i < 2; i++)
        t->loops[i] = sim_loop_new(t->sim);
}

static void import(Test *t, const char *name)
{
    g_autofree char *path = path_of(t, name);
    assert_int_equal(sim_import_file(t->sim, path, path), 0);
}

static void test_done(Test *t)
{
    assert_int_equal(map_memory_used(t->f.memory, MAP_MEMORY_SLICES), 0);
    assert_int_equal(map_memory_used(t->f.memory, MAP_MEMORY_REGIONS), 0);
    assert_int_equal(map_memory_dirty(t->f.memory), 0);
    assert_int_equal(map_memory_n_dirty_images(t->f.memory), 0);
    sim_free(t->sim);
    engine_fixture_done(&t->f);
}

static TableCacheStats cache_stats(Fiber *self, Test *t)
{
    TableCache *cache = table_cache_ref(fiber_loop(self), t->f.memory);
    TableCacheStats stats = table_cache_stats(cache);
    table_cache_unref(self, cache);
    return stats;
}

static void look(Fiber *self, Test *t)
{
    TableCacheStats stats = cache_stats(self, t);
    t->most_dirty = MAX(t->most_dirty, map_memory_dirty(t->f.memory));
    t->most_used = MAX(t->most_used, map_memory_used(t->f.memory, MAP_MEMORY_SLICES));
    t->most_steps = MAX(t->most_steps, stats.most_steps);
}

// -- many images ----------------------------------------------------------------------------------

enum { N_IMAGES = 30, N_WRITES = 100, MEMORY = 2 << 20 };

typedef struct Disk {
    Test *t;
    Node *node;
    unsigned first; // write of this fiber
} Disk;

// Each write touches a slice of its own.
static void write_apart(Fiber *self, void *arg)
{
    Disk *disk = arg;
    uint8_t data[512];
    for (unsigned i = disk->first; i < N_WRITES; i += 2) {
        memset(data, (int)i + 1, sizeof data);
        uint64_t off = (uint64_t)i * (32 << 20);
        assert_int_equal(node_write(self, disk->node, guest_off(off), data, sizeof data, 0), 0);
        look(self, disk->t);
    }
    fiber_wait_group_done(&disk->t->running);
}

static void read_back(Fiber *self, Node *node)
{
    uint8_t data[512];
    for (unsigned i = 0; i < N_WRITES; i++) {
        uint64_t off = (uint64_t)i * (32 << 20);
        assert_int_equal(node_read(self, node, guest_off(off), data, sizeof data), 0);
        assert_int_equal(data[0], i + 1);
        assert_int_equal(data[511], i + 1);
    }
}

static void many_images(Fiber *self, void *arg)
{
    Test *t = arg;
    Disk disks[2 * N_IMAGES];
    for (unsigned i = 0; i < N_IMAGES; i++) {
        g_autofree char *name = g_strdup_printf("%u.qcow2", i);
        Node *node = engine_open(self, &t->f, name, NULL, false, NULL);
        for (unsigned k = 0; k < 2; k++)
            disks[2 * i + k] = (Disk){.t = t, .node = node, .first = k};
    }
    fiber_wait_group_add(&t->running, 2 * N_IMAGES);
    for (unsigned i = 0; i < 2 * N_IMAGES; i++)
        assert_int_equal(fiber_spawn(fiber_loop(self), "write", write_apart, &disks[i], NULL), 0);
    fiber_wait_group_wait(self, &t->running);
    for (unsigned i = 0; i < N_IMAGES; i++) {
        read_back(self, disks[2 * i].node);
        node_unref_close(self, disks[2 * i].node);
    }
}

static void dirty_tables_of_many_images_stay_in_one_budget(void **state)
{
    Test t;
    test_init(&t, MEMORY);
    engine_shell(&t.f,
                 "qemu-img create -q -f qcow2 0.qcow2 64G && "
                 "for i in $(seq %u); do cp 0.qcow2 $i.qcow2; done",
                 N_IMAGES - 1);
    for (unsigned i = 0; i < N_IMAGES; i++) {
        g_autofree char *name = g_strdup_printf("%u.qcow2", i);
        import(&t, name);
    }
    assert_true(sim_run(t.sim, many_images, &t));
    print_message("# dirty %" G_GUINT64_FORMAT ", slices %" G_GUINT64_FORMAT
                  " bytes; %" G_GUINT64_FORMAT " steps for a miss\n",
                  t.most_dirty, t.most_used, t.most_steps);
    // 3,000 slices of 4 KiB were changed: 12 MiB. The limit for what is dirty is a quarter.
    assert_true(t.most_dirty > MEMORY / 8);
    assert_true(t.most_dirty <= MEMORY / 2);
    assert_true(t.most_used <= MEMORY + MEMORY / 4);
    assert_in_range(t.most_steps, 1, 64);
    test_done(&t);
}

// -- buffers for copy-on-write --------------------------------------------------------------------

enum { N_COPIES = 16, CLUSTER = 64 << 10 };

// Of a cluster that an internal snapshot shares, so that all of it is copied.
static void copy_one(Fiber *self, void *arg)
{
    Disk *disk = arg;
    uint8_t data[512] = {1};
    GuestOff off = guest_off((uint64_t)disk->first * CLUSTER + 4096);
    assert_int_equal(node_write(self, disk->node, off, data, sizeof data, 0), 0);
    fiber_wait_group_done(&disk->t->running);
}

static size_t kept_bytes(Fiber *self)
{
    CowBuffers *buffers = cow_buffers_ref(fiber_loop(self));
    size_t bytes = cow_buffers_kept_bytes(buffers);
    cow_buffers_unref(buffers);
    return bytes;
}

static void copy_in_many_images(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *nodes[N_IMAGES];
    size_t after_first = 0;
    for (unsigned i = 0; i < N_IMAGES; i++) {
        g_autofree char *name = g_strdup_printf("%u.qcow2", i);
        Disk disks[N_COPIES];
        nodes[i] = engine_open(self, &t->f, name, NULL, false, NULL);
        fiber_wait_group_add(&t->running, N_COPIES);
        for (unsigned k = 0; k < N_COPIES; k++) {
            disks[k] = (Disk){.t = t, .node = nodes[i], .first = k};
            assert_int_equal(fiber_spawn(fiber_loop(self), "copy", copy_one, &disks[k], NULL), 0);
        }
        fiber_wait_group_wait(self, &t->running);
        if (i == 0)
            after_first = kept_bytes(self);
    }
    assert_in_range(after_first, CLUSTER, N_COPIES * CLUSTER);
    assert_int_equal(kept_bytes(self), after_first);
    for (unsigned i = 0; i < N_IMAGES; i++)
        node_unref_close(self, nodes[i]);
    assert_int_equal(kept_bytes(self), 0);
}

static void many_images_keep_no_more_buffers_than_one(void **state)
{
    Test t;
    test_init(&t, MEMORY);
    engine_shell(&t.f,
                 "qemu-img create -q -f qcow2 0.qcow2 1M && "
                 "qemu-io -c 'write -q -P 7 0 1M' 0.qcow2 && qemu-img snapshot -c s 0.qcow2 && "
                 "for i in $(seq %u); do cp 0.qcow2 $i.qcow2; done",
                 N_IMAGES - 1);
    for (unsigned i = 0; i < N_IMAGES; i++) {
        g_autofree char *name = g_strdup_printf("%u.qcow2", i);
        import(&t, name);
    }
    assert_true(sim_run(t.sim, copy_in_many_images, &t));
    test_done(&t);
}

// -- an image that cannot be written --------------------------------------------------------------

typedef struct FailWrites {
    SimHook hook;
    const char *path;
} FailWrites;

static int fail_writes(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                       uint64_t len)
{
    FailWrites *fail = (FailWrites *)hook;
    // What the guest wrote can be written, tables cannot.
    bool is_table = op == SIM_OP_WRITE && len % 4096 == 0;
    return is_table && g_str_equal(path, fail->path) ? -ENOSPC : 0;
}

static void one_fails(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *bad = engine_open(self, &t->f, "bad.qcow2", NULL, false, NULL);
    Disk disk = {.t = t, .node = engine_open(self, &t->f, "good.qcow2", NULL, false, NULL)};
    uint8_t data[512] = {1};
    int r = 0;
    for (unsigned i = 0; i < 1000 && r == 0; i++)
        r = node_write(self, bad, guest_off((uint64_t)i * (32 << 20)), data, sizeof data, 0);
    assert_int_equal(r, -ENOSPC); // in the end its writes fail, with its part of the budget used
    fiber_wait_group_add(&t->running, 2);
    write_apart(self, &disk);
    disk.first = 1;
    write_apart(self, &disk);
    read_back(self, disk.node);
    assert_int_equal(node_flush(self, disk.node), 0);
    look(self, t);
    assert_true(t->most_used <= (256 << 10) * 5 / 4);
    node_unref_close(self, disk.node);
    node_unref_close(self, bad);
}

static void an_image_that_cannot_be_written_does_not_stop_others(void **state)
{
    Test t;
    test_init(&t, 256 << 10);
    engine_shell(&t.f, "qemu-img create -q -f qcow2 bad.qcow2 64G && cp bad.qcow2 good.qcow2");
    import(&t, "bad.qcow2");
    import(&t, "good.qcow2");
    g_autofree char *path = path_of(&t, "bad.qcow2");
    FailWrites fail = {.hook = {fail_writes}, .path = path};
    sim_set_hook(t.sim, &fail.hook);
    assert_true(sim_run(t.sim, one_fails, &t));
    test_done(&t);
}

// -- two loops ------------------------------------------------------------------------------------

enum { SMALL_DISK = 16 << 20, SLICE_RANGE = 32 << 10 }; // 512-byte clusters: 512 slices

typedef struct Reader {
    Test *t;
    const char *name;
    FiberFn *fn;
    LoopCall call;
    Loop *loop;
    bool is_ready, is_over; // told by one, awaited by the other; all on one thread
    struct Reader *other;
} Reader;

static void start_reader(LoopCall *call)
{
    Reader *reader = (Reader *)((char *)call - offsetof(Reader, call));
    assert_int_equal(fiber_spawn(reader->loop, "reader", reader->fn, reader, NULL), 0);
}

static void read_slices(Fiber *self, Node *node, unsigned n)
{
    uint8_t data[512];
    for (unsigned i = 0; i < n; i++) {
        GuestOff off = guest_off((uint64_t)i * SLICE_RANGE);
        assert_int_equal(node_read(self, node, off, data, sizeof data), 0);
    }
}

static void await(Fiber *self, const bool *flag)
{
    while (!*flag)
        assert_int_equal(fiber_sleep(self, 1000000), 0);
}

// Reads all of its disk, then is idle while the other works.
static void idle_reader(Fiber *self, void *arg)
{
    Reader *own = arg;
    Node *node = engine_open(self, &own->t->f, own->name, NULL, true, NULL);
    read_slices(self, node, SMALL_DISK / SLICE_RANGE);
    assert_true(cache_stats(self, own->t).n_slices > 300);
    own->is_ready = true;
    await(self, &own->other->is_over);
    node_unref_close(self, node);
}

static void busy_reader(Fiber *self, void *arg)
{
    Reader *own = arg;
    Node *node = engine_open(self, &own->t->f, own->name, NULL, true, NULL);
    await(self, &own->other->is_ready);
    for (int round = 0; round < 100; round++) {
        read_slices(self, node, SMALL_DISK / SLICE_RANGE);
        assert_int_equal(fiber_sleep(self, 100000000), 0);
    }
    uint64_t n_misses = cache_stats(self, own->t).n_misses;
    read_slices(self, node, SMALL_DISK / SLICE_RANGE);
    assert_int_equal(cache_stats(self, own->t).n_misses, n_misses);
    own->is_over = true;
    node_unref_close(self, node);
}

// Has little, and uses it four times a second.
static void modest_reader(Fiber *self, void *arg)
{
    Reader *own = arg;
    Node *node = engine_open(self, &own->t->f, own->name, NULL, true, NULL);
    read_slices(self, node, 40);
    uint64_t n_misses = cache_stats(self, own->t).n_misses;
    own->is_ready = true;
    while (!own->other->is_over) {
        read_slices(self, node, 40);
        assert_int_equal(fiber_sleep(self, 250000000), 0);
    }
    assert_int_equal(cache_stats(self, own->t).n_misses, n_misses);
    node_unref_close(self, node);
}

// Reads three times what fits.
static void greedy_reader(Fiber *self, void *arg)
{
    Reader *own = arg;
    Node *node = engine_open(self, &own->t->f, own->name, NULL, true, NULL);
    await(self, &own->other->is_ready);
    for (int round = 0; round < 50; round++) {
        read_slices(self, node, SMALL_DISK / SLICE_RANGE);
        assert_int_equal(fiber_sleep(self, 100000000), 0);
    }
    own->is_over = true;
    node_unref_close(self, node);
}

// Changes slices until an eighth of the budget is dirty, where write-backs begin.
static void writer_beside(Fiber *self, void *arg)
{
    Reader *own = arg;
    Node *node = engine_open(self, &own->t->f, own->name, NULL, false, NULL);
    await(self, &own->other->is_ready);
    for (unsigned i = 0; i < 400; i++) {
        GuestOff off = guest_off((uint64_t)i * SLICE_RANGE);
        assert_int_equal(node_discard(self, node, off, 512, 0), 0);
        own->t->most_dirty = MAX(own->t->most_dirty, map_memory_dirty(own->t->f.memory));
        assert_int_equal(fiber_sleep(self, 10000000), 0);
    }
    assert_true(own->t->most_dirty >= map_memory_limit(own->t->f.memory) / 8);
    own->is_over = true;
    node_unref_close(self, node);
}

// Has most of what is used, and still fits.
static void large_reader(Fiber *self, void *arg)
{
    Reader *own = arg;
    Node *node = engine_open(self, &own->t->f, own->name, NULL, true, NULL);
    read_slices(self, node, SMALL_DISK / SLICE_RANGE);
    uint64_t n_misses = cache_stats(self, own->t).n_misses;
    own->is_ready = true;
    await(self, &own->other->is_over);
    read_slices(self, node, SMALL_DISK / SLICE_RANGE);
    assert_int_equal(cache_stats(self, own->t).n_misses, n_misses);
    node_unref_close(self, node);
}

static void start_both(Fiber *self, void *arg)
{
    Reader *readers = arg;
    for (int i = 0; i < 2; i++) {
        readers[i].call.fn = start_reader;
        readers[i].loop = readers[i].t->loops[i];
        readers[i].other = &readers[!i];
        loop_post(readers[i].loop, &readers[i].call);
    }
}

static void read_on_two_loops(uint64_t memory_bytes, FiberFn *first, FiberFn *second)
{
    Test t;
    test_init(&t, memory_bytes);
    engine_shell(&t.f,
                 "qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata "
                 "a.qcow2 %u && cp a.qcow2 b.qcow2",
                 SMALL_DISK);
    import(&t, "a.qcow2");
    import(&t, "b.qcow2");
    Reader readers[2] = {{.t = &t, .name = "a.qcow2", .fn = first},
                         {.t = &t, .name = "b.qcow2", .fn = second}};
    assert_true(sim_run(t.sim, start_both, readers));
    test_done(&t);
}

static void an_idle_loop_gives_its_slices_to_a_busy_one(void **state)
{
    read_on_two_loops(512 << 10, idle_reader, busy_reader);
}

static void a_busy_loop_does_not_empty_the_cache_of_one_that_uses_little(void **state)
{
    read_on_two_loops(128 << 10, modest_reader, greedy_reader);
}

static void what_is_dirty_on_one_loop_takes_no_slices_from_another(void **state)
{
    read_on_two_loops(768 << 10, large_reader, writer_beside);
}

// -- fetching ahead -------------------------------------------------------------------------------

static uint64_t now_ns(Fiber *self)
{
    assert_int_equal(fiber_sleep(self, 1), 0); // the loop looks at its clock
    return loop_now_ns(fiber_loop(self));
}

static void cold_region(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *top = engine_open(self, &t->f, "top.qcow2", NULL, true, NULL);
    Node *base = engine_open(self, &t->f, "base.qcow2", NULL, true, NULL);
    chain_set_backing(self, top, base, t->f.memory);
    uint8_t data[512];
    uint64_t start_ns = now_ns(self);
    assert_int_equal(node_read(self, top, guest_off(1 << 20), data, sizeof data), 0);
    uint64_t took_us = (now_ns(self) - start_ns) / 1000;
    // 256 tables, each read takes up to 100 us: 12.8 ms one after the other.
    print_message("# %" G_GUINT64_FORMAT " us\n", took_us);
    assert_in_range(cache_stats(self, t).n_misses, 256, 300);
    assert_true(took_us < 1500);
    node_unref_close(self, base);
    node_unref_close(self, top);
}

static void the_tables_of_a_cold_region_are_read_at_once(void **state)
{
    Test t;
    test_init(&t, 8 << 20);
    engine_shell(&t.f,
                 "qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata "
                 "base.qcow2 %u && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2",
                 SMALL_DISK);
    import(&t, "base.qcow2");
    import(&t, "top.qcow2");
    assert_true(sim_run(t.sim, cold_region, &t));
    test_done(&t);
}

int main(void)
{
    if (getenv("CHAIND_TEST_SEED"))
        seed = strtoull(getenv("CHAIND_TEST_SEED"), NULL, 0);
    print_message("# seed %" G_GUINT64_FORMAT " (CHAIND_TEST_SEED)\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dirty_tables_of_many_images_stay_in_one_budget),
        cmocka_unit_test(many_images_keep_no_more_buffers_than_one),
        cmocka_unit_test(an_image_that_cannot_be_written_does_not_stop_others),
        cmocka_unit_test(an_idle_loop_gives_its_slices_to_a_busy_one),
        cmocka_unit_test(a_busy_loop_does_not_empty_the_cache_of_one_that_uses_little),
        cmocka_unit_test(what_is_dirty_on_one_loop_takes_no_slices_from_another),
        cmocka_unit_test(the_tables_of_a_cold_region_are_read_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
