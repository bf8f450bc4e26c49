// SPDX-License-Identifier: LGPL-2.1-or-later
// External snapshots under writing guests, in the simulation: each layer keeps its point in time,
// and after a power cut at any moment there is at least what a flush acknowledged (docs/ordering.md
// §14). A guest's block holds its number and a version that only grows, so every sector tells how
// old it is.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../loop/in-fiber.h"
#include "../node/pass-filter.h"
#include "chain-core/chain.h"
#include "chain-core/external-snapshot.h"
#include "chain-core/node-hold.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/sim.h"

enum {
    BLOCK = 8192,
    BLOCKS = 96,
    DISK = BLOCK * BLOCKS,
    CLUSTER = 4096,
    WORKERS = 4,
    SNAPSHOTS = 12,
};

typedef struct Versions {
    uint32_t of[BLOCKS];
} Versions;

typedef struct World {
    SimHook hook; // first
    Sim *sim;
    uint64_t seed;
    MapMemory *memory;
    const char *base_format;
    Port port;
    Node *head;
    bool stop;
    FiberWaitGroup workers;
    Versions issued, acked, durable;
    Versions kept[SNAPSHOTS]; // of each layer that is no head any more
    unsigned n_layers, n_finished, next_worker, n_cuts;
} World;

static uint64_t pick(World *w, uint64_t bound)
{
    return sim_random(w->sim, bound);
}

static void name_layer(char path[16], unsigned number)
{
    g_snprintf(path, 16, "/layer-%u", number);
}

// -- guests ---------------------------------------------------------------------------------------

static void fill(uint64_t *words, unsigned block, uint32_t version)
{
    for (unsigned i = 0; i < BLOCK / sizeof *words; i++)
        words[i] = (uint64_t)version << 32 | block;
}

static void flush(Fiber *self, World *w)
{
    Node *node = port_enter(self, &w->port, REQUEST_FLUSH);
    Versions covered = w->acked;
    int r = node_flush(self, node);
    port_leave(&w->port, REQUEST_FLUSH);
    fiber_assert_equal(r, 0);
    for (unsigned i = 0; i < BLOCKS; i++)
        w->durable.of[i] = MAX(w->durable.of[i], covered.of[i]);
}

static void write_block(Fiber *self, World *w, unsigned block)
{
    uint64_t words[BLOCK / sizeof(uint64_t)];
    Node *node = port_enter(self, &w->port, REQUEST_WRITE);
    uint32_t version = ++w->issued.of[block];
    fill(words, block, version);
    fiber_assert_equal(node_write(self, node, guest_off((uint64_t)block * BLOCK), words, BLOCK, 0),
                       0);
    w->acked.of[block] = version;
    port_leave(&w->port, REQUEST_WRITE);
}

// Every sector as new as `least` or newer, but not newer than `most`.
static void check_block(World *w, unsigned block, const uint64_t *words, uint32_t least,
                        uint32_t most)
{
    for (unsigned i = 0; i < BLOCK / sizeof *words; i++) {
        uint32_t version = (uint32_t)(words[i] >> 32), number = (uint32_t)words[i];
        if (version < least || version > most || (version && number != block))
            g_error("seed %u, layer %u, block %u word %u: version %u of block %u, not %u to %u",
                    (unsigned)w->seed, w->n_layers, block, i, version, number, least, most);
    }
}

static void read_block(Fiber *self, World *w, unsigned block)
{
    uint64_t words[BLOCK / sizeof(uint64_t)];
    Node *node = port_enter(self, &w->port, REQUEST_READ);
    fiber_assert_equal(node_read(self, node, guest_off((uint64_t)block * BLOCK), words, BLOCK), 0);
    port_leave(&w->port, REQUEST_READ);
    check_block(w, block, words, w->acked.of[block], w->issued.of[block]);
}

