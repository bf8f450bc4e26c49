// SPDX-License-Identifier: LGPL-2.1-or-later
// Components that move between loops, back and forth, while guests go on writing and verify what
// they read: on simulated loops, and on io_uring loops in threads of their own.
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "../loop/in-fiber.h"
#include "../node/driver-node.h"
#include "../node/pass-filter.h"
#include "chain-core/chain.h"
#include "chain-core/component.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/remote-call.h"
#include "chain-core/sim.h"
#include "chain-core/switch.h"

enum {
    DISK_BYTES = 4 << 20,
    CLUSTER_BYTES = 4096, // many tables, so that each move takes some of them along
    WORKERS = 6,          // of a guest, each with a part of the disk of its own
    PART_BYTES = 128 << 10,
    MAX_REQUEST = 12 << 10,
    GUESTS = 2,
};

// Who uses a chain through a port, and can be parked.
typedef struct Guest {
    Port port; // first
    Loop *loop;
    uint64_t start; // of its parts on the disk
    uint8_t shadow[WORKERS * PART_BYTES];
    uint64_t random[WORKERS];
    bool is_parking;
    bool is_busy; // is not parked
    FiberWaitGroup workers;
    unsigned n_started;
    LoopCall start_call;
    atomic_uint n_requests;
} Guest;

static uint64_t pick(uint64_t *state, uint64_t bound)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % bound;
}

static void one_request(Fiber *self, Guest *g, unsigned worker)
{
    uint64_t *random = &g->random[worker];
    uint8_t buf[MAX_REQUEST];
    size_t len = 1 + pick(random, MAX_REQUEST);
    uint64_t at = worker * PART_BYTES + pick(random, PART_BYTES - len + 1);
    GuestOff off = guest_off(g->start + at);
    static const RequestKind kinds[8] = {REQUEST_FLUSH, REQUEST_ZERO, REQUEST_WRITE, REQUEST_WRITE,
                                         REQUEST_WRITE};
    uint64_t what = pick(random, 64) ? 1 + pick(random, 7) : 0;
    Node *node = port_enter(self, &g->port, kinds[what]);
    fiber_assert(node->loop == fiber_loop(self));
    switch (what) {
    case 0:
        fiber_assert_equal(node_flush(self, node), 0);
        break;
    case 1:
        memset(g->shadow + at, 0, len);
        fiber_assert_equal(node_zero(self, node, off, len, 0), 0);
        break;
    case 2:
    case 3:
    case 4:
        memset(g->shadow + at, 1 + (int)pick(random, 255), len);
        fiber_assert_equal(node_write(self, node, off, g->shadow + at, len, 0), 0);
        break;
    default:
        fiber_assert_equal(node_read(self, node, off, buf, len), 0);
        fiber_assert(memcmp(buf, g->shadow + at, len) == 0);
    }
    port_leave(&g->port, kinds[what]);
}

static void worker(Fiber *self, void *arg)
{
    Guest *g = arg;
    unsigned number = g->n_started++ % WORKERS;
    while (!g->is_parking) {
        one_request(self, g, number);
        g->n_requests++;
        fiber_yield(self);
    }
    fiber_wait_group_done(&g->workers);
}

static void start_workers(LoopCall *call)
{
    Guest *g = (Guest *)((char *)call - offsetof(Guest, start_call));
    fiber_wait_group_add(&g->workers, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++)
        fiber_assert_equal(fiber_spawn(g->loop, "worker", worker, g, NULL), 0);
}

static int park(Fiber *self, Port *port, GError **error)
{
    Guest *g = (Guest *)port;
    if (g->is_busy) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_AGAIN, "guest is busy");
        return -EBUSY;
    }
    g->is_parking = true;
    fiber_wait_group_wait(self, &g->workers);
    return 0;
}

static void attach(Port *port, Loop *loop)
{
    ((Guest *)port)->loop = loop;
}

static void resume(Port *port)
{
    Guest *g = (Guest *)port;
    g->is_parking = false;
    loop_post(g->loop, &g->start_call);
}

static const PortMoveOps guest_ops = {park, attach, resume};

