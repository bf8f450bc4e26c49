// SPDX-License-Identifier: LGPL-2.1-or-later
// Compressed clusters that go from image to image as they are, on the simulation: what was copied
// shows the same and is as short as before, host clusters are shared and counted, and one that
// became free takes no more. What a power cut or an error in the middle leaves is
// tests/crash/test-crash-fill.c; whole jobs beside qemu-img tests/integration/test-compressed.py.
#include "host.h"

#include <inttypes.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/map-memory.h"
#include "chain-core/node-compressed.h"
#include "chain-core/node-fill.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/sim.h"

enum { SIZE_BYTES = 1 << 20 };

typedef struct Kind {
    const char *from, *to; // options of the images
    uint32_t cluster;
    bool is_taken;  // as they are
    bool is_packed; // as short as they were, and nothing else takes more room
} Kind;

static const Kind kinds[] = {
    {"cluster_size=4k", "cluster_size=4k", 4096, true, true},
    {"cluster_size=512", "cluster_size=512", 512, true},
    {"cluster_size=64k,compression_type=zstd", "cluster_size=64k,compression_type=zstd", 65536,
     true, true},
    {"cluster_size=4k,compat=0.10", "cluster_size=4k", 4096, true, true},
    {"cluster_size=16k", "cluster_size=16k,extended_l2=on", 16384, true, true},
    {"cluster_size=16k,extended_l2=on", "cluster_size=16k,compat=0.10", 16384, true},
    {"cluster_size=4k", "cluster_size=4k,refcount_bits=1", 4096, true},
    {"cluster_size=4k", "cluster_size=4k,refcount_bits=2", 4096, true},
    {"cluster_size=4k", "cluster_size=8k", 4096, false},
    {"cluster_size=4k", "cluster_size=4k,compression_type=zstd", 4096, false},
};

typedef struct Test {
    const Kind *kind;
    Sim *sim;
    HostRandom random;
    MapMemory *memory;
    Node *from, *to;
    uint8_t *content; // what `to` shows
    FiberFn *fn;
} Test;

// Some of it compresses well, some badly, some not at all, and some is zeros.
static void make_content(HostRandom *random, uint8_t *content)
{
    for (uint64_t off = 0; off < SIZE_BYTES; off += 2048) {
        uint64_t n_random = host_random(random, 4) * 680;
        memset(content + off, (int)host_random(random, 3) ? 'a' : 0, 2048);
        for (uint64_t i = 0; i < n_random; i++)
            content[off + i] = (uint8_t)host_random(random, 256);
    }
    memset(content + SIZE_BYTES / 2, 0, 70000);
}

static Node *open_node(Fiber *self, Test *t, const char *path, bool read_only)
{
    LayerOptions options = {.memory = t->memory, .read_only = read_only};
    g_autoptr(GError) error = NULL;
    Node *node;
    if (chain_open(self, path, &options, &node, NULL, &error) < 0)
        fail_msg("%s", error->message);
    return node;
}

static void assert_shows(Fiber *self, Test *t)
{
    g_autofree uint8_t *buf = g_malloc(SIZE_BYTES);
    assert_int_equal(node_read(self, t->to, guest_off(0), buf, SIZE_BYTES), 0);
    for (uint64_t i = 0; i < SIZE_BYTES; i++)
        if (buf[i] != t->content[i])
            fail_msg("%s: %#" PRIx64 " shows %#x, not %#x", t->kind->to, i, buf[i], t->content[i]);
}

