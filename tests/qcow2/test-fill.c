// SPDX-License-Identifier: LGPL-2.1-or-later
// Filling an overlay, on the simulation: what was filled is the node's own and shows the same,
// guests are not held up by it and win, and a host that is full loses nothing. What a power cut or
// an error in the middle leaves is tests/crash/test-crash-fill.c.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/node-fill.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"
#include "chain-core/raw.h"
#include "chain-core/sim.h"

enum {
    CELL = 512,
    TOP_BYTES = (1 << 20) + 5 * CELL, // ends inside a cluster
    BELOW_BYTES = 800 * 1024 + 3 * CELL,
    N_SEEDS = 6,
};

typedef struct Kind {
    const char *name, *options;
    bool has_snapshot; // the top's content is shared
    bool has_zeros;    // entries for them
    uint64_t granule;
    uint64_t cluster; // if that is another one
} Kind;

static const Kind kinds[] = {
    {"clusters of 4K", "cluster_size=4k", .has_zeros = true, .granule = 4096},
    {"clusters of 512", "cluster_size=512", .has_zeros = true, .granule = 512},
    {"clusters of 64K, a snapshot", "cluster_size=64k", true, true, 65536},
    {"version 2", "cluster_size=4k,compat=0.10", .granule = 4096},
    {"subclusters", "cluster_size=16k,extended_l2=on", .has_zeros = true, .granule = 512,
     .cluster = 16384},
    {"subclusters, a snapshot", "cluster_size=16k,extended_l2=on", true, true, 512, 16384},
    {"a data file", "cluster_size=4k,data_file=data", .has_zeros = true, .granule = 4096},
};

// --- what lies below: data, zeros and nothing, in pieces of odd lengths -------------------------

typedef struct Below {
    Node node;
    uint8_t *content;      // BELOW_BYTES
    NodeExtentKind *kinds; // of each cell
    FiberQueue gate;       // reads wait there
    bool is_shut;
    unsigned n_waiting;
    int error; // of reads
} Below;

static int below_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                            IoBatch *batch)
{
    Below *b = (Below *)node;
    memcpy(buf, b->content + off.v, len);
    b->n_waiting++;
    while (b->is_shut)
        fiber_queue_wait(self, &b->gate, false, "gate");
    b->n_waiting--;
    return b->error;
}

static int below_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    const Below *b = (const Below *)node;
    uint64_t end = off.v;
    NodeExtentKind kind = b->kinds[off.v / CELL];
    while (end < off.v + len && b->kinds[end / CELL] == kind)
        end = (end / CELL + 1) * CELL;
    *ret_extent = (NodeExtent){.len = MIN(end - off.v, len), .kind = kind, .node = node};
    return 0;
}

static void below_close(Fiber *self, Node *node)
{
    Below *b = (Below *)node;
    g_free(b->content);
    g_free(b->kinds);
}

static const NodeOps below_ops = {
    .driver = "below",
    .read_start = below_read_start,
    .map = below_map,
    .close = below_close,
};

static Below *below_new(Fiber *self, HostRandom *random)
{
    static const NodeExtentKind all[] = {NODE_EXTENT_OPAQUE, NODE_EXTENT_ZERO, NODE_EXTENT_BELOW};
    Below *b = g_new0(Below, 1);
    node_init(&b->node, &below_ops, fiber_loop(self), "below", BELOW_BYTES);
    b->node.read_only = true;
    b->content = g_malloc0(BELOW_BYTES);
    b->kinds = g_new(NodeExtentKind, BELOW_BYTES / CELL);
    for (uint64_t cell = 0; cell < BELOW_BYTES / CELL;) {
        bool is_last = cell > BELOW_BYTES / CELL - 300; // some data in any case
        NodeExtentKind kind = all[is_last ? 0 : host_random(random, 4) % 3];
        uint64_t n = 1 + host_random(random, host_random(random, 2) ? 4 : 200);
        for (; n && cell < BELOW_BYTES / CELL; n--, cell++) {
            b->kinds[cell] = kind;
            if (kind == NODE_EXTENT_OPAQUE)
                memset(b->content + cell * CELL, 1 + (int)(cell % 251), CELL);
        }
    }
    return b;
}