static void worker(Fiber *self, void *arg)
{
    World *w = arg;
    unsigned first = w->next_worker++;
    while (!w->stop) {
        unsigned block = first + WORKERS * (unsigned)pick(w, BLOCKS / WORKERS);
        uint64_t what = pick(w, 16);
        if (what == 0)
            flush(self, w);
        else if (what < 5)
            read_block(self, w, block);
        else
            write_block(self, w, block);
        fiber_yield(self);
    }
    fiber_wait_group_done(&w->workers);
}

static void let_guests_go_on(Fiber *self, World *w)
{
    for (uint64_t turns = pick(w, 200); turns; turns--)
        fiber_yield(self);
}

// -- layers ---------------------------------------------------------------------------------------

static void check_layer(Fiber *self, World *w, unsigned number, const Versions *least,
                        const Versions *most)
{
    char path[16];
    name_layer(path, number);
    g_autoptr(GError) error = NULL;
    LayerOptions options = {.memory = w->memory,
                            .format = number ? "qcow2" : w->base_format,
                            .read_only = true,
                            .force_share = true};
    Node *node;
    if (chain_open(self, path, &options, &node, NULL, &error) < 0)
        g_error("seed %u: %s", (unsigned)w->seed, error->message);
    uint64_t words[BLOCK / sizeof(uint64_t)];
    for (unsigned i = 0; i < BLOCKS; i++) {
        fiber_assert_equal(node_read(self, node, guest_off((uint64_t)i * BLOCK), words, BLOCK), 0);
        check_block(w, i, words, least->of[i], most->of[i]);
    }
    node_unref_close(self, node);
}

typedef struct AfterCut {
    World world;
    const World *before;
} AfterCut;

// The head has what was flushed, and layers whose snapshot is over are what they were.
static void after_cut(Fiber *self, void *arg)
{
    AfterCut *after = arg;
    const World *before = after->before;
    after->world.memory = map_memory_new(1 << 20);
    check_layer(self, &after->world, before->n_layers - 1, &before->durable, &before->issued);
    for (unsigned i = MAX(before->n_finished, 2) - 2; i < before->n_finished; i++)
        check_layer(self, &after->world, i, &before->kept[i], &before->kept[i]);
    map_memory_free(after->world.memory);
}

static void cut_power(World *w)
{
    AfterCut after = {.world = *w, .before = w};
    Sim *sim = sim_clone_after_power_cut(w->sim, w->seed * 1000 + w->n_cuts++);
    fiber_assert(sim_run(sim, after_cut, &after));
    sim_free(sim);
}

// Also in the middle of whatever the disks are doing.
static int cut_now_and_then(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                            uint64_t len)
{
    World *w = (World *)hook;
    if (op != SIM_OP_READ && n % 32 == w->seed % 32)
        cut_power(w);
    return 0;
}

static void create_overlay(Fiber *self, World *w, unsigned number, uint64_t size_bytes)
{
    char path[16], below[16];
    name_layer(path, number);
    name_layer(below, number - 1);
    Qcow2CreateOptions options = {.size_bytes = size_bytes,
                                  .cluster_bytes = CLUSTER,
                                  .backing_name = below + 1,
                                  .backing_format = number == 1 ? w->base_format : "qcow2"};
    fiber_assert_equal(qcow2_create(self, path, &options, NULL), 0);
}

// Without what lies below it.
static Node *open_overlay(Fiber *self, World *w, unsigned number)
{
    char path[16];
    name_layer(path, number);
    LayerOptions options = {.memory = w->memory, .format = "qcow2"};
    Layer *layer;
    Node *node;
    fiber_assert_equal(layer_open(self, path, &options, &layer, NULL), 0);
    fiber_assert_equal(layer_load(self, layer, &node, NULL), 0);
    layer_drop(self, layer);
    return node;
}

static Switch *prepare(Fiber *self, World *w, Node *overlay)
{
    g_autoptr(GError) error = NULL;
    Switch *s;
    if (external_snapshot_prepare(self, w->head, overlay, w->memory, &s, &error) < 0)
        g_error("%s", error->message);
    return s;
}

