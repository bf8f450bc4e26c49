// SPDX-License-Identifier: LGPL-2.1-or-later
// The engine against a flat shadow and against QEMU: images of many kinds, random concurrent
// requests, then everything compared, flushed, checked with qemu-img and compared again after
// reopening. The seed of a failure is printed; TEST_SEED replays it.

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/fiber-sync.h"
#include "engine-fixture.h"

enum { DISK = 4 << 20, N_FIBERS = 16, MAX_REQUEST = 200 << 10 };

typedef struct Kind {
    const char *name, *options;
    const char *base;  // shell commands that make base.raw / base.qcow2 content
    bool with_backing; // raw backing base.raw
    bool snapshots;    // internal snapshots before and after first content
    bool compressed;   // content comes compressed
    unsigned n_ops;
    uint64_t map_memory;
    uint64_t disk;
} Kind;

static const Kind kinds[] = {
    {"default", "cluster_size=64k", NULL, false, false, false, 2000, 32 << 20, DISK},
    {"default with backing", "cluster_size=64k", NULL, true, false, false, 2000, 32 << 20, DISK},
    {"512 B clusters", "cluster_size=512", NULL, true, false, false, 1500, 32 << 20, DISK},
    {"4 KiB clusters, tiny memory", "cluster_size=4k", NULL, true, false, false, 2000, 64 << 10,
     DISK},
    {"2 MiB clusters", "cluster_size=2M", NULL, true, false, false, 1000, 32 << 20, DISK},
    {"1-bit refcounts", "cluster_size=4k,refcount_bits=1", NULL, true, false, false, 1500, 32 << 20,
     DISK},
    {"64-bit refcounts", "cluster_size=512,refcount_bits=64", NULL, true, false, false, 1500,
     32 << 20, DISK},
    {"extended L2", "cluster_size=64k,extended_l2=on", NULL, true, false, false, 2500, 32 << 20,
     DISK},
    {"extended L2, 16 KiB", "cluster_size=16k,extended_l2=on", NULL, true, true, false, 2500,
     32 << 20, DISK},
    {"snapshots", "cluster_size=4k", NULL, true, true, false, 2000, 32 << 20, DISK},
    {"compressed zlib", "cluster_size=64k", NULL, false, false, true, 1000, 32 << 20, DISK},
    {"compressed zstd, snapshots", "cluster_size=16k,compression_type=zstd", NULL, false, true,
     true, 1000, 32 << 20, DISK},
    {"compressed, extended L2", "cluster_size=64k,extended_l2=on", NULL, false, true, true, 1000,
     32 << 20, DISK},
    {"version 2", "compat=0.10,cluster_size=4k", NULL, true, true, false, 1500, 32 << 20, DISK},
    {"version 2, no backing", "compat=0.10,cluster_size=64k", NULL, false, false, false, 1500,
     32 << 20, DISK},
    {"odd size", "cluster_size=64k", NULL, true, false, false, 1500, 32 << 20, DISK - 512 * 77},
    {"lazy refcounts", "cluster_size=4k,lazy_refcounts=on", NULL, true, false, false, 1500,
     32 << 20, DISK},
};

typedef struct Run {
    const Kind *kind;
    EngineFixture f;
    uint64_t random, seed;
    uint8_t *shadow;
    Node *node;
    FiberWaitGroup fibers;
    unsigned n_left;
    int64_t busy[N_FIBERS][2]; // ranges in flight: requests never overlap
    int errors;
} Run;

typedef struct Worker {
    Run *run;
    unsigned index;
} Worker;

static bool overlaps(Run *run, int64_t from, int64_t to)
{
    for (unsigned i = 0; i < N_FIBERS; i++)
        if (run->busy[i][0] < to && from < run->busy[i][1])
            return true;
    return false;
}