// --- the disk ------------------------------------------------------------------------------------

typedef struct Test {
    const Kind *kind;
    Sim *sim;
    HostRandom random;
    MapMemory *memory;
    Node *top;
    Below *below;
    uint8_t *content; // what the disk shows
    FiberFn *fn;
} Test;

static Node *open_top(Fiber *self, Test *t)
{
    g_autoptr(GError) error = NULL;
    Qcow2OpenOptions options = {.memory = t->memory};
    File *file, *data;
    Qcow2Image *image;
    Node *node;
    assert_int_equal(file_open(self, "/top", FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, &error) < 0)
        fail_msg("%s", error->message);
    if (qcow2_image_data_file_name(image)) {
        assert_int_equal(file_open(self, "/data", FILE_WRITABLE, &data, NULL), 0);
        qcow2_image_set_data_file(image, data);
    }
    if (qcow2_view_new(self, image, NULL, &node, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
    return node;
}

static void assert_shows(Fiber *self, Test *t)
{
    g_autofree uint8_t *buf = g_malloc(TOP_BYTES);
    assert_int_equal(node_read(self, t->top, guest_off(0), buf, TOP_BYTES), 0);
    for (uint64_t i = 0; i < TOP_BYTES; i++)
        if (buf[i] != t->content[i])
            fail_msg("%s: %#" PRIx64 " shows %#x, not %#x", t->kind->name, i, buf[i],
                     t->content[i]);
}

static void write_top(Fiber *self, Test *t, uint64_t off, uint64_t len, int value)
{
    memset(t->content + off, value, len);
    assert_int_equal(node_write(self, t->top, guest_off(off), t->content + off, len, 0), 0);
}

// What the top has of its own at the beginning.
static void begin_top(Fiber *self, Test *t)
{
    for (unsigned i = 0; i < 12; i++) {
        uint64_t len = (1 + host_random(&t->random, 24)) * CELL;
        write_top(self, t, host_random(&t->random, (TOP_BYTES - len) / CELL) * CELL, len, 0xe0 + i);
    }
    if (t->kind->has_zeros) {
        memset(t->content + 99 * CELL, 0, 33 * CELL);
        assert_int_equal(node_zero(self, t->top, guest_off(99 * CELL), 33 * CELL, 0), 0);
    }
    if (t->kind->has_snapshot)
        assert_int_equal(qcow2_snapshot_create(self, t->top, "old", NULL, NULL), 0);
}

static void test_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    t->memory = map_memory_new(4 << 20);
    t->below = below_new(self, &t->random);
    t->top = open_top(self, t);
    memcpy(t->content, t->below->content, BELOW_BYTES);
    node_set_backing(self, t->top, &t->below->node);
    begin_top(self, t);
    t->fn(self, t);
    node_unref_close(self, t->top);
    node_unref_close(self, &t->below->node);
    map_memory_free(t->memory);
}

static void check_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    Qcow2CheckResult result;
    File *file;
    assert_int_equal(file_open(self, "/top", 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    if (result.n_corruptions || result.n_leaks)
        fail_msg("%s: %s", t->kind->name, (char *)result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

typedef struct Template {
    uint8_t *top;
    gsize bytes;
} Template;
static Template templates[G_N_ELEMENTS(kinds)];

static void make_templates(void)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "top", NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        host_shell(dir, "rm -f top data && qemu-img create -q -f qcow2 -o %s top %d",
                   kinds[i].options, TOP_BYTES);
        assert_true(
            g_file_get_contents(path, (char **)&templates[i].top, &templates[i].bytes, NULL));
    }
    host_remove_dir(g_steal_pointer(&dir));
}

static void run_kind(const Kind *kind, FiberFn *fn, uint64_t seed, uint64_t space_bytes)
{
    const Template *template = &templates[kind - kinds];
    Test t = {.kind = kind, .random = {seed}, .fn = fn, .content = g_malloc0(TOP_BYTES)};
    t.sim = sim_new(&(SimConfig){.seed = seed,
                                 .short_transfers = seed % 2,
                                 .inline_completion = seed % 3 == 0,
                                 .can_copy = true,
                                 .space_bytes = space_bytes});
    sim_write_file(t.sim, "/top", template->top, template->bytes);
    sim_write_file(t.sim, "/data", "", 0);
    assert_true(sim_run(t.sim, test_fiber, &t));
    assert_true(sim_run(t.sim, check_fiber, &t));
    sim_free(t.sim);
    g_free(t.content);
}

static void run_all(FiberFn *fn)
{
    uint64_t seed = host_seed(0xf111);
    if (!templates[0].top)
        make_templates();
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        for (unsigned n = 0; n < N_SEEDS; n++)
            run_kind(&kinds[i], fn, seed + n, 0);
}

// From now on nothing lies below.
static void take_below_away(Fiber *self, Test *t)
{
    node_set_backing(self, t->top, NULL);
}

// --- content -------------------------------------------------------------------------------------

static void assert_owns(Fiber *self, Test *t, uint64_t off, uint64_t end)
{
    while (off < end) {
        NodeExtent e;
        assert_int_equal(node_map(self, t->top, guest_off(off), end - off, &e), 0);
        if (e.kind == NODE_EXTENT_BELOW)
            fail_msg("%s: %#" PRIx64 " is not the node's own", t->kind->name, off);
        off += e.len;
    }
}

static void filled_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    NodeFillResult result = {0};
    assert_int_equal(node_fill_granularity(t->top), t->kind->granule);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t len = 1 + host_random(&t->random, 100000);
        uint64_t off = host_random(&t->random, TOP_BYTES - len);
        assert_int_equal(node_fill(self, t->top, guest_off(off), len, 0, &result), 0);
        assert_owns(self, t, off, off + len);
    }
    assert_shows(self, t);
    assert_int_equal(node_fill(self, t->top, guest_off(0), TOP_BYTES, 0, &result), 0);
    assert_owns(self, t, 0, TOP_BYTES);
    assert_true(result.copied_bytes > 0 && result.shared_bytes == 0 && !result.failed_reading);
    assert_true(t->kind->has_zeros || result.zero_bytes == 0);
    // Another time there is nothing to do.
    NodeFillResult again = {0};
    assert_int_equal(node_fill(self, t->top, guest_off(0), TOP_BYTES, 0, &again), 0);
    assert_true(again.copied_bytes == 0 && again.zero_bytes == 0);
    memset(t->below->content, 0xff, BELOW_BYTES);
    assert_shows(self, t);
    take_below_away(self, t);
    assert_shows(self, t);
}

