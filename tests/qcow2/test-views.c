// SPDX-License-Identifier: LGPL-2.1-or-later
// One image, two views: the head under random writes, zeroes, discards and flushes, while an
// internal snapshot of the same image is read and compared all along. What the snapshot shows never
// changes, though the two share clusters, tables, caches and pins. On real files made by qemu-img.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/fiber-sync.h"
#include "engine-fixture.h"

enum { DISK = 4 << 20, N_WRITERS = 6, N_READERS = 4, N_OPS = 1500, MAX_REQUEST = 100 << 10 };

typedef struct Kind {
    const char *name, *options;
    bool is_compressed;
    uint64_t map_memory;
} Kind;

static const Kind kinds[] = {
    {"4 KiB clusters", "cluster_size=4k", false, 8 << 20},
    {"64 KiB clusters", "cluster_size=64k", false, 8 << 20},
    {"512 B clusters, tiny memory", "cluster_size=512,refcount_bits=8", false, 64 << 10},
    {"extended L2", "cluster_size=16k,extended_l2=on", false, 8 << 20},
    {"compressed", "cluster_size=16k", true, 8 << 20},
    {"version 2", "compat=0.10,cluster_size=4k", false, 8 << 20},
};

typedef struct Run {
    const Kind *kind;
    EngineFixture f;
    uint64_t seed, random;
    Node *head, *snapshot;
    uint8_t *shadow;   // of the head
    uint8_t *original; // what the snapshot shows
    unsigned n_left, n_compared;
    FiberWaitGroup fibers;
} Run;

typedef struct Writer {
    Run *run;
    uint64_t start; // each has a part of the disk to itself
} Writer;

static void one_request(Fiber *self, Writer *w)
{
    Run *run = w->run;
    uint64_t part = DISK / N_WRITERS, kind = engine_random(&run->random, 100);
    uint64_t off = w->start + engine_random(&run->random, part);
    uint64_t len =
        1 + engine_random(&run->random, engine_random(&run->random, 3) ? 9000 : MAX_REQUEST);
    len = MIN(len, w->start + part - off);
    int r;
    g_autofree uint8_t *buf = g_malloc(len);
    if (kind < 55) {
        memset(buf, 1 + engine_random(&run->random, 255), len);
        r = node_write(self, run->head, guest_off(off), buf, len, 0);
        memcpy(run->shadow + off, buf, len);
    } else if (kind < 70) {
        r = node_zero(self, run->head, guest_off(off), len, 0);
        memset(run->shadow + off, 0, len);
    } else if (kind < 90) {
        r = node_discard(self, run->head, guest_off(off), len, 0);
        if (r == 0) // what it leaves is the driver's choice
            r = node_read(self, run->head, guest_off(off), run->shadow + off, len);
    } else {
        r = node_flush(self, run->head);
    }
    assert_int_equal(r, 0);
}

static void writer_fiber(Fiber *self, void *arg)
{
    Writer *w = arg;
    while (w->run->n_left) {
        w->run->n_left--;
        one_request(self, w);
        fiber_yield(self);
    }
    fiber_wait_group_done(&w->run->fibers);
}

static void reader_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    g_autofree uint8_t *buf = g_malloc(MAX_REQUEST);
    while (run->n_left || run->n_compared < 100) {
        uint64_t off = engine_random(&run->random, DISK);
        uint64_t len = 1 + engine_random(&run->random, MAX_REQUEST);
        len = MIN(len, DISK - off);
        assert_int_equal(node_read(self, run->snapshot, guest_off(off), buf, len), 0);
        if (memcmp(buf, run->original + off, len))
            fail_msg("%s: the snapshot changed at %#lx+%#lx, seed %lu", run->kind->name, off, len,
                     run->seed);
        run->n_compared++;
        fiber_yield(self);
    }
    fiber_wait_group_done(&run->fibers);
}

static void compare(Fiber *self, Run *run, Node *node, const uint8_t *want, const char *what)
{
    g_autofree uint8_t *buf = g_malloc(DISK);
    assert_int_equal(node_read(self, node, guest_off(0), buf, DISK), 0);
    if (memcmp(buf, want, DISK))
        fail_msg("%s: %s shows something else, seed %lu", run->kind->name, what, run->seed);
}