static void one_request(Fiber *self, Run *run, unsigned index)
{
    uint64_t disk = run->kind->disk, off, len;
    int kind;
    do {
        kind = engine_random(&run->random, 100);
        len = 1 + engine_random(&run->random, engine_random(&run->random, 4) ? 8192 : MAX_REQUEST);
        off = engine_random(&run->random, disk);
        if (engine_random(&run->random, 2)) {
            off &= ~UINT64_C(4095);
            len = (len + 4095) & ~UINT64_C(4095);
        }
        len = MIN(len, (uint64_t)disk - off);
    } while (overlaps(run, off, off + len));
    run->busy[index][0] = off;
    run->busy[index][1] = off + len;
    g_autofree uint8_t *buf = g_malloc(len);
    NodeIoFlags flags = engine_random(&run->random, 50) == 0 ? NODE_IO_FUA : 0;
    int r;
    if (kind < 40) {
        memset(buf, 0xee, len);
        r = node_read(self, run->node, guest_off(off), buf, len);
        if (r == 0 && memcmp(buf, run->shadow + off, len))
            fail_msg("%s: wrong data at %#lx+%#lx, seed %lu", run->kind->name, off, len, run->seed);
    } else if (kind < 80) {
        memset(buf, 1 + engine_random(&run->random, 255), len);
        r = node_write(self, run->node, guest_off(off), buf, len, flags);
        memcpy(run->shadow + off, buf, len);
    } else if (kind < 90) {
        if (engine_random(&run->random, 2))
            flags |= NODE_IO_NO_UNMAP;
        r = node_zero(self, run->node, guest_off(off), len, flags);
        memset(run->shadow + off, 0, len);
    } else if (kind < 98) {
        r = node_discard(self, run->node, guest_off(off), len, flags);
        // What a discard leaves is the driver's choice: ask it.
        if (r == 0)
            r = node_read(self, run->node, guest_off(off), buf, len);
        for (uint64_t i = 0; r == 0 && i < len; i++)
            if (buf[i] && buf[i] != run->shadow[off + i])
                fail_msg("%s: a discard made up data at %#lx, seed %lu", run->kind->name, off + i,
                         run->seed);
        memcpy(run->shadow + off, buf, len);
    } else {
        r = node_flush(self, run->node);
    }
    if (r < 0)
        run->errors++;
    run->busy[index][0] = run->busy[index][1] = 0;
}

static void worker_fiber(Fiber *self, void *arg)
{
    Worker *w = arg;
    while (w->run->n_left) {
        w->run->n_left--;
        one_request(self, w->run, w->index);
        fiber_yield(self);
    }
    fiber_wait_group_done(&w->run->fibers);
}

static void compare_all(Fiber *self, Run *run, const char *when)
{
    g_autofree uint8_t *buf = g_malloc(run->kind->disk);
    assert_int_equal(node_read(self, run->node, guest_off(0), buf, run->kind->disk), 0);
    if (memcmp(buf, run->shadow, run->kind->disk))
        fail_msg("%s: content differs %s, seed %lu", run->kind->name, when, run->seed);
}

static Node *open_head(Fiber *self, Run *run, bool read_only)
{
    Node *backing = run->kind->with_backing ? engine_open_raw(self, &run->f, "base.raw") : NULL;
    return engine_open(self, &run->f, "disk.qcow2", NULL, read_only, backing);
}

static void check_outside(Run *run)
{
    engine_shell(&run->f, "qemu-img check -U disk.qcow2");
    g_autofree char *path = g_build_filename(run->f.dir, "shadow.raw", NULL);
    assert_true(g_file_set_contents(path, (char *)run->shadow, run->kind->disk, NULL));
    engine_shell(&run->f, "qemu-img compare -U -f raw -F qcow2 shadow.raw disk.qcow2");
}