static void take_snapshot(Fiber *self, World *w)
{
    create_overlay(self, w, w->n_layers, DISK);
    Node *overlay = open_overlay(self, w, w->n_layers), *old = node_ref(w->head);
    Switch *s = prepare(self, w, overlay);
    let_guests_go_on(self, w);
    switch_drain_always(self, s);
    fiber_assert(memcmp(&w->issued, &w->acked, sizeof w->acked) == 0);
    if (pick(w, 4) == 0) {
        switch_end(self, s);
        let_guests_go_on(self, w);
        s = prepare(self, w, overlay);
        switch_drain_always(self, s);
    }
    w->kept[w->n_layers - 1] = w->acked;
    switch_commit(s);
    w->n_layers++;
    fiber_assert(w->port.node == overlay && old->read_only);
    cut_power(w);
    switch_resume(s);
    switch_end(self, s);
    node_unref_close(self, w->head);
    w->head = overlay;
    if (pick(w, 2))
        flush(self, w);
    else
        let_guests_go_on(self, w);
    cut_power(w);
    g_autoptr(GError) error = NULL;
    if (external_snapshot_finish(self, old, &error) < 0)
        g_error("%s", error->message);
    w->n_finished = w->n_layers - 1;
    node_unref_close(self, old);
}

static void create_base(Fiber *self, World *w)
{
    if (strcmp(w->base_format, "qcow2") == 0) {
        Qcow2CreateOptions options = {.size_bytes = DISK, .cluster_bytes = CLUSTER};
        fiber_assert_equal(qcow2_create(self, "/layer-0", &options, NULL), 0);
        return;
    }
    g_autofree uint8_t *zeros = g_malloc0(DISK);
    fiber_assert_equal(sim_write_file(w->sim, "/layer-0", zeros, DISK), 0);
}

static void begin(Fiber *self, World *w)
{
    w->memory = map_memory_new(1 << 20);
    create_base(self, w);
    LayerOptions options = {.memory = w->memory, .format = w->base_format};
    fiber_assert_equal(chain_open(self, "/layer-0", &options, &w->head, NULL, NULL), 0);
    w->n_layers = 1;
    port_init(&w->port, w->head, "guests");
}

static void end(Fiber *self, World *w)
{
    port_done(self, &w->port);
    node_unref_close(self, w->head);
    map_memory_free(w->memory);
}

static void snapshots_under_load(Fiber *self, void *arg)
{
    World *w = arg;
    begin(self, w);
    w->hook.fn = cut_now_and_then;
    sim_set_hook(w->sim, &w->hook);
    fiber_wait_group_add(&w->workers, WORKERS);
    for (int i = 0; i < WORKERS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", worker, w, NULL), 0);
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        let_guests_go_on(self, w);
        take_snapshot(self, w);
    }
    let_guests_go_on(self, w);
    w->stop = true;
    fiber_wait_group_wait(self, &w->workers);
    for (unsigned i = 0; i < BLOCKS; i++)
        read_block(self, w, i);
    flush(self, w);
    cut_power(w);
    for (unsigned i = 0; i < SNAPSHOTS; i++)
        check_layer(self, w, i, &w->kept[i], &w->kept[i]);
    check_layer(self, w, SNAPSHOTS, &w->acked, &w->acked);
    sim_set_hook(w->sim, NULL);
    end(self, w);
}

static void run_world(uint64_t seed, const char *base_format, FiberFn *fn)
{
    SimConfig config = {.seed = seed, .inline_completion = seed % 2, .short_transfers = seed % 3};
    g_autofree World *w = g_new0(World, 1);
    w->seed = seed;
    w->sim = sim_new(&config);
    w->base_format = base_format;
    assert_true(sim_run(w->sim, fn, w));
    sim_free(w->sim);
}