static Guest *guest_new(Node *node, unsigned number)
{
    Guest *g = g_new0(Guest, 1);
    port_init(&g->port, node, "guest");
    g->port.move_ops = &guest_ops;
    g->loop = node->loop;
    g->start = number * sizeof g->shadow;
    g->start_call.fn = start_workers;
    for (unsigned i = 0; i < WORKERS; i++)
        g->random[i] = number * 100 + i;
    resume(&g->port);
    return g;
}

static void verify_guest(Fiber *self, const Guest *g, Node *node)
{
    g_autofree uint8_t *data = g_malloc(sizeof g->shadow);
    fiber_assert_equal(node_read(self, node, guest_off(g->start), data, sizeof g->shadow), 0);
    fiber_assert(memcmp(data, g->shadow, sizeof g->shadow) == 0);
}

// --- worlds --------------------------------------------------------------------------------------

// Files, loops, and what a test runs in a fiber of a loop that has no data.
typedef struct World {
    Loop *loops[2];
    MapMemory *memory;
    char *dir;
    bool is_direct;
    bool is_behind_filters; // the top's file
    ThrottleGroups *groups;
    unsigned n_moves;
    void (*test)(Fiber *self, struct World *w);
    // Of a call to a loop.
    Node *node, *other;
    Guest *guests[GUESTS];
} World;

static char *path_in(const World *w, const char *name)
{
    return g_strdup_printf("%s/%s", w->dir, name);
}

static void on(Fiber *self, Loop *loop, FiberFn *fn, void *arg)
{
    fiber_assert_equal(remote_call_fiber(self, loop, fn, arg), 0);
}

static void create_image(Fiber *self, const World *w, const char *name, const char *backing)
{
    g_autofree char *path = path_in(w, name);
    Qcow2CreateOptions options = {.size_bytes = DISK_BYTES,
                                  .cluster_bytes = CLUSTER_BYTES,
                                  .backing_name = backing,
                                  .backing_format = backing ? "qcow2" : NULL};
    fiber_assert_equal(qcow2_create(self, path, &options, NULL), 0);
}

// Makes the path a name for the image there.
static void put_behind_filters(char **path)
{
    static const char format[] =
        "json:{'driver': 'qcow2', 'file': {'driver': 'throttle', 'throttle-group': 'group', "
        "'file': "
        "{'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': '%s'}}}}";
    g_autofree char *plain = g_steal_pointer(path);
    *path = g_strdelimit(g_strdup_printf(format, plain), "'", '"');
}

static Node *open_chain(Fiber *self, World *w, const char *name, bool read_only)
{
    g_autofree char *path = path_in(w, name);
    g_autoptr(GError) error = NULL;
    Node *node;
    if (w->is_behind_filters && g_str_equal(name, "top"))
        put_behind_filters(&path);
    LayerOptions options = {
        .memory = w->memory,
        .direct = w->is_direct,
        .format = "qcow2",
        .read_only = read_only,
        .throttle_groups = w->groups,
    };
    if (chain_open(self, path, &options, &node, NULL, &error) < 0)
        g_error("%s", error->message);
    return node;
}

static void create_and_open(Fiber *self, void *arg)
{
    World *w = arg;
    create_image(self, w, "base", NULL);
    create_image(self, w, "middle", "base");
    create_image(self, w, "top", "middle");
    w->node = open_chain(self, w, "top", false);
    for (unsigned i = 0; i < GUESTS; i++)
        w->guests[i] = guest_new(w->node, i);
}

static void end_guests(Fiber *self, World *w)
{
    for (unsigned i = 0; i < GUESTS; i++)
        fiber_assert_equal(park(self, &w->guests[i]->port, NULL), 0);
}

static void check_file(Fiber *self, World *w, const char *name)
{
    g_autofree char *path = path_in(w, name);
    Qcow2CheckResult result = {0};
    File *file;
    fiber_assert_equal(file_open(self, path, 0, &file, NULL), 0);
    fiber_assert_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    fiber_assert_equal(result.n_corruptions + result.n_leaks + result.n_check_errors, 0);
    qcow2_check_result_clear(&result);
    file_close(self, file);
}

