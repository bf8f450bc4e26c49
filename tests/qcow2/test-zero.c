// SPDX-License-Identifier: LGPL-2.1-or-later
// What a guest sees after write-zeroes and discard, exactly: fast or not at all with FAST_ZERO, and
// no old content of a backing file, ever. On real files made by qemu-img.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine-fixture.h"

enum { CLUSTER = 64 << 10, SUBCLUSTER = 2 << 10, DISK = 4 << 20 };

// Content of base, and of what the image itself holds.
enum { BELOW = 0x11, OWN = 0x22 };

typedef struct Test {
    EngineFixture f;
    FiberFn *fn;
    Node *node;
    bool has_backing;
} Test;

static void open_and_run(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *below = t->has_backing ? engine_open_raw(self, &t->f, "base.raw") : NULL;
    t->node = engine_open(self, &t->f, "disk.qcow2", NULL, false, below);
    t->fn(self, t);
    node_unref_close(self, t->node);
}

// base.raw is BELOW all over; the image owns cluster 1 and the first half of cluster 3.
static void run_opened(FiberFn *open, FiberFn *fn, const char *options, bool has_backing)
{
    Test t = {.fn = fn, .has_backing = has_backing};
    engine_fixture_init(&t.f, 8 << 20);
    engine_shell(&t.f,
                 "qemu-img create -q -f raw base.raw %d && "
                 "qemu-io -f raw -c 'write -P 0x11 0 %d' base.raw && "
                 "qemu-img create -q -f qcow2 -o cluster_size=64k,%s %s disk.qcow2 %d",
                 DISK, DISK, options, has_backing ? "-b base.raw -F raw" : "", DISK);
    engine_shell(&t.f, "qemu-io -f qcow2 -c 'write -P 0x22 64k 64k' -c 'write -P 0x22 192k 32k' "
                       "disk.qcow2");
    engine_run(open, &t);
    engine_shell(&t.f, "qemu-img check disk.qcow2");
    engine_fixture_done(&t.f);
}

static void run(FiberFn *fn, const char *options, bool has_backing)
{
    run_opened(open_and_run, fn, options, has_backing);
}

static void assert_shows(Fiber *self, Test *t, uint64_t from, uint64_t to, int byte)
{
    g_autofree uint8_t *buf = g_malloc(to - from);
    assert_int_equal(node_read(self, t->node, guest_off(from), buf, to - from), 0);
    for (uint64_t i = 0; i < to - from; i++)
        if (buf[i] != byte)
            fail_msg("%#lx shows %#x, not %#x", from + i, buf[i], byte);
}

static int zero(Fiber *self, Test *t, uint64_t from, uint64_t to, NodeIoFlags flags)
{
    return node_zero(self, t->node, guest_off(from), to - from, flags);
}

static void assert_fast(Fiber *self, Test *t, uint64_t from, uint64_t to)
{
    assert_int_equal(zero(self, t, from, to, NODE_IO_FAST_ZERO), 0);
    assert_shows(self, t, from, to, 0);
}

// Both ways: what is not fast is refused untouched, and done without the flag.
static void assert_slow(Fiber *self, Test *t, uint64_t from, uint64_t to)
{
    g_autofree uint8_t *before = g_malloc(DISK), *after = g_malloc(DISK);
    assert_int_equal(node_read(self, t->node, guest_off(0), before, DISK), 0);
    assert_int_equal(zero(self, t, from, to, NODE_IO_FAST_ZERO), -ENOTSUP);
    assert_int_equal(node_read(self, t->node, guest_off(0), after, DISK), 0);
    assert_memory_equal(before, after, DISK);
    assert_int_equal(zero(self, t, from, to, 0), 0);
    assert_shows(self, t, from, to, 0);
}

static void zero_fast(Fiber *self, void *arg)
{
    Test *t = arg;
    // Whole clusters, whatever they show; the disk's end counts as one.
    assert_fast(self, t, 10 * CLUSTER, 12 * CLUSTER);
    // Odd ends in clusters that show the base would have to be copied up.
    assert_slow(self, t, 20 * CLUSTER + 512, 22 * CLUSTER);
    assert_slow(self, t, 24 * CLUSTER, 26 * CLUSTER + 512);
    assert_slow(self, t, 28 * CLUSTER + 512, 28 * CLUSTER + 1024);
    assert_slow(self, t, 30 * CLUSTER - 512, 30 * CLUSTER + 512);
    // In a cluster of its own they are written in place, and zeros are zeros already.
    assert_fast(self, t, CLUSTER + 512, CLUSTER + 1024);
    assert_shows(self, t, CLUSTER, CLUSTER + 512, OWN);
    assert_shows(self, t, CLUSTER + 1024, 2 * CLUSTER, OWN);
    assert_fast(self, t, 2 * CLUSTER - 512, 3 * CLUSTER);
    assert_fast(self, t, 11 * CLUSTER + 512, 11 * CLUSTER + 1024);
    assert_shows(self, t, 9 * CLUSTER, 10 * CLUSTER, BELOW);
}