static void layers_keep_their_point_in_time_and_flushes_hold_over_power_cuts(void **state)
{
    for (uint64_t seed = 1; seed <= 16; seed++)
        run_world(seed, seed % 4 == 0 ? "raw" : "qcow2", snapshots_under_load);
}

// -- failures -------------------------------------------------------------------------------------

typedef struct FlushHook {
    SimHook hook; // first
    bool fails;
} FlushHook;

static int fail_flush_of_base(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                              uint64_t len)
{
    bool is_it = op == SIM_OP_FLUSH && strcmp(path, "/layer-0") == 0;
    return is_it && ((FlushHook *)hook)->fails ? -EIO : 0;
}

static void fail_to_flush(Fiber *self, void *arg)
{
    World *w = arg;
    FlushHook hook = {.hook.fn = fail_flush_of_base};
    sim_set_hook(w->sim, &hook.hook);
    begin(self, w);
    create_overlay(self, w, 1, DISK);
    Node *overlay = open_overlay(self, w, 1);
    Switch *s = prepare(self, w, overlay);
    write_block(self, w, 3); // after the flush ahead
    switch_drain_always(self, s);
    switch_commit(s);
    switch_end(self, s);
    hook.fails = true;
    write_block(self, w, 4);
    Node *node = port_enter(self, &w->port, REQUEST_FLUSH);
    fiber_assert_equal(node_flush(self, node), -EIO);
    hook.fails = false;
    fiber_assert_equal(node_flush(self, node), -EIO); // once lost, lost
    port_leave(&w->port, REQUEST_FLUSH);
    node_unref_close(self, w->head);
    w->head = overlay;
    sim_set_hook(w->sim, NULL);
    end(self, w);
}

static void a_flush_fails_while_a_layer_below_is_not_durable(void **state)
{
    run_world(1, "raw", fail_to_flush);
    run_world(2, "qcow2", fail_to_flush);
}

static void assert_refused(Fiber *self, World *w, Node *overlay, int wanted, const char *why)
{
    g_autoptr(GError) error = NULL;
    Switch *s;
    int r = external_snapshot_prepare(self, w->head, overlay, w->memory, &s, &error);
    fiber_assert_equal(r, wanted);
    if (!strstr(error->message, why))
        g_error("'%s' does not say '%s'", error->message, why);
}

static void refuse_at_the_limit(Fiber *self, World *w, Node *overlay)
{
    Node *base = w->head, *top = node_ref(base);
    for (unsigned i = 1; i < CHAIN_MAX_LAYERS; i++) {
        Node *filter = pass_filter_new(fiber_loop(self), "filter", DISK);
        node_set_backing(self, filter, top);
        node_unref_close(self, top);
        top = filter;
    }
    w->head = top;
    assert_refused(self, w, overlay, -E2BIG, "999 layers below");
    w->head = base;
    node_unref_close(self, top);
}

static const NodePerms writes_alone = {NODE_PERM_WRITE, NODE_PERM_ALL & ~NODE_PERM_PLACE};

static void refuse_what_a_job_holds(Fiber *self, World *w, Node *overlay)
{
    NodeHold *hold;
    NodeNeed need = {w->head, writes_alone};
    fiber_assert_equal(node_hold_new("job 'j'", &need, 1, &hold, NULL), 0);
    assert_refused(self, w, overlay, -EBUSY, "job 'j'");
    node_hold_release(self, hold);
}

// Through the merged map between them.
static void refuse_to_hold_below(const World *w, const char *overlay)
{
    g_autoptr(GError) error = NULL;
    NodeHold *hold;
    NodeNeed need = {w->head, writes_alone};
    fiber_assert_equal(node_hold_new("job 'j'", &need, 1, &hold, &error), -EBUSY);
    fiber_assert(strstr(error->message, overlay));
}

static void write_behind_our_back(Fiber *self, const char *path, uint64_t off)
{
    File *file;
    fiber_assert_equal(file_open(self, path, FILE_WRITABLE, &file, NULL), 0);
    fiber_assert_equal(file_write(self, file, host_off(off), "other", 5), 0);
    file_close(self, file);
}