static void what_was_filled_is_the_nodes_own_and_shows_the_same(void **state)
{
    run_all(filled_fiber);
}

static uint64_t zeros_below(const Test *t, uint64_t off, uint64_t end)
{
    uint64_t n = 0;
    for (; off < end; off += CELL)
        n += off < BELOW_BYTES && t->below->kinds[off / CELL] == NODE_EXTENT_OPAQUE ? 0 : CELL;
    return n;
}

// Where only part of a cluster is data it is filled whole.
static void zeros_stay_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    NodeFillResult result = {0};
    int r = node_fill(self, t->top, guest_off(0), TOP_BYTES, NODE_FILL_ZEROS_STAY, &result);
    assert_int_equal(r, 0);
    uint64_t stayed = 0;
    for (uint64_t off = 0; off < TOP_BYTES;) {
        NodeExtent e;
        assert_int_equal(node_map(self, t->top, guest_off(off), TOP_BYTES - off, &e), 0);
        if (e.kind == NODE_EXTENT_BELOW) {
            assert_int_equal(zeros_below(t, off, off + e.len), e.len);
            stayed += e.len;
        }
        off += e.len;
    }
    // Unless they belong to a shared cluster, which is copied whole.
    assert_true(stayed <= result.zero_bytes && (stayed > 0 || t->kind->granule == 65536));
    assert_true(stayed == result.zero_bytes || (t->kind->has_snapshot && t->kind->cluster));
    take_below_away(self, t);
    assert_shows(self, t);
}