// Both views on one image.
static void open_views(Fiber *self, Run *run)
{
    g_autofree char *path = g_build_filename(run->f.dir, "disk.qcow2", NULL);
    g_autoptr(GError) error = NULL;
    Qcow2OpenOptions options = {.memory = run->f.memory};
    File *file;
    Qcow2Image *image = NULL;
    if (file_open(self, path, FILE_WRITABLE, &file, &error) < 0 ||
        qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &run->head, &error) < 0 ||
        qcow2_view_new(self, image, "one", &run->snapshot, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
}

static void run_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    Writer writers[N_WRITERS];
    open_views(self, run);
    compare(self, run, run->snapshot, run->original, "the snapshot at first");
    assert_int_equal(node_read(self, run->head, guest_off(0), run->shadow, DISK), 0);
    run->n_left = N_OPS;
    fiber_wait_group_add(&run->fibers, N_WRITERS + N_READERS);
    for (unsigned i = 0; i < N_WRITERS; i++) {
        writers[i] = (Writer){run, i * (uint64_t)(DISK / N_WRITERS)};
        assert_int_equal(fiber_spawn(fiber_loop(self), "writer", writer_fiber, &writers[i], NULL),
                         0);
    }
    for (unsigned i = 0; i < N_READERS; i++)
        assert_int_equal(fiber_spawn(fiber_loop(self), "reader", reader_fiber, run, NULL), 0);
    fiber_wait_group_wait(self, &run->fibers);
    compare(self, run, run->head, run->shadow, "the head");
    compare(self, run, run->snapshot, run->original, "the snapshot");
    // The head goes first: its image stays for the other.
    node_unref_close(self, run->head);
    compare(self, run, run->snapshot, run->original, "the snapshot by itself");
    node_unref_close(self, run->snapshot);
}

static void make_image(Run *run)
{
    engine_shell(&run->f,
                 "(head -c 700k /dev/urandom; yes chain | head -c 600k; head -c 300k /dev/zero; "
                 "head -c 500k /dev/urandom) > content.raw; truncate -s %d content.raw; "
                 "qemu-img convert %s -f raw -O qcow2 -o %s content.raw disk.qcow2 && "
                 "qemu-img snapshot -c one disk.qcow2 && "
                 "qemu-io -f qcow2 -c 'write -P 3 150k 20k' disk.qcow2",
                 DISK, run->kind->is_compressed ? "-c" : "", run->kind->options);
    g_autofree char *path = g_build_filename(run->f.dir, "content.raw", NULL);
    assert_true(g_file_get_contents(path, (char **)&run->original, NULL, NULL));
}

static void snapshot_stays_while_the_head_changes(void **state)
{
    Run run = {.kind = *state};
    const char *given = getenv("TEST_SEED");
    run.seed = given ? strtoull(given, NULL, 0) : 1 + (uint64_t)(run.kind - kinds);
    run.random = run.seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    engine_fixture_init(&run.f, run.kind->map_memory);
    make_image(&run);
    run.shadow = g_malloc0(DISK);
    engine_run(run_fiber, &run);
    engine_shell(&run.f, "qemu-img check disk.qcow2");
    g_autofree char *path = g_build_filename(run.f.dir, "shadow.raw", NULL);
    assert_true(g_file_set_contents(path, (char *)run.shadow, DISK, NULL));
    engine_shell(&run.f, "qemu-img compare -f raw -F qcow2 shadow.raw disk.qcow2 && "
                         "qemu-img convert -f qcow2 -l one -O raw disk.qcow2 one.raw && "
                         "cmp one.raw content.raw");
    g_free(run.shadow);
    g_free(run.original);
    engine_fixture_done(&run.f);
}

int main(void)
{
    struct CMUnitTest tests[G_N_ELEMENTS(kinds)];
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        tests[i] = (struct CMUnitTest){.name = kinds[i].name,
                                       .test_func = snapshot_stays_while_the_head_changes,
                                       .initial_state = (void *)&kinds[i]};
    return _cmocka_run_group_tests("qcow2 views", tests, G_N_ELEMENTS(tests), NULL, NULL);
}
