// SPDX-License-Identifier: LGPL-2.1-or-later
// Internal snapshots made and deleted while the head is written, zeroed and discarded: each shows
// what the disk was at its moment, also beside the live head, and qemu-img finds the image clean.
// Most of it on real files, with images and some snapshots of qemu-img's.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/sim.h"
#include "engine-fixture.h"
#include "format/qcow2-snapshot.h"

enum { DISK = 4 << 20, N_WRITERS = 4, N_CHANGES = 14, MAX_KEPT = 4, MAX_REQUEST = 100 << 10 };

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

typedef struct Kept {
    char name[32];
    uint8_t *content;
} Kept;

typedef struct Run {
    const Kind *kind;
    EngineFixture f;
    uint64_t seed, random;
    Node *head;
    Port port;
    uint8_t *shadow; // of the head
    Kept kept[MAX_KEPT];
    unsigned n_kept, n_made;
    bool is_over;
    FiberWaitGroup fibers;
} Run;

typedef struct Writer {
    Run *run;
    uint64_t start; // each has a part of the disk to itself
} Writer;

static uint64_t pick(Run *run, uint64_t bound)
{
    return engine_random(&run->random, bound);
}

// Disk and shadow change together, as a drain sees it.
static void one_request(Fiber *self, Writer *w)
{
    Run *run = w->run;
    uint64_t part = DISK / N_WRITERS, kind = pick(run, 100);
    uint64_t off = w->start + pick(run, part);
    uint64_t len = 1 + pick(run, pick(run, 3) ? 9000 : MAX_REQUEST);
    len = MIN(len, w->start + part - off);
    g_autofree uint8_t *buf = g_malloc(len);
    int r;
    RequestKind request = kind < 60   ? REQUEST_WRITE
                          : kind < 72 ? REQUEST_ZERO
                          : kind < 90 ? REQUEST_DISCARD
                                      : REQUEST_FLUSH;
    Node *node = port_enter(self, &run->port, request);
    if (kind < 60) {
        memset(buf, 1 + pick(run, 255), len);
        r = node_write(self, node, guest_off(off), buf, len, kind < 5 ? NODE_IO_FUA : 0);
        memcpy(run->shadow + off, buf, len);
    } else if (kind < 72) {
        r = node_zero(self, node, guest_off(off), len, 0);
        memset(run->shadow + off, 0, len);
    } else if (kind < 90) {
        r = node_discard(self, node, guest_off(off), len, 0);
        if (r == 0) // what it leaves is the driver's choice
            r = node_read(self, node, guest_off(off), run->shadow + off, len);
    } else {
        r = node_flush(self, node);
    }
    port_leave(&run->port, request);
    assert_int_equal(r, 0);
}

static void writer_fiber(Fiber *self, void *arg)
{
    Writer *w = arg;
    while (!w->run->is_over) {
        one_request(self, w);
        fiber_yield(self);
    }
    fiber_wait_group_done(&w->run->fibers);
}

static void compare(Fiber *self, Run *run, Node *node, const uint8_t *want, const char *what)
{
    g_autofree uint8_t *buf = g_malloc(DISK);
    assert_int_equal(node_read(self, node, guest_off(0), buf, DISK), 0);
    for (uint64_t i = 0; i < DISK; i++)
        if (buf[i] != want[i])
            fail_msg("%s: %s shows something else at %#lx, seed %lu", run->kind->name, what, i,
                     run->seed);
}

// What is not there yet, and does not fit beside what is.
static void refuse_another(Fiber *self, Run *run, Qcow2NewSnapshot *s)
{
    g_autofree char *long_name = g_strnfill(UINT16_MAX + 1, 'x');
    for (unsigned i = 0; i < run->n_kept; i++)
        assert_int_equal(qcow2_snapshot_prepare_another(self, s, run->kept[i].name, NULL), -EEXIST);
    assert_int_equal(qcow2_snapshot_prepare_another(self, s, long_name, NULL), -EINVAL);
}

static Kept *new_kept(Run *run)
{
    Kept *k = &run->kept[run->n_kept++];
    g_snprintf(k->name, sizeof(k->name), "made-%u", run->n_made++);
    return k;
}