// Closes it, and looks at what is in the files.
static void close_and_verify(Fiber *self, void *arg)
{
    World *w = arg;
    end_guests(self, w);
    for (unsigned i = 0; i < GUESTS; i++)
        verify_guest(self, w->guests[i], w->node);
    fiber_assert_equal(node_flush(self, w->node), 0);
    for (unsigned i = 0; i < GUESTS; i++)
        port_done(self, &w->guests[i]->port);
    node_unref_close(self, w->node);
    check_file(self, w, "top");
    w->node = open_chain(self, w, "top", true);
    for (unsigned i = 0; i < GUESTS; i++) {
        verify_guest(self, w->guests[i], w->node);
        g_free(w->guests[i]);
    }
    node_unref_close(self, w->node);
}

static void world_main(Fiber *self, void *arg)
{
    World *w = arg;
    w->test(self, w);
}

static void run_on_sim(World *w, uint64_t seed)
{
    SimConfig config = {
        .seed = seed, .inline_completion = seed % 2, .short_transfers = seed % 3 == 0};
    Sim *sim = sim_new(&config);
    sim_loop_new(sim); // of the test itself
    for (unsigned i = 0; i < 2; i++)
        w->loops[i] = sim_loop_new(sim);
    w->memory = map_memory_new(4 << 20);
    w->dir = "";
    assert_true(sim_run(sim, world_main, w));
    sim_free(sim);
    map_memory_free(w->memory);
}

static void *run_loop(void *loop)
{
    loop_run(loop);
    return NULL;
}

// In the current folder: on a disk, where the tests are built on one.
static void run_on_host(World *w)
{
    pthread_t threads[2];
    g_autofree char *dir = g_strdup("component-XXXXXX");
    assert_non_null(g_mkdtemp(dir));
    w->dir = dir;
    w->memory = map_memory_new(4 << 20);
    for (unsigned i = 0; i < 2; i++) {
        w->loops[i] = loop_new(NULL, NULL);
        assert_non_null(w->loops[i]);
        assert_int_equal(pthread_create(&threads[i], NULL, run_loop, w->loops[i]), 0);
    }
    Loop *own = run_in_fiber_of_loop(NULL, world_main, w);
    for (unsigned i = 0; i < 2; i++) {
        loop_stop(w->loops[i]);
        pthread_join(threads[i], NULL);
    }
    for (unsigned i = 0; i < 2; i++)
        loop_free(w->loops[i]);
    loop_free(own);
    map_memory_free(w->memory);
    g_autofree char *command = g_strdup_printf("rm -r '%s'", dir);
    assert_int_equal(system(command), 0);
}

// Until each guest has done something since.
static void let_guests_go_on(Fiber *self, const World *w)
{
    for (unsigned i = 0; i < GUESTS; i++)
        for (unsigned n = w->guests[i]->n_requests; w->guests[i]->n_requests == n;)
            fiber_sleep(self, 1000);
}

static void move(Fiber *self, Node *node, Loop *loop)
{
    g_autoptr(GError) error = NULL;
    if (component_move(self, &(ComponentMove){&node, 1, loop}, &error) < 0)
        g_error("%s", error->message);
    fiber_assert(node->loop == loop);
}

// Of what an image lies in. Wherever a move begins, all that hangs together moves.
static Node *lowest(Node *node)
{
    for (node = node->others->pdata[0]; node->backing; node = node->backing)
        ;
    return node;
}

// --- moves under load ----------------------------------------------------------------------------

static void move_back_and_forth(Fiber *self, World *w)
{
    on(self, w->loops[0], create_and_open, w);
    for (unsigned i = 1; i <= w->n_moves; i++) {
        let_guests_go_on(self, w);
        move(self, w->is_behind_filters ? lowest(w->node) : w->node, w->loops[i % 2]);
    }
    on(self, w->loops[w->n_moves % 2], close_and_verify, w);
}

static void a_chain_moves_under_load_on_simulated_loops(void **state)
{
    for (uint64_t seed = 1; seed <= 24; seed++) {
        World w = {.test = move_back_and_forth, .n_moves = 60, .is_direct = seed % 4 == 3};
        run_on_sim(&w, seed);
    }
}

static void a_chain_moves_under_load_on_loops_of_the_host(void **state)
{
    World w = {.test = move_back_and_forth, .n_moves = 400};
    run_on_host(&w);
}

static void a_chain_with_direct_files_moves_under_load(void **state)
{
    World w = {.test = move_back_and_forth, .n_moves = 101, .is_direct = true};
    run_on_host(&w);
}