static void fast_zero_is_fast_or_refused_with_the_data_untouched(void **state)
{
    run(zero_fast, "compat=1.1", true);
}

static void zero_fast_subclusters(Fiber *self, void *arg)
{
    Test *t = arg;
    assert_fast(self, t, 20 * CLUSTER + SUBCLUSTER, 20 * CLUSTER + 3 * SUBCLUSTER);
    assert_shows(self, t, 20 * CLUSTER, 20 * CLUSTER + SUBCLUSTER, BELOW);
    assert_shows(self, t, 20 * CLUSTER + 3 * SUBCLUSTER, 21 * CLUSTER, BELOW);
    assert_fast(self, t, 22 * CLUSTER - SUBCLUSTER, 24 * CLUSTER + SUBCLUSTER);
    assert_slow(self, t, 26 * CLUSTER + SUBCLUSTER, 26 * CLUSTER + 3 * SUBCLUSTER + 512);
    assert_slow(self, t, 28 * CLUSTER + 512, 28 * CLUSTER + 3 * SUBCLUSTER);
    // The half of cluster 3 that is its own, and the other.
    assert_fast(self, t, 3 * CLUSTER + 512, 3 * CLUSTER + 3 * SUBCLUSTER);
    assert_shows(self, t, 3 * CLUSTER, 3 * CLUSTER + 512, OWN);
    assert_slow(self, t, 4 * CLUSTER - SUBCLUSTER - 512, 4 * CLUSTER - SUBCLUSTER);
}

static void fast_zero_of_subclusters_needs_no_copy(void **state)
{
    run(zero_fast_subclusters, "extended_l2=on", true);
}

static void zero_fast_v2(Fiber *self, void *arg)
{
    assert_slow(self, arg, 10 * CLUSTER, 12 * CLUSTER);
}

static void fast_zero_of_version_2_is_refused(void **state)
{
    run(zero_fast_v2, "compat=0.10", true);
}

// [from, to) as given, but only its whole clusters are discarded.
static void discard(Fiber *self, Test *t, uint64_t from, uint64_t to)
{
    assert_int_equal(node_discard(self, t->node, guest_off(from), to - from, 0), 0);
}

static void discard_own_and_below(Fiber *self, void *arg)
{
    Test *t = arg;
    int below = t->has_backing ? BELOW : 0;
    discard(self, t, 0, 3 * CLUSTER);
    assert_shows(self, t, 0, 3 * CLUSTER, 0);
    // Odd ends keep what they show.
    discard(self, t, 3 * CLUSTER + 512, 6 * CLUSTER - 512);
    assert_shows(self, t, 3 * CLUSTER, 3 * CLUSTER + CLUSTER / 2, OWN);
    assert_shows(self, t, 4 * CLUSTER, 5 * CLUSTER, 0);
    assert_shows(self, t, 5 * CLUSTER, 6 * CLUSTER, below);
    discard(self, t, DISK - CLUSTER, DISK);
    assert_shows(self, t, DISK - CLUSTER, DISK, 0);
    assert_shows(self, t, 7 * CLUSTER, DISK - CLUSTER, below);
}

static void discarded_clusters_of_version_3_read_as_zeros(void **state)
{
    for (unsigned has_backing = 0; has_backing < 2; has_backing++) {
        run(discard_own_and_below, "compat=1.1", has_backing);
        run(discard_own_and_below, "extended_l2=on", has_backing);
    }
}

static void uncover(Fiber *self, Test *t, uint64_t from, uint64_t to)
{
    assert_int_equal(node_uncover(self, t->node, guest_off(from), to - from), 0);
}

