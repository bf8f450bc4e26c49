// SPDX-License-Identifier: LGPL-2.1-or-later
// An internal snapshot whose references cannot all be written, on the simulation: the place of each
// write is bad from then on. What the header then lists is counted on disk (docs/ordering.md §13).
// An image of version 2, where no mark has the next open count again.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"

#define PATH "/image.qcow2"

static Node *open_head(Fiber *self, MapMemory *memory)
{
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *image;
    Node *node;
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    assert_int_equal(qcow2_image_open(self, file, &options, &image, NULL), 0);
    assert_int_equal(qcow2_view_new(self, image, NULL, &node, NULL), 0);
    qcow2_image_unref_close(self, image);
    return node;
}

typedef struct Life {
    SimHook hook; // first
    uint64_t bad_from;
    bool has_failed, is_made;
    uint64_t bad_off, bad_end;
} Life;

// The place of one write is bad from then on.
static int fail_place(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                      uint64_t len)
{
    Life *life = (Life *)hook;
    if (op != SIM_OP_WRITE)
        return 0;
    if (n == life->bad_from) {
        life->has_failed = true;
        life->bad_off = off;
        life->bad_end = off + len;
    }
    return off < life->bad_end && off + len > life->bad_off ? -EIO : 0;
}

// The snapshot that is there shares everything, so that of the new one only counts change, and its
// own tables.
static void live(Fiber *self, void *arg)
{
    Life *life = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Node *head = open_head(self, memory);
    life->is_made = qcow2_snapshot_create(self, head, "new", NULL, NULL) == 0;
    node_unref_close(self, head);
    map_memory_free(memory);
}

static void look(Fiber *self, void *arg)
{
    const Life *life = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2CheckResult counts = {0};
    File *file;
    assert_int_equal(file_open(self, PATH, 0, &file, NULL), 0);
    assert_int_equal(qcow2_check(self, file, 0, &counts, NULL), 0);
    if (counts.n_corruptions)
        fail_msg("[%#" PRIx64 ", %#" PRIx64 ") bad from operation %" PRIu64 " on: %s",
                 life->bad_off, life->bad_end, life->bad_from,
                 (char *)g_ptr_array_index(counts.messages, 0));
    qcow2_check_result_clear(&counts);
    file_close(self, file);
    Node *head = open_head(self, memory);
    assert_int_equal(qcow2_snapshot_find(head, NULL, "new", NULL), life->is_made);
    assert_true(qcow2_snapshot_find(head, NULL, "old", NULL));
    node_unref_close(self, head);
    map_memory_free(memory);
}

static void a_place_that_stays_bad_leaves_no_reference_uncounted(void **state)
{
    g_autofree char *dir = host_make_dir();
    g_autofree char *path = g_build_filename(dir, "image", NULL);
    // Counts in several sectors, of each of which a failed write leaves the old or the new ones.
    host_shell(dir, "qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k image 8M && "
                    "qemu-io -c 'write -P 1 0 7M' image && qemu-img snapshot -c old image");
    unsigned n_bad = 0, n_made = 0;
    for (uint64_t n = 1, n_ops = UINT64_MAX; n <= n_ops; n++) {
        Sim *sim = sim_new(&(SimConfig){.seed = 5, .short_transfers = true});
        assert_int_equal(sim_import_file(sim, PATH, path), 0);
        Life life = {.hook = {fail_place}, .bad_from = n};
        sim_set_hook(sim, &life.hook);
        assert_true(sim_run(sim, live, &life));
        sim_set_hook(sim, NULL);
        if (!life.has_failed) // no write, and all that follows is the same in each life
            n_ops = sim_n_ops(sim);
        n_bad += life.has_failed;
        n_made += life.is_made;
        assert_true(sim_run(sim, look, &life));
        sim_free(sim);
    }
    assert_true(n_bad > 4 && n_made > 0);
    host_remove_dir(g_steal_pointer(&dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_place_that_stays_bad_leaves_no_reference_uncounted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