static void what_an_image_lies_in_moves_with_it(void **state)
{
    World w = {.test = move_back_and_forth, .is_behind_filters = true};
    ThrottleLimits limits;
    throttle_limits_init(&limits);
    w.groups = throttle_groups_new();
    assert_true(throttle_groups_add(w.groups, "group", &limits));
    for (uint64_t seed = 1; seed <= 12; seed++) {
        World on_sim = w;
        on_sim.n_moves = 40;
        run_on_sim(&on_sim, seed);
    }
    w.n_moves = 200;
    run_on_host(&w);
    throttle_groups_free(w.groups);
}

// --- a component that stands still ---------------------------------------------------------------

static unsigned n_requests(const World *w)
{
    unsigned n = 0;
    for (unsigned i = 0; i < GUESTS; i++)
        n += w->guests[i]->n_requests;
    return n;
}

// What the image lies in goes past the page cache and back, which no transfer may meet.
static void stop_and_go(Fiber *self, void *arg)
{
    World *w = arg;
    File *file = node_file(w->is_behind_filters ? lowest(w->node) : w->node);
    for (unsigned i = 0; i < w->n_moves; i++) {
        let_guests_go_on(self, w);
        fiber_assert_equal(component_check_still(w->node, NULL), 0);
        ComponentStill *still = component_still_begin(self, w->node);
        unsigned n = n_requests(w);
        fiber_sleep(self, 100000);
        fiber_assert_equal(n_requests(w), n);
        fiber_assert_equal(file_set_direct(self, file, i % 2 == 0, NULL), 0);
        fiber_assert_equal(file_is_direct(file), i % 2 == 0);
        component_still_end(self, still);
    }
}

static void stand_still(Fiber *self, World *w)
{
    on(self, w->loops[0], create_and_open, w);
    on(self, w->loops[0], stop_and_go, w);
    on(self, w->loops[0], close_and_verify, w);
}

static void a_component_stands_still_and_goes_on(void **state)
{
    ThrottleLimits limits;
    throttle_limits_init(&limits);
    World w = {.test = stand_still, .n_moves = 21, .groups = throttle_groups_new()};
    assert_true(throttle_groups_add(w.groups, "group", &limits));
    for (uint64_t seed = 1; seed <= 16; seed++) {
        World on_sim = w;
        on_sim.is_behind_filters = seed % 2;
        run_on_sim(&on_sim, seed);
    }
    run_on_host(&w);
    throttle_groups_free(w.groups);
}

typedef struct Drainer {
    Node *node;
    unsigned n; // drains that it begins and ends still
    bool has_begun;
    uint64_t ended_ns;
} Drainer;

static void drain_for_a_while(Fiber *self, void *arg)
{
    Drainer *d = arg;
    for (; d->n > 0; d->n--) {
        node_drain_begin(self, d->node, REQUESTS_THAT_WRITE);
        d->has_begun = true;
        fiber_sleep(self, 1234567);
        d->ended_ns = loop_now_ns(fiber_loop(self));
        node_drain_end(d->node, REQUESTS_THAT_WRITE);
    }
}

static void stand_still_after_others(Fiber *self, void *arg)
{
    // Flushes of it take no time.
    Node *below = driver_node_make(self, "{'driver': 'null-co'}", NULL);
    Node *node = driver_node_make(self, "{'driver': 'copy-on-read'}", below);
    Drainer d = {.node = below, .n = 3};
    fiber_spawn(fiber_loop(self), "drainer", drain_for_a_while, &d, NULL);
    while (!d.has_begun)
        fiber_yield(self);
    ComponentStill *still = component_still_begin(self, node);
    fiber_assert_equal(d.n, 0);
    fiber_assert_equal(loop_now_ns(fiber_loop(self)), d.ended_ns);
    component_still_end(self, still);
    node_unref_close(self, node);
    node_unref_close(self, below);
}

static void it_stands_still_as_soon_as_nobody_else_keeps_requests_out(void **state)
{
    for (uint64_t seed = 1; seed <= 8; seed++) {
        Sim *sim = sim_new(&(SimConfig){.seed = seed});
        sim_loop_new(sim);
        assert_true(sim_run(sim, stand_still_after_others, NULL));
        sim_free(sim);
    }
}

// --- what goes along -----------------------------------------------------------------------------