static void uncover_own(Fiber *self, void *arg)
{
    Test *t = arg;
    int below = t->has_backing ? BELOW : 0;
    discard(self, t, 5 * CLUSTER, 6 * CLUSTER);
    uncover(self, t, CLUSTER + 512, 4 * CLUSTER - 512); // only whole clusters
    assert_shows(self, t, CLUSTER, 2 * CLUSTER, OWN);
    assert_shows(self, t, 3 * CLUSTER, 3 * CLUSTER + CLUSTER / 2, OWN);
    uncover(self, t, 0, DISK);
    assert_shows(self, t, 0, DISK, below);
    NodeExtent extent;
    for (uint64_t off = 0; off < DISK; off += extent.len) {
        assert_int_equal(node_map(self, t->node, guest_off(off), DISK - off, &extent), 0);
        assert_int_equal(extent.kind, NODE_EXTENT_BELOW);
    }
}

static void what_is_uncovered_shows_what_lies_below(void **state)
{
    static const char *const options[] = {"compat=1.1", "extended_l2=on", "compat=0.10"};
    for (unsigned i = 0; i < G_N_ELEMENTS(options); i++) {
        run(uncover_own, options[i], true);
        run(uncover_own, options[i], false);
    }
}

static void discard_v2(Fiber *self, void *arg)
{
    Test *t = arg;
    g_autofree uint8_t *before = g_malloc(DISK), *after = g_malloc(DISK);
    assert_int_equal(node_read(self, t->node, guest_off(0), before, DISK), 0);
    discard(self, t, 0, DISK);
    assert_int_equal(node_read(self, t->node, guest_off(0), after, DISK), 0);
    assert_memory_equal(before, after, DISK);
    assert_shows(self, t, 0, CLUSTER, BELOW);
    assert_shows(self, t, CLUSTER, 2 * CLUSTER, OWN);
}

static void a_discard_of_version_2_over_a_backing_file_changes_nothing(void **state)
{
    run(discard_v2, "compat=0.10", true);
}

static void discarded_clusters_of_version_2_alone_read_as_zeros(void **state)
{
    run(discard_own_and_below, "compat=0.10", false);
}

// As blockdev-add has it with "backing": null.
static void zero_alone(Fiber *self, void *arg)
{
    Test *t = arg;
    assert_int_equal(zero(self, t, 10 * CLUSTER, 12 * CLUSTER, 0), 0);
    assert_int_equal(zero(self, t, 20 * CLUSTER + 512, 20 * CLUSTER + 1024, 0), 0);
    assert_int_equal(node_discard(self, t->node, guest_off(30 * CLUSTER), CLUSTER, 0), 0);
}

static void assert_zeros_over_backing(Fiber *self, void *arg)
{
    Test *t = arg;
    bool is_version_2 = t->fn == NULL;
    assert_shows(self, t, 10 * CLUSTER, 12 * CLUSTER, 0);
    assert_shows(self, t, 20 * CLUSTER + 512, 20 * CLUSTER + 1024, 0);
    assert_shows(self, t, 30 * CLUSTER, 31 * CLUSTER, is_version_2 ? BELOW : 0);
    assert_shows(self, t, 31 * CLUSTER, 32 * CLUSTER, BELOW);
}

static void open_alone_then_over_backing(Fiber *self, void *arg)
{
    Test *t = arg;
    t->node = engine_open(self, &t->f, "disk.qcow2", NULL, false, NULL);
    zero_alone(self, t);
    node_unref_close(self, t->node);
    t->node = engine_open(self, &t->f, "disk.qcow2", NULL, false,
                          engine_open_raw(self, &t->f, "base.raw"));
    assert_zeros_over_backing(self, t);
    node_unref_close(self, t->node);
}

static void what_is_zeroed_stays_so_when_a_backing_file_is_opened_again(void **state)
{
    run_opened(open_alone_then_over_backing, zero_alone, "compat=1.1", true);
    run_opened(open_alone_then_over_backing, zero_alone, "extended_l2=on", true);
    run_opened(open_alone_then_over_backing, NULL, "compat=0.10", true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fast_zero_is_fast_or_refused_with_the_data_untouched),
        cmocka_unit_test(fast_zero_of_subclusters_needs_no_copy),
        cmocka_unit_test(fast_zero_of_version_2_is_refused),
        cmocka_unit_test(discarded_clusters_of_version_3_read_as_zeros),
        cmocka_unit_test(a_discard_of_version_2_over_a_backing_file_changes_nothing),
        cmocka_unit_test(what_is_uncovered_shows_what_lies_below),
        cmocka_unit_test(discarded_clusters_of_version_2_alone_read_as_zeros),
        cmocka_unit_test(what_is_zeroed_stays_so_when_a_backing_file_is_opened_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