static void run_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    run->node = open_head(self, run, false);
    assert_int_equal(node_read(self, run->node, guest_off(0), run->shadow, run->kind->disk), 0);
    check_outside(run); // what it reads is what QEMU reads
    for (unsigned round = 0; round < 3; round++) {
        Worker workers[N_FIBERS];
        run->n_left = run->kind->n_ops / 3;
        fiber_wait_group_add(&run->fibers, N_FIBERS);
        for (unsigned i = 0; i < N_FIBERS; i++) {
            workers[i] = (Worker){run, i};
            assert_int_equal(
                fiber_spawn(fiber_loop(self), "worker", worker_fiber, &workers[i], NULL), 0);
        }
        fiber_wait_group_wait(self, &run->fibers);
        assert_int_equal(run->errors, 0);
        compare_all(self, run, "after a round");
        assert_int_equal(node_flush(self, run->node), 0);
        // Leaks are allowed while it is open: frees become refcounts with a later write-back.
        engine_shell(&run->f, "qemu-img check -U disk.qcow2; test $? = 0 -o $? = 3");
        g_autofree char *path = g_build_filename(run->f.dir, "shadow.raw", NULL);
        assert_true(g_file_set_contents(path, (char *)run->shadow, run->kind->disk, NULL));
        engine_shell(&run->f, "qemu-img compare -U -f raw -F qcow2 shadow.raw disk.qcow2");
    }
    node_unref_close(self, run->node);
    check_outside(run);
    run->node = open_head(self, run, true);
    compare_all(self, run, "after reopening");
    node_unref_close(self, run->node);
    if (run->kind->snapshots) {
        Node *backing = run->kind->with_backing ? engine_open_raw(self, &run->f, "base.raw") : NULL;
        Node *old = engine_open(self, &run->f, "disk.qcow2", "one", true, backing);
        g_autofree uint8_t *buf = g_malloc(run->kind->disk);
        assert_int_equal(node_read(self, old, guest_off(0), buf, run->kind->disk), 0);
        g_autofree char *path = g_build_filename(run->f.dir, "one.raw", NULL), *want = NULL;
        assert_true(g_file_get_contents(path, &want, NULL, NULL));
        assert_memory_equal(buf, want, run->kind->disk);
        node_unref_close(self, old);
    }
}

static void make_image(Run *run)
{
    const Kind *k = run->kind;
    EngineFixture *f = &run->f;
    engine_shell(
        f,
        "head -c %d /dev/urandom > base.raw && truncate -s 3M base.raw && truncate -s %lu base.raw",
        2 << 20, k->disk);
    if (k->compressed) {
        engine_shell(f,
                     "(head -c 1M /dev/zero | tr '\\0' x; head -c 500k /dev/urandom; yes chain | "
                     "head -c 1M) > content.raw;"
                     "truncate -s %lu content.raw; qemu-img convert -c -f raw -O qcow2 -o %s "
                     "content.raw disk.qcow2",
                     k->disk, k->options);
    } else {
        engine_shell(f, "qemu-img create -q -f qcow2 -o %s %s disk.qcow2 %lu", k->options,
                     k->with_backing ? "-b base.raw -F raw" : "", k->disk);
        engine_shell(f, "qemu-io -f qcow2 -c 'write -P 7 100k 300k' -c 'write -z 500k 128k' -c "
                        "'write -P 9 2M 70k' "
                        "-c 'discard 128k 64k' disk.qcow2");
    }
    if (k->snapshots)
        engine_shell(f, "qemu-img snapshot -c one disk.qcow2 && qemu-io -f qcow2 -c 'write -P 3 "
                        "150k 20k' disk.qcow2 && "
                        "qemu-img snapshot -c two disk.qcow2 && qemu-img convert -f qcow2 -l one "
                        "-O raw disk.qcow2 one.raw");
}

static void test_kind(void **state)
{
    Run run = {.kind = *state};
    const char *given = getenv("TEST_SEED");
    run.seed = given ? strtoull(given, NULL, 0) : 1 + (uint64_t)(run.kind - kinds);
    run.random = run.seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    engine_fixture_init(&run.f, run.kind->map_memory);
    make_image(&run);
    run.shadow = g_malloc0(run.kind->disk);
    engine_run(run_fiber, &run);
    g_free(run.shadow);
    engine_fixture_done(&run.f);
}

int main(void)
{
    struct CMUnitTest tests[G_N_ELEMENTS(kinds)];
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        tests[i] = (struct CMUnitTest){
            .name = kinds[i].name, .test_func = test_kind, .initial_state = (void *)&kinds[i]};
    return _cmocka_run_group_tests("qcow2 engine", tests, G_N_ELEMENTS(tests), NULL, NULL);
}