static void hear_of_change(File *file, const FileEvent *event, void *n_told)
{
    *(unsigned *)n_told += event->kind == FILE_EVENT_CHANGED;
}

// A layer is made below the head by a snapshot, written by us until then, and by another after.
static void change_a_layer(Fiber *self, void *arg)
{
    World *w = arg;
    unsigned n_told = 0;
    begin(self, w);
    write_block(self, w, 3);
    take_snapshot(self, w);
    write_block(self, w, 4);
    Node *below = node_ref(chain_backing(w->port.node));
    fiber_assert_equal(chain_check_unchanged(self, w->port.node, NULL), 0);
    file_set_event_fn(node_file(below), hear_of_change, &n_told);
    write_behind_our_back(self, "/layer-0", 4096);
    create_overlay(self, w, 9, DISK);
    Node *overlay = open_overlay(self, w, 9);
    assert_refused(self, w, overlay, -ESTALE, "/layer-0 was changed by another program");
    assert_refused(self, w, overlay, -ESTALE, "the time of its last write");
    fiber_assert_equal(n_told, 1);
    fiber_assert_equal(node_set_writable(self, below, true, NULL), -ESTALE);
    fiber_assert(below->read_only);

    fiber_assert_equal(node_accept_change(self, below, NULL), 0); // "it was touched"
    Switch *s = prepare(self, w, overlay);
    switch_end(self, s);
    write_behind_our_back(self, "/layer-0", 0);
    fiber_assert_equal(node_accept_change(self, below, NULL), -ESTALE);
    file_set_event_fn(node_file(below), NULL, NULL);
    node_unref_close(self, overlay);
    node_unref_close(self, below);
    end(self, w);
}

static void nothing_is_built_on_a_layer_that_another_program_changed(void **state)
{
    run_world(1, "raw", change_a_layer);
    run_world(2, "qcow2", change_a_layer);
}

static void refuse(Fiber *self, void *arg)
{
    World *w = arg;
    begin(self, w);
    create_overlay(self, w, 1, DISK - 512);
    Node *small = open_overlay(self, w, 1);
    assert_refused(self, w, small, -EINVAL, "smaller");
    node_unref_close(self, small);

    create_overlay(self, w, 2, DISK);
    Node *other = open_overlay(self, w, 2);
    chain_set_backing(self, other, w->head, w->memory);
    assert_refused(self, w, other, -EINVAL, "backing layer already");
    refuse_to_hold_below(w, "/layer-2");
    create_overlay(self, w, 3, DISK);
    Node *third = open_overlay(self, w, 3);
    assert_refused(self, w, third, -EBUSY, "/layer-2");
    chain_set_backing(self, other, NULL, w->memory);
    Port port;
    port_init(&port, other, "test");
    assert_refused(self, w, other, -EBUSY, "uses it");
    port_done(self, &port);
    node_unref_close(self, other);

    Node *filter = pass_filter_new(fiber_loop(self), "filter", DISK);
    assert_refused(self, w, filter, -EINVAL, "no backing file");
    node_unref_close(self, filter);
    refuse_at_the_limit(self, w, third);
    refuse_what_a_job_holds(self, w, third);
    Switch *s = prepare(self, w, third);
    switch_end(self, s);
    node_unref_close(self, third);
    fiber_assert(w->port.node == w->head && !w->head->read_only);
    end(self, w);
}

static void what_makes_no_sense_is_refused_in_a_sentence(void **state)
{
    run_world(1, "qcow2", refuse);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_keep_their_point_in_time_and_flushes_hold_over_power_cuts),
        cmocka_unit_test(a_flush_fails_while_a_layer_below_is_not_durable),
        cmocka_unit_test(nothing_is_built_on_a_layer_that_another_program_changed),
        cmocka_unit_test(what_makes_no_sense_is_refused_in_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