// What was dirty on the old loop is flushed from the new one.
static void move_and_flush(Fiber *self, void *arg)
{
    World *w = arg;
    end_guests(self, w);
    fiber_assert_equal(node_flush(self, w->node), 0);
}

static void open_again_and_verify(Fiber *self, void *arg)
{
    World *w = arg;
    Node *node = open_chain(self, w, "top", false);
    for (unsigned i = 0; i < GUESTS; i++)
        verify_guest(self, w->guests[i], node);
    node_unref_close(self, node);
}

typedef struct CutWorld {
    World world;
    Sim *sim;
} CutWorld;

static void move_then_cut(Fiber *self, World *w)
{
    Sim *sim = ((CutWorld *)w)->sim;
    on(self, w->loops[0], create_and_open, w);
    for (unsigned i = 0; i < 5; i++)
        let_guests_go_on(self, w);
    move(self, w->node, w->loops[1]);
    on(self, w->loops[1], move_and_flush, w);
    for (uint64_t seed = 1; seed <= 8; seed++) {
        Sim *after = sim_clone_after_power_cut(sim, seed);
        fiber_assert(sim_run(after, open_again_and_verify, w));
        sim_free(after);
    }
    for (unsigned i = 0; i < GUESTS; i++)
        resume(&w->guests[i]->port);
    on(self, w->loops[1], close_and_verify, w);
}

static void what_was_dirty_is_durable_after_a_flush_on_the_new_loop(void **state)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        CutWorld c = {.world = {.test = move_then_cut, .dir = ""}};
        World *w = &c.world;
        c.sim = sim_new(&(SimConfig){.seed = seed});
        sim_loop_new(c.sim);
        for (unsigned i = 0; i < 2; i++)
            w->loops[i] = sim_loop_new(c.sim);
        w->memory = map_memory_new(4 << 20);
        assert_true(sim_run(c.sim, world_main, w));
        sim_free(c.sim);
        map_memory_free(w->memory);
    }
}

// --- instances -----------------------------------------------------------------------------------

// A second overlay on the same middle layer, and a filter.
static void open_beside(Fiber *self, void *arg)
{
    World *w = arg;
    create_image(self, w, "beside", "middle");
    g_autofree char *path = path_in(w, "beside");
    LayerOptions options = {.memory = w->memory, .format = "qcow2"};
    Layer *layer;
    fiber_assert_equal(layer_open(self, path, &options, &layer, NULL), 0);
    fiber_assert_equal(layer_load(self, layer, &w->other, NULL), 0);
    layer_drop(self, layer);
    chain_set_backing(self, w->other, chain_backing(w->node), w->memory);
}

typedef struct Instance {
    World *w;
    Node *below;
} Instance;

static void open_instance(Fiber *self, void *arg)
{
    Instance *instance = arg;
    Node *middle = open_chain(self, instance->w, "middle", true);
    instance->below = chain_below_new(self, middle, instance->w->memory);
    node_unref_close(self, middle);
}

static void drop_instance(Fiber *self, void *arg)
{
    node_unref_close(self, ((Instance *)arg)->below);
}

static void close_beside(Fiber *self, void *arg)
{
    node_unref_close(self, ((World *)arg)->other);
}

static void leave_and_rejoin(Fiber *self, World *w)
{
    on(self, w->loops[0], create_and_open, w);
    on(self, w->loops[0], open_beside, w);
    for (unsigned i = 1; i <= w->n_moves; i++) {
        let_guests_go_on(self, w);
        Loop *to = w->loops[i % 2];
        Instance instance = {.w = w};
        on(self, to, open_instance, &instance);
        ComponentEdge edge = {w->node, instance.below};
        fiber_assert_equal(component_move(self, &(ComponentMove){&w->node, 1, to, &edge, 1}, NULL),
                           0);
        fiber_assert(w->node->loop == to && w->node->backing == instance.below);
        fiber_assert(w->other->loop == w->loops[0]);
        on(self, to, drop_instance, &instance); // the overlay has its own reference
    }
    on(self, w->loops[0], close_beside, w);
    on(self, w->loops[w->n_moves % 2], close_and_verify, w);
}

static void an_overlay_moves_and_its_layers_are_another_instance_there(void **state)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        World w = {.test = leave_and_rejoin, .n_moves = 21};
        run_on_sim(&w, seed);
    }
    World w = {.test = leave_and_rejoin, .n_moves = 51};
    run_on_host(&w);
}