// As many as there is room for, or one.
static void make(Fiber *self, Run *run)
{
    unsigned first = run->n_kept, n = pick(run, 3) ? 1 : MAX_KEPT - first;
    Qcow2NewSnapshot *s;
    Qcow2SnapshotInfo info;
    g_autoptr(GError) error = NULL;
    int r = qcow2_snapshot_prepare(self, run->head, new_kept(run)->name, &s, &error);
    for (unsigned i = 1; r == 0 && i < n; i++) {
        refuse_another(self, run, s);
        r = qcow2_snapshot_prepare_another(self, s, new_kept(run)->name, &error);
    }
    if (r < 0)
        fail_msg("%s", error->message);
    node_drain_begin(self, run->head, REQUESTS_THAT_WRITE);
    qcow2_snapshot_take(s);
    for (unsigned i = 0; i < n; i++)
        run->kept[first + i].content = g_memdup2(run->shadow, DISK);
    node_drain_end(run->head, REQUESTS_THAT_WRITE);
    if (qcow2_snapshot_finish(self, s, &info, &error) < 0)
        fail_msg("%s", error->message);
    assert_string_equal(info.name, run->kept[first].name);
    assert_int_equal(info.size_bytes, DISK);
    qcow2_snapshot_info_clear(&info);
}

static void delete (Fiber *self, Run *run, unsigned i)
{
    g_autoptr(GError) error = NULL;
    if (qcow2_snapshot_delete(self, run->head, NULL, run->kept[i].name, NULL, &error) < 0)
        fail_msg("%s", error->message);
    g_free(run->kept[i].content);
    run->kept[i] = run->kept[--run->n_kept];
}

// Beside the live head; and in use it stays.
static void look_at(Fiber *self, Run *run, unsigned i)
{
    g_autoptr(GError) error = NULL;
    Node *view;
    if (qcow2_snapshot_view_new(self, run->head, run->kept[i].name, &view, &error) < 0)
        fail_msg("%s", error->message);
    compare(self, run, view, run->kept[i].content, run->kept[i].name);
    assert_int_equal(qcow2_snapshot_delete(self, run->head, NULL, run->kept[i].name, NULL, &error),
                     -EBUSY);
    assert_non_null(strstr(error->message, "is open"));
    compare(self, run, view, run->kept[i].content, run->kept[i].name);
    node_unref_close(self, view);
}

static void run_fiber(Fiber *self, void *arg)
{
    Run *run = arg;
    Writer writers[N_WRITERS];
    run->head = engine_open(self, &run->f, "disk.qcow2", NULL, false, NULL);
    port_init(&run->port, run->head, "test");
    assert_int_equal(node_read(self, run->head, guest_off(0), run->shadow, DISK), 0);
    fiber_wait_group_add(&run->fibers, N_WRITERS);
    for (unsigned i = 0; i < N_WRITERS; i++) {
        writers[i] = (Writer){run, i * (uint64_t)(DISK / N_WRITERS)};
        assert_int_equal(fiber_spawn(fiber_loop(self), "writer", writer_fiber, &writers[i], NULL),
                         0);
    }
    for (unsigned i = 0; i < N_CHANGES; i++) {
        if (run->n_kept == MAX_KEPT || (run->n_kept && pick(run, 3) == 0))
            delete (self, run, pick(run, run->n_kept));
        else
            make(self, run);
        if (run->n_kept)
            look_at(self, run, pick(run, run->n_kept));
    }
    run->is_over = true;
    fiber_wait_group_wait(self, &run->fibers);
    compare(self, run, run->head, run->shadow, "the head");
    port_done(self, &run->port);
    node_unref_close(self, run->head);
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
    Kept *k = &run->kept[run->n_kept++];
    g_strlcpy(k->name, "one", sizeof(k->name));
    assert_true(g_file_get_contents(path, (char **)&k->content, NULL, NULL));
}

static void check_with_qemu(Run *run, const char *name, const uint8_t *content)
{
    g_autofree char *path = g_build_filename(run->f.dir, "wanted.raw", NULL);
    assert_true(g_file_set_contents(path, (const char *)content, DISK, NULL));
    engine_shell(&run->f,
                 "qemu-img convert -f qcow2 %s%s -O raw disk.qcow2 found.raw && "
                 "cmp found.raw wanted.raw",
                 name ? "-l " : "", name ? name : "");
}

static void snapshots_keep_their_moment_under_load(void **state)
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
    check_with_qemu(&run, NULL, run.shadow);
    for (unsigned i = 0; i < run.n_kept; i++)
        check_with_qemu(&run, run.kept[i].name, run.kept[i].content);
    // What qemu-img does with them leaves it clean, too.
    for (unsigned i = 0; i < run.n_kept; i++) {
        engine_shell(&run.f, "qemu-img snapshot -d %s disk.qcow2 && qemu-img check disk.qcow2",
                     run.kept[i].name);
        g_free(run.kept[i].content);
    }
    check_with_qemu(&run, NULL, run.shadow);
    g_free(run.shadow);
    engine_fixture_done(&run.f);
}

// --- what other programs left --------------------------------------------------------------------

typedef struct Foreign {
    EngineFixture f;
    Qcow2Snapshot entry;
} Foreign;

enum { ROOM = 64 << 10 };

