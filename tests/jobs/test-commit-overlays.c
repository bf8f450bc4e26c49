// SPDX-License-Identifier: LGPL-2.1-or-later
// A commit below two overlays changes several files: the base, then the header of the one, then
// that of the other (docs/ordering.md §18). Nothing notes that it is under way, and need not: power
// is cut at each operation, between the two headers among them, and each image shows what it did,
// whichever of the two it names; so does a further overlay of the base that is a point to be kept.
#include <string.h>

#include "../loop/in-fiber.h"
#include "chain-core/chain.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"
#include "guest-images.h"
#include "job-work.h"
#include "jobs/commit.h"

enum { BLOCK = 4096, N_BLOCKS = 64, DISK = N_BLOCKS * BLOCK, N_OUTCOMES = 3 };

typedef enum Image { BASE, MIDDLE, ONE, TWO, BRANCH, N_IMAGES } Image;

static const struct {
    const char *path;
    Image below;
} images[N_IMAGES] = {
    {"/base", N_IMAGES}, {"/middle", BASE}, {"/one", MIDDLE}, {"/two", MIDDLE}, {"/branch", BASE}};

typedef struct World {
    SimHook hook; // first
    Sim *sim;
    MapMemory *memory;
    Node *nodes[N_IMAGES];
    uint8_t shown[N_IMAGES][N_BLOCKS];
    bool keeps_points, is_under_way;
    unsigned n_naming_base[3]; // cuts after which so many of the two overlays named the base
} World;

// -- images ---------------------------------------------------------------------------------------

static Node *open_image(Fiber *self, MapMemory *memory, Image image, bool is_writable)
{
    LayerOptions options = {.memory = memory,
                            .format = "qcow2",
                            .read_only = !is_writable,
                            .force_share = !is_writable};
    Node *node;
    fiber_assert_equal(chain_open(self, images[image].path, &options, &node, NULL, NULL), 0);
    return node;
}

// Some blocks of its own.
static void make_image(Fiber *self, World *w, Image image)
{
    uint8_t data[BLOCK];
    Image below = images[image].below;
    guest_image_create(self, images[image].path, image ? images[below].path : NULL, DISK, BLOCK);
    if (image)
        memcpy(w->shown[image], w->shown[below], N_BLOCKS);
    Node *node = open_image(self, w->memory, image, true);
    for (unsigned i = image; i < N_BLOCKS; i += image + 2) {
        w->shown[image][i] = (uint8_t)(1 + image * N_BLOCKS / 2 + i);
        memset(data, w->shown[image][i], BLOCK);
        fiber_assert_equal(node_write(self, node, guest_off((uint64_t)i * BLOCK), data, BLOCK, 0),
                           0);
    }
    fiber_assert_equal(node_flush(self, node), 0);
    node_unref_close(self, node);
}

static void check_image(Fiber *self, const World *w, Image image, Node *node)
{
    uint8_t data[BLOCK];
    for (unsigned i = 0; i < N_BLOCKS; i++) {
        fiber_assert_equal(node_read(self, node, guest_off((uint64_t)i * BLOCK), data, BLOCK), 0);
        if (data[0] != w->shown[image][i] || memcmp(data, data + 1, BLOCK - 1) != 0)
            g_error("%s shows %u in block %u, not %u", images[image].path, data[0], i,
                    w->shown[image][i]);
    }
}

// The two lie on the one node of the middle, as in the daemon.
static void open_all(Fiber *self, World *w)
{
    w->nodes[ONE] = open_image(self, w->memory, ONE, true);
    w->nodes[MIDDLE] = node_ref(chain_backing(w->nodes[ONE]));
    w->nodes[BASE] = node_ref(chain_backing(w->nodes[MIDDLE]));
    g_autofree Guests *how = g_new0(Guests, 1);
    how->memory = w->memory;
    for (Image image = TWO; image <= BRANCH; image++) {
        w->nodes[image] = guest_image_open_alone(self, how, images[image].path);
        chain_set_backing(self, w->nodes[image], w->nodes[images[image].below], w->memory);
    }
}