// Without an edge that is changed the second overlay comes along, and the layers below both.
static void move_together(Fiber *self, World *w)
{
    on(self, w->loops[0], create_and_open, w);
    on(self, w->loops[0], open_beside, w);
    move(self, w->node, w->loops[1]);
    fiber_assert(w->other->loop == w->loops[1]);
    for (const Node *n = w->other; n; n = n->backing)
        fiber_assert(n->loop == w->loops[1]);
    let_guests_go_on(self, w);
    on(self, w->loops[1], close_beside, w);
    on(self, w->loops[1], close_and_verify, w);
}

static void all_that_edges_join_moves_together(void **state)
{
    World w = {.test = move_together};
    run_on_sim(&w, 1);
}

// --- refusals ------------------------------------------------------------------------------------

static void expect_refusal(Fiber *self, World *w, int expected, const char *words)
{
    g_autoptr(GError) error = NULL;
    fiber_assert_equal(component_move(self, &(ComponentMove){&w->node, 1, w->loops[1]}, &error),
                       expected);
    if (!strstr(error->message, words))
        g_error("'%s' does not speak of '%s'", error->message, words);
    fiber_assert(w->node->loop == w->loops[0]);
    let_guests_go_on(self, w);
}

static void put_filter(Fiber *self, void *arg)
{
    World *w = arg;
    w->other = pass_filter_new(w->loops[0], "stuck", DISK_BYTES);
    node_insert_filter(self, w->node, w->other);
}

static void take_filter(Fiber *self, void *arg)
{
    World *w = arg;
    node_remove_filter(self, w->other);
    node_unref_close(self, w->other);
}

// Guests go on all the time.
static void work_on_snapshots(Fiber *self, void *arg)
{
    World *w = arg;
    g_autoptr(GError) error = NULL;
    qcow2_snapshot_hold(w->node);
    fiber_assert_equal(component_check_still(w->node, &error), -EBUSY);
    fiber_assert(strstr(error->message, "internal snapshot"));
    let_guests_go_on(self, w);
}

static void end_work_on_snapshots(Fiber *self, void *arg)
{
    qcow2_snapshot_release(((World *)arg)->node);
    fiber_assert_equal(component_check_still(((World *)arg)->node, NULL), 0);
}

static void refuse(Fiber *self, World *w)
{
    on(self, w->loops[0], create_and_open, w);
    on(self, w->loops[0], work_on_snapshots, w);
    expect_refusal(self, w, -EBUSY, "an internal snapshot of it is being made or deleted");
    on(self, w->loops[0], end_work_on_snapshots, w);
    w->guests[1]->is_busy = true; // the first one is parked, and goes on
    expect_refusal(self, w, -EBUSY, "guest is busy");
    w->guests[1]->is_busy = false;
    w->guests[1]->port.move_ops = NULL;
    expect_refusal(self, w, -ENOTSUP, "guest");
    w->guests[1]->port.move_ops = &guest_ops;
    on(self, w->loops[0], put_filter, w);
    expect_refusal(self, w, -ENOTSUP, "stuck");
    on(self, w->loops[0], take_filter, w);
    move(self, w->node, w->loops[1]);
    on(self, w->loops[1], close_and_verify, w);
}

static void what_is_not_idle_stays_and_goes_on(void **state)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        World w = {.test = refuse};
        run_on_sim(&w, seed);
    }
    World w = {.test = refuse};
    run_on_host(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_moves_under_load_on_simulated_loops),
        cmocka_unit_test(a_chain_moves_under_load_on_loops_of_the_host),
        cmocka_unit_test(a_chain_with_direct_files_moves_under_load),
        cmocka_unit_test(what_an_image_lies_in_moves_with_it),
        cmocka_unit_test(a_component_stands_still_and_goes_on),
        cmocka_unit_test(it_stands_still_as_soon_as_nobody_else_keeps_requests_out),
        cmocka_unit_test(what_was_dirty_is_durable_after_a_flush_on_the_new_loop),
        cmocka_unit_test(an_overlay_moves_and_its_layers_are_another_instance_there),
        cmocka_unit_test(all_that_edges_join_moves_together),
        cmocka_unit_test(what_is_not_idle_stays_and_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