static void assert_clean(Fiber *self, const char *path)
{
    Qcow2CheckResult result;
    File *file;
    assert_int_equal(file_open(self, path, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    if (result.n_corruptions || result.n_leaks)
        fail_msg("%s", (char *)result.messages->pdata[0]);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

static void test_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    t->memory = map_memory_new(4 << 20);
    t->from = open_node(self, t, "/from", true);
    t->to = open_node(self, t, "/to", false);
    node_set_backing(self, t->to, t->from);
    t->fn(self, t);
    assert_shows(self, t);
    node_unref_close(self, t->to);
    node_unref_close(self, t->from);
    map_memory_free(t->memory);
    assert_clean(self, "/to");
}

static void load_file(const char *dir, const char *name, Sim *sim, const char *as)
{
    g_autofree char *path = g_build_filename(dir, name, NULL), *data = NULL;
    gsize len;
    assert_true(g_file_get_contents(path, &data, &len, NULL));
    assert_int_equal(sim_write_file(sim, as, data, len), 0);
}

static void run_kind(const Kind *kind, FiberFn *fn, uint64_t seed)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "content", NULL);
    Test t = {.kind = kind, .random = {seed}, .fn = fn, .content = g_malloc0(SIZE_BYTES)};
    make_content(&t.random, t.content);
    assert_true(g_file_set_contents(path, (char *)t.content, SIZE_BYTES, NULL));
    host_shell(dir, "qemu-img convert -c -f raw -O qcow2 -o %s content from", kind->from);
    host_shell(dir, "qemu-img create -q -f qcow2 -o %s to %d", kind->to, SIZE_BYTES);
    t.sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = seed % 2});
    load_file(dir, "from", t.sim, "/from");
    load_file(dir, "to", t.sim, "/to");
    host_remove_dir(g_steal_pointer(&dir));
    assert_true(sim_run(t.sim, test_fiber, &t));
    sim_free(t.sim);
    g_free(t.content);
}

static void run_all(FiberFn *fn)
{
    uint64_t seed = host_seed(0xc0);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        for (unsigned n = 0; n < 2; n++)
            run_kind(&kinds[i], fn, seed + n);
}

static uint64_t count_compressed(Fiber *self, Node *node)
{
    uint64_t n = 0;
    for (uint64_t off = 0; off < SIZE_BYTES;) {
        NodeExtent e;
        assert_int_equal(node_map(self, node, guest_off(off), SIZE_BYTES - off, &e), 0);
        n += e.kind == NODE_EXTENT_OPAQUE ? e.len : 0;
        off += e.len;
    }
    return n;
}

// -- what is copied -------------------------------------------------------------------------------

static void fill_in_pieces(Fiber *self, Test *t, NodeFillResult *result)
{
    for (unsigned i = 0; i < 20; i++) {
        uint64_t len = 1 + host_random(&t->random, 100000);
        uint64_t off = host_random(&t->random, SIZE_BYTES - len);
        assert_int_equal(node_fill(self, t->to, guest_off(off), len, 0, result), 0);
    }
    assert_int_equal(node_fill(self, t->to, guest_off(0), SIZE_BYTES, 0, result), 0);
}

static void filled_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    NodeFillResult result = {0};
    fill_in_pieces(self, t, &result);
    node_set_backing(self, t->to, NULL);
    uint64_t compressed = count_compressed(self, t->from);
    assert_true(compressed > 0);
    // One that was filled in part before, of subclusters, is filled so to the end.
    bool has_parts = node_fill_granularity(t->to) < t->kind->cluster;
    uint64_t least = has_parts ? t->kind->cluster : compressed;
    assert_in_range(count_compressed(self, t->to), t->kind->is_taken ? least : 0,
                    t->kind->is_taken ? compressed : 0);
    if (t->kind->is_taken && !has_parts)
        assert_in_range(result.copied_bytes, 1, SIZE_BYTES - compressed / 4);
}

static void what_was_filled_is_compressed_and_shows_the_same(void **state)
{
    run_all(filled_fiber);
}

// As whole chunks, which come one after the other, they need no more room than before.
static void packed_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    NodeFillResult result = {0};
    uint64_t before = file_size(node_file(t->to));
    assert_int_equal(node_fill(self, t->to, guest_off(0), SIZE_BYTES, 0, &result), 0);
    assert_int_equal(node_flush(self, t->to), 0);
    uint64_t added = file_size(node_file(t->to)) - before;
    // But for what a plain cluster between them leaves of the cluster before it.
    uint64_t max = file_size(node_file(t->from)) * 102 / 100;
    if (t->kind->is_packed)
        assert_in_range(added, 1, max);
}

static void they_need_no_more_room_than_before(void **state)
{
    run_all(packed_fiber);
}

// -- writes ---------------------------------------------------------------------------------------

static void write_to(Fiber *self, Test *t, uint64_t off, uint64_t len, int value)
{
    memset(t->content + off, value, len);
    assert_int_equal(node_write(self, t->to, guest_off(off), t->content + off, len, 0), 0);
}