// -- power cuts -----------------------------------------------------------------------------------

static void look(Fiber *self, void *arg)
{
    World *w = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    unsigned n = 0;
    for (Image image = ONE; image <= (w->keeps_points ? BRANCH : TWO); image++) {
        Node *node = open_image(self, memory, image, false);
        check_image(self, w, image, node);
        const char *name = qcow2_image_backing_name(qcow2_node_image(node));
        n += image != BRANCH && g_str_has_suffix(name, "base");
        node_unref_close(self, node);
    }
    w->n_naming_base[n]++;
    map_memory_free(memory);
}

static int hook(SimHook *sim_hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                uint64_t len)
{
    World *w = (World *)sim_hook;
    for (uint64_t i = 1; w->is_under_way && op != SIM_OP_READ && i <= N_OUTCOMES; i++) {
        Sim *after = sim_clone_after_power_cut(w->sim, n * N_OUTCOMES + i);
        fiber_assert(sim_run(after, look, w));
        sim_free(after);
    }
    return 0;
}

// -- the job --------------------------------------------------------------------------------------

static void hear(void *arg, const JobNews *news)
{
}

static void run_job(Fiber *self, World *w)
{
    Loop *loop = fiber_loop(self);
    Node *points[] = {w->nodes[MIDDLE], w->nodes[BRANCH]};
    CommitSpec spec = {.name = "job",
                       .top = w->nodes[MIDDLE],
                       .base = w->nodes[BASE],
                       .overlays = &w->nodes[ONE],
                       .n_overlays = 2,
                       .points = points,
                       .n_points = w->keeps_points ? G_N_ELEMENTS(points) : 0,
                       .backing_name = "base",
                       .backing_format = "qcow2",
                       .memory = w->memory};
    Commit *commit;
    bool is_switched;
    JobControl *control = job_control_new(0);
    job_control_begin(control, loop, loop, hear, w);
    fiber_assert_equal(commit_begin(self, &spec, &commit, NULL), 0);
    fiber_assert_equal(commit_run(self, control, commit, NULL), 0);
    fiber_assert_equal(commit_come_close(self, commit, NULL), 0);
    fiber_assert_equal(commit_switch(self, commit, &is_switched, NULL), 0);
    fiber_assert(is_switched);
    commit_end(self, commit);
    job_control_end(control);
    job_control_drop(control);
}

static void commit_below_two(Fiber *self, void *arg)
{
    World *w = arg;
    w->memory = map_memory_new(1 << 20);
    for (Image image = BASE; image < N_IMAGES; image++)
        make_image(self, w, image);
    open_all(self, w);
    fiber_assert_equal(node_change_mode(self, w->nodes[BASE], true, NULL), 0);
    if (w->keeps_points)
        fiber_assert_equal(node_change_mode(self, w->nodes[MIDDLE], true, NULL), 0);
    w->is_under_way = true;
    run_job(self, w);
    for (Image image = ONE; image <= TWO; image++)
        check_image(self, w, image, w->nodes[image]);
    for (Image image = N_IMAGES; image-- > 0;)
        node_unref_close(self, w->nodes[image]);
    map_memory_free(w->memory);
}

static void run_world(World *w)
{
    SimConfig config = {.seed = 7};
    w->hook.fn = hook;
    w->sim = sim_new(&config);
    sim_set_hook(w->sim, &w->hook);
    assert_true(sim_run(w->sim, commit_below_two, w));
    sim_free(w->sim);
    for (unsigned n = 0; n < G_N_ELEMENTS(w->n_naming_base); n++)
        assert_true(w->n_naming_base[n] > 0);
}

static void a_power_cut_between_the_headers_of_two_overlays_leaves_both_valid(void **state)
{
    World w = {0};
    run_world(&w);
}

static void so_it_does_points_that_are_kept(void **state)
{
    World w = {.keeps_points = true};
    run_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_power_cut_between_the_headers_of_two_overlays_leaves_both_valid),
        cmocka_unit_test(so_it_does_points_that_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