// The first entry of the table in the file at `path`; and the file's content, owned.
static uint8_t *load_entry(const char *path, Qcow2Snapshot *ret_entry, gsize *ret_bytes,
                           uint64_t *ret_off)
{
    uint8_t *data;
    g_autoptr(GError) error = NULL;
    Qcow2Header h;
    assert_true(g_file_get_contents(path, (char **)&data, ret_bytes, NULL));
    data = g_realloc(data, *ret_bytes + ROOM); // the table may end with the file
    memset(data + *ret_bytes, 0, ROOM);
    *ret_bytes += ROOM;
    assert_int_equal(qcow2_header_decode(data, *ret_bytes, *ret_bytes, &h, &error), 0);
    *ret_off = h.snapshot_table.v;
    assert_true(qcow2_snapshot_decode(data + *ret_off, *ret_bytes - *ret_off, h.size_bytes,
                                      ret_entry, &error) > 0);
    qcow2_header_clear(&h);
    return data;
}

static void change_fiber(Fiber *self, void *arg)
{
    Foreign *t = arg;
    g_autoptr(GError) error = NULL;
    Node *head = engine_open(self, &t->f, "disk.qcow2", NULL, false, NULL);
    if (qcow2_snapshot_create(self, head, "two", NULL, &error) < 0 ||
        qcow2_snapshot_create(self, head, "three", NULL, &error) < 0 ||
        qcow2_snapshot_delete(self, head, "2", "two", NULL, &error) < 0)
        fail_msg("%s", error->message);
    assert_int_equal(qcow2_snapshot_delete(self, head, "2", NULL, NULL, NULL), -ENOENT);
    assert_int_equal(qcow2_snapshot_delete(self, head, "1", "three", NULL, NULL), -ENOENT);
    assert_int_equal(qcow2_snapshot_create(self, head, "three", NULL, NULL), -EEXIST);
    node_unref_close(self, head);
}

// A machine's state, its clocks, and fields that nobody knows yet.
static void what_an_entry_says_is_kept(void **state)
{
    static const char future[] = "of a later version";
    Foreign t = {0};
    gsize bytes;
    uint64_t off;
    engine_fixture_init(&t.f, 8 << 20);
    engine_shell(&t.f, "qemu-img create -q -f qcow2 disk.qcow2 4M && "
                       "qemu-io -f qcow2 -c 'write -P 7 1M 64k' disk.qcow2 && "
                       "qemu-img snapshot -c one disk.qcow2");
    g_autofree char *path = g_build_filename(t.f.dir, "disk.qcow2", NULL);
    g_autofree uint8_t *data = load_entry(path, &t.entry, &bytes, &off);
    t.entry.vm_clock_ns = UINT64_C(123456789012345);
    t.entry.vm_state_bytes = UINT64_C(5) << 32;
    t.entry.icount = 99;
    t.entry.extra = g_memdup2(future, sizeof(future));
    t.entry.extra_bytes = sizeof(future);
    qcow2_snapshot_encode(&t.entry, data + off);
    assert_true(g_file_set_contents(path, (const char *)data, (gssize)bytes, NULL));
    engine_run(change_fiber, &t);
    Qcow2Snapshot kept;
    g_free(load_entry(path, &kept, &bytes, &off));
    assert_string_equal(kept.name, "one");
    assert_int_equal(kept.vm_clock_ns, t.entry.vm_clock_ns);
    assert_int_equal(kept.vm_state_bytes, t.entry.vm_state_bytes);
    assert_int_equal(kept.icount, 99);
    assert_int_equal(kept.date_sec, t.entry.date_sec);
    assert_int_equal(kept.extra_bytes, sizeof(future));
    assert_memory_equal(kept.extra, future, sizeof(future));
    engine_shell(&t.f, "qemu-img check disk.qcow2 && qemu-img snapshot -l disk.qcow2 | "
                       "awk 'NR > 2 {print $1, $2}' | tr '\\n' ';' | grep -x '1 one;3 three;'");
    qcow2_snapshot_clear(&t.entry);
    qcow2_snapshot_clear(&kept);
    engine_fixture_done(&t.f);
}

