// SPDX-License-Identifier: LGPL-2.1-or-later
// Images that are read while another program writes them (force-share). What the writer had flushed
// before a part was first looked at is shown; nothing of it is taken for corruption. The writer is
// the engine itself, on the simulation.
#include "host.h"

#include <errno.h>
#include <string.h>

#include "chain-core/chain.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"

#define PATH "/image.qcow2"
#define OVERLAY "/over.qcow2"
enum { CLUSTER = 64 << 10, FAR = 100 << 20 };

typedef struct Test {
    Sim *sim;
    FiberFn *fn;
    MapMemory *memory;
    unsigned n_corrupt;
    NodeEvents events;
} Test;

static void note_corrupt(const NodeEvents *events, const char *sentence)
{
    Test *t = (Test *)((const char *)events - G_STRUCT_OFFSET(Test, events));
    t->n_corrupt++;
}

static Node *open_image(Fiber *self, Test *t, bool shared)
{
    g_autoptr(GError) error = NULL;
    Qcow2OpenOptions options = {
        .read_only = shared, .shared = shared, .memory = t->memory, .events = &t->events};
    File *file;
    Qcow2Image *image;
    Node *node = NULL;
    assert_int_equal(file_open(self, PATH, shared ? 0 : FILE_WRITABLE, &file, NULL), 0);
    if (qcow2_image_open(self, file, &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &node, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
    return node;
}

static Node *open_chain(Fiber *self, Test *t, const char *path)
{
    g_autoptr(GError) error = NULL;
    LayerOptions options = {.format = "qcow2",
                            .read_only = true,
                            .force_share = true,
                            .memory = t->memory,
                            .events = &t->events};
    Node *node;
    if (chain_open(self, path, &options, &node, NULL, &error) < 0)
        fail_msg("%s", error->message);
    return node;
}

static void write_and_flush(Fiber *self, Node *node, uint64_t off, size_t len, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(len);
    memset(buf, byte, len);
    assert_int_equal(node_write(self, node, guest_off(off), buf, len, 0), 0);
    assert_int_equal(node_flush(self, node), 0);
}

static void assert_shows(Fiber *self, Node *node, uint64_t off, size_t len, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(len);
    assert_int_equal(node_read(self, node, guest_off(off), buf, len), 0);
    for (size_t i = 0; i < len; i++)
        assert_int_equal(buf[i], byte);
}

static void test_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    t->memory = map_memory_new(8 << 20);
    t->events.corrupt = note_corrupt;
    t->fn(self, t);
    map_memory_free(t->memory);
}

static void load(Sim *sim, const char *dir, const char *name, const char *sim_path)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    assert_int_equal(sim_import_file(sim, sim_path, path), 0);
}

static void run(FiberFn *fn)
{
    g_autofree char *dir = host_make_dir();
    host_shell(dir, "qemu-img create -q -f qcow2 image.qcow2 256M && "
                    "qemu-io -c 'write -P 1 0 64k' image.qcow2 && "
                    "qemu-img create -q -f qcow2 -u -b image.qcow2 -F qcow2 over.qcow2 256M");
    for (unsigned i = 0; i < 4; i++) {
        Test t = {.sim = sim_new(&(SimConfig){.seed = i + 1, .inline_completion = i % 2}),
                  .fn = fn};
        load(t.sim, dir, "image.qcow2", PATH);
        load(t.sim, dir, "over.qcow2", OVERLAY);
        assert_true(sim_run(t.sim, test_fiber, &t));
        assert_int_equal(t.n_corrupt, 0);
        sim_free(t.sim);
    }
    host_remove_dir(g_steal_pointer(&dir));
}

static void read_what_was_added(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *writer = open_image(self, t, false), *reader = open_image(self, t, true);
    assert_shows(self, reader, 0, CLUSTER, 1);
    // Another slice of an L2 table that is there already.
    write_and_flush(self, writer, FAR, 5 * CLUSTER, 2);
    assert_shows(self, reader, FAR, 5 * CLUSTER, 2);
    NodeExtent e;
    assert_int_equal(node_map(self, reader, guest_off(FAR), CLUSTER, &e), 0);
    assert_int_equal(e.kind, NODE_EXTENT_DATA);
    // The tail moves on: twice.
    write_and_flush(self, writer, 2 * FAR, CLUSTER, 3);
    assert_shows(self, reader, 2 * FAR, CLUSTER, 3);
    node_unref_close(self, reader);
    node_unref_close(self, writer);
}

static void clusters_that_another_program_added_are_read(void **state)
{
    run(read_what_was_added);
}

static void read_the_last_cluster(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *writer = open_image(self, t, false);
    write_and_flush(self, writer, CLUSTER, 512, 4); // the file ends within this cluster
    Node *reader = open_image(self, t, true);
    assert_shows(self, reader, CLUSTER, 512, 4);
    write_and_flush(self, writer, CLUSTER + 8192, 4096, 5);
    assert_shows(self, reader, CLUSTER + 8192, 4096, 5);
    node_unref_close(self, reader);
    node_unref_close(self, writer);
}

static void a_last_cluster_that_another_program_fills_is_read_to_its_end(void **state)
{
    run(read_the_last_cluster);
}

static void open_twice(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *writer = open_image(self, t, false), *early = open_chain(self, t, OVERLAY);
    assert_shows(self, early, FAR, CLUSTER, 0); // its map of the base knows nothing there
    write_and_flush(self, writer, FAR, CLUSTER, 6);
    Node *late = open_chain(self, t, OVERLAY);
    assert_shows(self, late, FAR, CLUSTER, 6);
    node_unref_close(self, late);
    node_unref_close(self, early);
    node_unref_close(self, writer);
}

static void a_later_open_does_not_share_what_an_earlier_one_knew(void **state)
{
    run(open_twice);
}

static void read_nonsense(Fiber *self, void *arg)
{
    Test *t = arg;
    Node *reader = open_image(self, t, true);
    // The writer, as it may look half-way: an entry that names a place far past the end.
    void *data;
    uint64_t len;
    assert_int_equal(sim_read_file(t->sim, PATH, &data, &len), 0);
    g_autofree uint8_t *bytes = data;
    uint64_t l2 = host_get64(bytes, host_get64(bytes, 40)) & UINT64_C(0x00fffffffffffe00);
    host_put64(bytes, l2, UINT64_C(1) << 63 | UINT64_C(1) << 40);
    host_put64(bytes, l2 + 8, UINT64_C(1) << 63 | 0x200);
    assert_int_equal(sim_write_file(t->sim, PATH, bytes, len), 0);
    uint8_t buf[512];
    assert_int_equal(node_read(self, reader, guest_off(0), buf, sizeof buf), -EIO);
    assert_int_equal(node_read(self, reader, guest_off(CLUSTER), buf, sizeof buf), -EIO);
    assert_shows(self, reader, 2 * CLUSTER, CLUSTER, 0); // goes on
    node_unref_close(self, reader);
}

static void a_shared_image_is_never_marked_corrupt(void **state)
{
    run(read_nonsense);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clusters_that_another_program_added_are_read),
        cmocka_unit_test(a_last_cluster_that_another_program_fills_is_read_to_its_end),
        cmocka_unit_test(a_later_open_does_not_share_what_an_earlier_one_knew),
        cmocka_unit_test(a_shared_image_is_never_marked_corrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
