// SPDX-License-Identifier: LGPL-2.1-or-later
// Refcounts above 1: raised up to what their width can hold and no further, and lowered again. On
// the simulation.
#include "host.h"

#include <errno.h>

#include "chain-core/sim.h"
#include "qcow2/refcounts.h"

#define PATH "/image"

typedef struct Width {
    uint64_t max; // the largest refcount
    Sim *sim;
} Width;

static uint64_t count_of(Fiber *self, Qcow2Image *image, uint64_t cluster)
{
    RefcountPlace place;
    assert_int_equal(refcounts_get(self, image, cluster, &place), 0);
    uint64_t count = qcow2_refcount_get(&image->geometry, place.slice->data, place.index);
    table_slice_release(place.slice);
    return count;
}

static int raise_by_one(Fiber *self, Qcow2Image *image, uint64_t cluster, uint64_t n)
{
    RefcountPlace place;
    int r;
    while ((r = refcounts_find(self, image, cluster, &place)) == 1)
        ;
    assert_int_equal(r, 0);
    return refcounts_raise(image, place, n);
}

// Clusters 4 and 5 hold data; 6 holds none.
static void raise_and_lower(Fiber *self, Qcow2Image *image, uint64_t max)
{
    assert_int_equal(count_of(self, image, 6), 0);
    for (uint64_t count = 1; count < max; count++) {
        assert_int_equal(count_of(self, image, 5), count);
        assert_int_equal(raise_by_one(self, image, 5, 1), 0);
    }
    // All or none of them.
    assert_int_equal(raise_by_one(self, image, 4, 2), -EOVERFLOW);
    assert_int_equal(count_of(self, image, 4), 1);
    assert_int_equal(count_of(self, image, 5), max);
    for (uint64_t count = max; count > 1; count--) {
        ClusterRange range = {5, 1}, free;
        refcounts_lower(self, image, &range, &free);
        assert_int_equal(range.n + free.n, 0);
        assert_int_equal(count_of(self, image, 5), count - 1);
    }
}

static void open_fiber(Fiber *self, void *arg)
{
    const Width *width = arg;
    g_autoptr(GError) error = NULL;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *image;
    Node *node = NULL;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &node, &error) < 0)
        fail_msg("%s", error->message);
    raise_and_lower(self, image, width->max);
    node_unref_close(self, node);
    qcow2_image_unref_close(self, image);
    map_memory_free(memory);
}

static void a_refcount_is_raised_to_what_its_width_holds_and_no_further(void **state)
{
    static const struct {
        const char *bits;
        uint64_t max;
    } widths[] = {{"1", 1}, {"2", 3}, {"4", 15}, {"8", 255}, {"16", 65535}};
    for (unsigned i = 0; i < G_N_ELEMENTS(widths); i++) {
        g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "i.qcow2", NULL);
        Width width = {widths[i].max, sim_new(&(SimConfig){.seed = i + 1})};
        host_shell(dir,
                   "qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=%s i.qcow2 1M && "
                   "qemu-io -f qcow2 -c 'write 0 4k' i.qcow2",
                   widths[i].bits);
        assert_int_equal(sim_import_file(width.sim, PATH, path), 0);
        host_remove_dir(g_steal_pointer(&dir));
        assert_true(sim_run(width.sim, open_fiber, &width));
        sim_free(width.sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refcount_is_raised_to_what_its_width_holds_and_no_further),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