static void sizes_fiber(Fiber *self, void *arg)
{
    EngineFixture *f = arg;
    g_autoptr(GError) error = NULL;
    Qcow2SnapshotInfo info;
    uint8_t byte;
    Node *view = NULL, *head = engine_open(self, f, "disk.qcow2", NULL, false, NULL);
    if (qcow2_snapshot_create(self, head, "large", &info, &error) < 0 ||
        qcow2_snapshot_view_new(self, head, "small", &view, &error) < 0)
        fail_msg("%s", error->message);
    assert_int_equal(info.size_bytes, 300 << 20);
    assert_int_equal(view->size_bytes, 1 << 20);
    assert_int_equal(node_read(self, view, guest_off(1000), &byte, 1), 0);
    assert_int_equal(byte, 7);
    node_unref_close(self, view);
    if (qcow2_snapshot_delete(self, head, NULL, "small", NULL, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_snapshot_info_clear(&info);
    node_unref_close(self, head);
}

// The L1 table of one is shorter than the other's.
static void snapshots_have_the_size_of_their_moment(void **state)
{
    EngineFixture f;
    engine_fixture_init(&f, 8 << 20);
    engine_shell(&f, "qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 1M && "
                     "qemu-io -f qcow2 -c 'write -P 7 0 1M' disk.qcow2 && "
                     "qemu-img snapshot -c small disk.qcow2 && "
                     "qemu-img resize disk.qcow2 300M && "
                     "qemu-io -f qcow2 -c 'write -P 8 0 8k' -c 'write -P 9 299M 64k' disk.qcow2");
    engine_run(sizes_fiber, &f);
    engine_shell(&f, "qemu-img check disk.qcow2 && qemu-io -f qcow2 -r -c 'read -P 8 0 8k' "
                     "-c 'read -P 7 8k 1016k' -c 'read -P 9 299M 64k' disk.qcow2 && "
                     "qemu-img convert -f qcow2 -l large -O raw disk.qcow2 large.raw && "
                     "qemu-img compare -f qcow2 -F raw disk.qcow2 large.raw");
    engine_fixture_done(&f);
}

enum { N_APART = 64, APART_CLUSTER = 64 << 10, SIM_SIZE = 64 << 20 };

typedef struct HoleCount {
    SimHook hook; // first
    unsigned n;
} HoleCount;

static int count_hole(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    ((HoleCount *)hook)->n += op == SIM_OP_DISCARD;
    return 0;
}

// Neighbours in the file are far from each other for the guest: its last cluster comes first.
static void write_backwards(Fiber *self, Node *head, uint8_t byte)
{
    g_autofree uint8_t *data = g_malloc(APART_CLUSTER);
    memset(data, byte, APART_CLUSTER);
    for (uint64_t i = N_APART; i-- > 0;)
        assert_true(node_write(self, head, guest_off(i * APART_CLUSTER), data, APART_CLUSTER, 0) ==
                    0);
}

static void holes_fiber(Fiber *self, void *arg)
{
    MapMemory *memory = map_memory_new(8 << 20);
    Qcow2CreateOptions create = {.size_bytes = SIM_SIZE, .cluster_bytes = APART_CLUSTER};
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *image;
    Node *head;
    assert_true(qcow2_create(self, "/d", &create, NULL) == 0);
    assert_true(file_open(self, "/d", FILE_WRITABLE, &file, NULL) == 0);
    assert_true(qcow2_image_open(self, file, &options, &image, NULL) == 0);
    assert_true(qcow2_view_new(self, image, NULL, &head, NULL) == 0);
    qcow2_image_unref_close(self, image);
    write_backwards(self, head, 1);
    assert_true(qcow2_snapshot_create(self, head, "s", NULL, NULL) == 0);
    write_backwards(self, head, 2);
    HoleCount count = {.hook.fn = count_hole};
    sim_set_hook(arg, &count.hook);
    assert_true(qcow2_snapshot_delete(self, head, NULL, "s", NULL, NULL) == 0);
    sim_set_hook(arg, NULL);
    // 4 MiB, a MiB each at least, the table, the lists of snapshots.
    assert_true(count.n > 0 && count.n < N_APART / 4);
    node_unref_close(self, head);
    map_memory_free(memory);
}

static void what_lies_together_is_punched_together(void **state)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    assert_true(sim_run(sim, holes_fiber, sim));
    sim_free(sim);
}

int main(void)
{
    enum { N_OTHERS = 3 };
    struct CMUnitTest tests[G_N_ELEMENTS(kinds) + N_OTHERS];
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        tests[i] = (struct CMUnitTest){.name = kinds[i].name,
                                       .test_func = snapshots_keep_their_moment_under_load,
                                       .initial_state = (void *)&kinds[i]};
    struct CMUnitTest *others = tests + G_N_ELEMENTS(kinds);
    others[0] = (struct CMUnitTest)cmocka_unit_test(what_an_entry_says_is_kept);
    others[1] = (struct CMUnitTest)cmocka_unit_test(snapshots_have_the_size_of_their_moment);
    others[2] = (struct CMUnitTest)cmocka_unit_test(what_lies_together_is_punched_together);
    return _cmocka_run_group_tests("qcow2 snapshots", tests, G_N_ELEMENTS(tests), NULL, NULL);
}