static void zeros_need_nothing_where_nothing_will_lie_below(void **state)
{
    run_all(zeros_stay_fiber);
}

static void given_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    enum { LEN = 128 << 10 };
    g_autofree uint8_t *before = g_memdup2(t->content, TOP_BYTES);
    // Where a snapshot shares a cluster of which a part is missing the whole of it is copied.
    if (!t->kind->has_snapshot)
        t->below->error = -EIO;
    for (uint64_t off = 0; off < TOP_BYTES; off += LEN) {
        size_t len = MIN(LEN, TOP_BYTES - off);
        assert_int_equal(node_fill_from(self, t->top, guest_off(off), before + off, len), 0);
    }
    assert_owns(self, t, 0, TOP_BYTES);
    take_below_away(self, t);
    assert_shows(self, t);
}

static void bytes_that_the_caller_has_are_not_read_again(void **state)
{
    run_all(given_fiber);
}

static void refused_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    NodeFillResult result = {0};
    t->below->error = -EIO;
    assert_int_equal(node_fill(self, t->top, guest_off(0), TOP_BYTES, 0, &result), -EIO);
    assert_true(result.failed_reading);
    t->below->error = 0;
    assert_shows(self, t);
    node_stop_writes(t->top);
    assert_int_equal(node_fill(self, t->top, guest_off(0), TOP_BYTES, 0, &result), -EROFS);
}

static void a_fill_that_cannot_read_changes_nothing_and_says_so(void **state)
{
    run_all(refused_fiber);
}

// --- guests --------------------------------------------------------------------------------------

typedef struct Filling {
    Test *t;
    uint64_t off, len;
    int result;
    bool has_ended;
} Filling;

static void filling_fiber(Fiber *self, void *arg)
{
    Filling *f = arg;
    NodeFillResult result = {0};
    f->result = node_fill(self, f->t->top, guest_off(f->off), f->len, 0, &result);
    f->has_ended = true;
}

// The first data below of at least `len` bytes where the top has nothing.
static uint64_t find_missing(Fiber *self, Test *t, uint64_t len)
{
    for (uint64_t off = 0; off + len <= BELOW_BYTES; off += len) {
        NodeExtent e;
        assert_int_equal(node_map(self, t->top, guest_off(off), len, &e), 0);
        if (e.kind == NODE_EXTENT_BELOW && e.len == len && zeros_below(t, off, off + len) == 0)
            return off;
    }
    return UINT64_MAX;
}

typedef enum Change { WRITE, WRITE_PART, ZERO, DISCARD, N_CHANGES } Change;

static void change_top(Fiber *self, Test *t, Change change, uint64_t off, uint64_t len)
{
    if (change == WRITE) {
        write_top(self, t, off, len, 0xf0);
    } else if (change == WRITE_PART) {
        write_top(self, t, off + CELL, CELL, 0xf1);
    } else if (change == ZERO) {
        memset(t->content + off, 0, len);
        assert_int_equal(node_zero(self, t->top, guest_off(off), len, 0), 0);
    } else {
        if (t->kind->has_zeros) // else it is a hint
            memset(t->content + off, 0, len);
        assert_int_equal(node_discard(self, t->top, guest_off(off), len, 0), 0);
    }
}