// Clusters at other places than they came from, over whatever is there.
static void moved_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    g_autofree uint8_t *original = g_memdup2(t->content, SIZE_BYTES);
    uint64_t cluster = t->kind->cluster, n_clusters = SIZE_BYTES / cluster, len;
    unsigned n_written = 0;
    for (unsigned i = 0; i < 60; i++) {
        uint64_t from = host_random(&t->random, n_clusters) * cluster;
        CompressedClusters c = {.how = node_compression(t->to)};
        assert_int_equal(
            node_read_compressed(self, t->from, guest_off(from), SIZE_BYTES - from, &c, &len), 0);
        assert_in_range(len, 1, SIZE_BYTES - from);
        uint64_t to = host_random(&t->random, n_clusters) * cluster;
        if (c.n && to + len <= SIZE_BYTES) {
            c.off = guest_off(to);
            assert_int_equal(node_write_compressed(self, t->to, &c), 0);
            memcpy(t->content + to, original + from, len);
            n_written++;
        }
        compressed_clusters_done(&c, fiber_loop(self));
        if (i % 3 == 0)
            write_to(self, t, host_random(&t->random, 200) * 4096,
                     1 + host_random(&t->random, 9000), (int)i);
        if (i % 7 == 0)
            assert_int_equal(node_flush(self, t->to), 0);
        assert_shows(self, t);
    }
    assert_true(t->kind->is_taken == (n_written > 0));
}

static void they_may_replace_whatever_is_there(void **state)
{
    run_all(moved_fiber);
}

// -- host clusters that become free ---------------------------------------------------------------

static void fill_at(Fiber *self, Test *t, uint64_t off)
{
    NodeFillResult result = {0};
    assert_int_equal(node_fill(self, t->to, guest_off(off), t->kind->cluster, 0, &result), 0);
}

// All that shares a host cluster is written anew, so it becomes free and is taken for what is
// written next. It was begun last, and more of what is filled would have found room in it.
static void freed_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    uint64_t cluster = t->kind->cluster;
    for (uint64_t off = 0; off + 3 * cluster <= SIZE_BYTES / 2; off += 3 * cluster) {
        fill_at(self, t, off);
        write_to(self, t, off, cluster, 'x');
        assert_int_equal(node_flush(self, t->to), 0);
        fiber_sleep(self, 1000000); // it is released
        write_to(self, t, off + cluster, cluster, 'y');
        fill_at(self, t, off + 2 * cluster);
    }
}

static void a_cluster_that_became_free_takes_no_more(void **state)
{
    run_all(freed_fiber);
}

// -- guests ---------------------------------------------------------------------------------------

typedef struct Filling {
    Test *t;
    bool has_ended;
} Filling;

static void filling_fiber(Fiber *self, void *arg)
{
    Filling *f = arg;
    NodeFillResult result = {0};
    assert_int_equal(node_fill(self, f->t->to, guest_off(0), SIZE_BYTES, 0, &result), 0);
    f->has_ended = true;
}

static void beside_guests_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    Filling f = {t, false};
    assert_int_equal(fiber_spawn(fiber_loop(self), "fill", filling_fiber, &f, NULL), 0);
    for (unsigned i = 0; i < 200 && !f.has_ended; i++) {
        uint64_t len = 1 + host_random(&t->random, 3 * t->kind->cluster);
        uint64_t off = host_random(&t->random, SIZE_BYTES - len);
        if (i % 4) {
            write_to(self, t, off, len, (int)i);
        } else {
            memset(t->content + off, 0, len);
            assert_int_equal(node_zero(self, t->to, guest_off(off), len, 0), 0);
        }
        fiber_sleep(self, host_random(&t->random, 100000));
    }
    while (!f.has_ended)
        fiber_sleep(self, 1000);
    node_set_backing(self, t->to, NULL);
}

static void what_guests_write_meanwhile_stays(void **state)
{
    run_all(beside_guests_fiber);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_filled_is_compressed_and_shows_the_same),
        cmocka_unit_test(they_need_no_more_room_than_before),
        cmocka_unit_test(they_may_replace_whatever_is_there),
        cmocka_unit_test(a_cluster_that_became_free_takes_no_more),
        cmocka_unit_test(what_guests_write_meanwhile_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