// Whatever a guest does while the fill's read hangs comes to an end, and stays.
static void guest_first_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    uint64_t len = MAX(MAX(t->kind->granule, t->kind->cluster), 4 * CELL);
    for (Change change = 0; change < N_CHANGES; change++) {
        Filling f = {.t = t, .off = find_missing(self, t, len), .len = len};
        if (f.off == UINT64_MAX)
            return;
        t->below->is_shut = true;
        assert_int_equal(fiber_spawn(fiber_loop(self), "fill", filling_fiber, &f, NULL), 0);
        while (!t->below->n_waiting)
            fiber_sleep(self, 1000);
        if (change == WRITE_PART) // which reads below, too
            t->below->is_shut = false;
        change_top(self, t, change, f.off, len);
        assert_true(change == WRITE_PART || !f.has_ended);
        t->below->is_shut = false;
        fiber_queue_wake_all(&t->below->gate);
        while (!f.has_ended)
            fiber_sleep(self, 1000);
        assert_int_equal(f.result, 0);
        assert_owns(self, t, f.off, f.off + f.len);
        assert_shows(self, t);
    }
}

static void guests_do_not_wait_for_a_fills_read_and_win(void **state)
{
    run_all(guest_first_fiber);
}

// --- layers that are files -----------------------------------------------------------------------

static void put_raw_below(Fiber *self, Test *t)
{
    File *file;
    Node *raw;
    assert_int_equal(sim_write_file(t->sim, "/base", t->below->content, BELOW_BYTES), 0);
    assert_int_equal(file_open(self, "/base", 0, &file, NULL), 0);
    assert_int_equal(raw_node_new(self, file, &raw, NULL), 0);
    node_set_backing(self, t->top, raw);
    node_unref_close(self, raw);
}

static uint64_t n_shared;

static void shared_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    NodeFillResult result = {0};
    put_raw_below(self, t);
    assert_int_equal(node_fill(self, t->top, guest_off(0), TOP_BYTES, 0, &result), 0);
    assert_owns(self, t, 0, TOP_BYTES);
    n_shared += result.shared_bytes;
    take_below_away(self, t);
    assert_shows(self, t);
}

static void plain_ranges_of_files_may_be_shared(void **state)
{
    n_shared = 0;
    run_all(shared_fiber);
    assert_true(n_shared > 0); // the simulation does it now and then, with whole pages
}

// --- a full host ---------------------------------------------------------------------------------

static void full_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    NodeFillResult result = {0};
    // So much as is missing may find no room.
    sim_set_space(t->sim, sim_used_bytes(t->sim) + (32 << 10));
    int r = node_fill(self, t->top, guest_off(0), TOP_BYTES, 0, &result);
    assert_int_equal(r, -ENOSPC);
    assert_false(result.failed_reading);
    assert_shows(self, t);
    assert_int_equal(node_flush(self, t->top), 0);
    sim_set_space(t->sim, 64 << 20);
    assert_int_equal(node_fill(self, t->top, guest_off(0), TOP_BYTES, 0, &result), 0);
    assert_owns(self, t, 0, TOP_BYTES);
    take_below_away(self, t);
    assert_shows(self, t);
}

static void a_full_host_loses_nothing_and_the_fill_goes_on_later(void **state)
{
    uint64_t seed = host_seed(0xf0);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        for (unsigned n = 0; n < N_SEEDS; n++)
            run_kind(&kinds[i], full_fiber, seed + n, 64 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_filled_is_the_nodes_own_and_shows_the_same),
        cmocka_unit_test(zeros_need_nothing_where_nothing_will_lie_below),
        cmocka_unit_test(bytes_that_the_caller_has_are_not_read_again),
        cmocka_unit_test(a_fill_that_cannot_read_changes_nothing_and_says_so),
        cmocka_unit_test(guests_do_not_wait_for_a_fills_read_and_win),
        cmocka_unit_test(plain_ranges_of_files_may_be_shared),
        cmocka_unit_test(a_full_host_loses_nothing_and_the_fill_goes_on_later),
    };
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        g_free(templates[i].top);
    return r;
}
