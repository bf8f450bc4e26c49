// SPDX-License-Identifier: LGPL-2.1-or-later
// An image in a node: behind filters, in a raw part, over a file that grows with it or ends. On the
// simulation.
#include "host.h"

#include <errno.h>
#include <string.h>

#include "../node/driver-node.h"
#include "../node/memory-node.h"
#include "../node/pass-filter.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/node-file.h"
#include "chain-core/port.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2.h"
#include "chain-core/raw.h"
#include "chain-core/sim.h"

#define PATH "/image"
enum {
    DISK = 4 << 20,
    CLUSTER = 4096,
    N_WRITERS = 8,
    PART = DISK / N_WRITERS,
    OFFSET = 8192,
};

typedef struct Test {
    Sim *sim;
    const char *stack; // over the file, from the bottom: see stack_on()
    uint64_t part_bytes;
    void (*fn)(Fiber *self, struct Test *t);
    GPtrArray *nodes; // of the stack, from the bottom
    Node *view;
    MapMemory *memory;
    uint8_t *shadow;
    HostRandom random;
    unsigned n_writers;
    FiberWaitGroup writers;
    SimHook hook;
    bool is_cut; // the power, at the next operation
} Test;

static Node *top_of(const Test *t)
{
    return t->nodes->pdata[t->nodes->len - 1];
}

static File *file_on(Node *node)
{
    File *file;
    g_autoptr(GError) error = NULL;
    if (node_file_new(node, true, &file, &error) < 0)
        fail_msg("%s", error->message);
    return file;
}

static Node *make_blkdebug(Fiber *self, Node *below)
{
    const Driver *driver = driver_find("blkdebug");
    DriverOptions options = {.name = "debug", .is_writable = true};
    Node *node;
    assert_int_equal(driver->make(self, &options, below, &node, NULL), 0);
    return node;
}

// p: a filter without operations, c: copy-on-read, b: blkdebug, r: raw from an offset on.
static Node *stack_on(Fiber *self, const Test *t, char what, Node *below)
{
    Node *node = NULL;
    switch (what) {
    case 'p':
        node = pass_filter_new(below->loop, "pass", below->size_bytes);
        node_set_backing(self, node, below);
        break;
    case 'c':
        node = driver_node_make(self, "{'driver': 'copy-on-read'}", below);
        break;
    case 'b':
        node = make_blkdebug(self, below);
        break;
    default:
        assert_int_equal(raw_node_new_part(self, file_on(below), OFFSET,
                                           t->part_bytes ?: RAW_TO_END, &node, NULL),
                         0);
        node_add_child(node, below);
    }
    return node;
}

static void build_stack(Fiber *self, Test *t)
{
    File *file;
    t->nodes = g_ptr_array_new();
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    g_ptr_array_add(t->nodes, file_node_new(file));
    for (const char *at = t->stack; *at; at++)
        g_ptr_array_add(t->nodes, stack_on(self, t, *at, top_of(t)));
}

static void drop_stack(Fiber *self, Test *t)
{
    while (t->nodes->len)
        node_unref_close(self, g_ptr_array_steal_index(t->nodes, t->nodes->len - 1));
    g_ptr_array_unref(t->nodes);
}

static void make_image(Fiber *self, Test *t)
{
    Qcow2CreateOptions options = {.size_bytes = DISK, .cluster_bytes = CLUSTER};
    g_autoptr(GError) error = NULL;
    File *file = file_on(top_of(t));
    if (qcow2_create_in(self, file, &options, &error) < 0)
        fail_msg("%s", error->message);
    file_close(self, file);
}

static void open_view(Fiber *self, Test *t)
{
    Qcow2OpenOptions options = {.memory = t->memory};
    g_autoptr(GError) error = NULL;
    Qcow2Image *image;
    if (qcow2_image_open(self, file_on(top_of(t)), &options, &image, &error) < 0 ||
        qcow2_view_new(self, image, NULL, &t->view, &error) < 0)
        fail_msg("%s", error->message);
    qcow2_image_unref_close(self, image);
}

static void check_image(Fiber *self, Test *t)
{
    Qcow2CheckResult result;
    File *file = file_on(top_of(t));
    assert_int_equal(qcow2_check(self, file, 0, &result, NULL), 0);
    file_close(self, file);
    if (result.n_corruptions || result.n_leaks || result.n_check_errors)
        fail_msg("%s", (char *)g_ptr_array_index(result.messages, 0));
    qcow2_check_result_clear(&result);
}

static void assert_shows_shadow(Fiber *self, const Test *t)
{
    g_autofree uint8_t *buf = g_malloc(DISK);
    assert_int_equal(node_read(self, t->view, guest_off(0), buf, DISK), 0);
    for (unsigned i = 0; i < DISK; i++)
        if (buf[i] != t->shadow[i])
            fail_msg("%#x shows %#x, not %#x", i, buf[i], t->shadow[i]);
}

static void run_fiber(Fiber *self, void *arg)
{
    Test *t = arg;
    t->memory = map_memory_new(1 << 20);
    build_stack(self, t);
    t->fn(self, t);
    drop_stack(self, t);
    map_memory_free(t->memory);
}

static bool run_in(Test *t, Sim *sim, const char *stack, void (*fn)(Fiber *self, Test *t))
{
    t->sim = sim;
    t->stack = stack;
    t->fn = fn;
    return sim_run(sim, run_fiber, t);
}

// -- a guest --------------------------------------------------------------------------------------

static void change_something(Fiber *self, Test *t, uint64_t start, HostRandom *random)
{
    uint64_t len = 1 + host_random(random, 5 * CLUSTER);
    uint64_t off = start + host_random(random, PART - len);
    uint8_t byte = 1 + host_random(random, 255);
    int r = 0;
    switch (host_random(random, 8)) {
    case 0:
        byte = 0;
        r = node_zero(self, t->view, guest_off(off), len, 0);
        break;
    case 1:
        off = off / CLUSTER * CLUSTER;
        len = CLUSTER; // of whole clusters the outcome is known
        byte = 0;
        r = node_discard(self, t->view, guest_off(off), len, 0);
        break;
    case 2:
        assert_int_equal(node_flush(self, t->view), 0);
        return;
    default:
        memset(t->shadow + off, byte, len);
        r = node_write(self, t->view, guest_off(off), t->shadow + off, len,
                       host_random(random, 8) ? 0 : NODE_IO_FUA);
    }
    assert_int_equal(r, 0);
    memset(t->shadow + off, byte, len);
}

static void writer(Fiber *self, void *arg)
{
    Test *t = arg;
    uint64_t start = t->n_writers++ * (uint64_t)PART;
    HostRandom random = {.state = t->random.state + start};
    for (unsigned i = 0; i < 25; i++)
        change_something(self, t, start, &random);
    fiber_wait_group_done(&t->writers);
}

static void work(Fiber *self, Test *t)
{
    t->n_writers = 0;
    fiber_wait_group_add(&t->writers, N_WRITERS);
    for (unsigned i = 0; i < N_WRITERS; i++)
        assert_int_equal(fiber_spawn(fiber_loop(self), "writer", writer, t, NULL), 0);
    fiber_wait_group_wait(self, &t->writers);
    assert_int_equal(node_flush(self, t->view), 0);
    assert_shows_shadow(self, t);
}

static void assert_all_grew(const Test *t)
{
    const Node *file = t->nodes->pdata[0];
    uint64_t size = file->size_bytes;
    assert_true(size > DISK / 4);
    assert_int_equal(size, file_size(node_file(t->nodes->pdata[0])));
    for (guint i = 1; i < t->nodes->len; i++) {
        const Node *node = t->nodes->pdata[i];
        size -= node->ops->is_filter ? 0 : OFFSET;
        assert_int_equal(node->size_bytes, size);
    }
}

static void grow(Fiber *self, Test *t)
{
    make_image(self, t);
    open_view(self, t);
    work(self, t);
    assert_all_grew(t);
    node_unref_close(self, t->view);
    check_image(self, t);
    open_view(self, t);
    work(self, t);
    node_unref_close(self, t->view);
    check_image(self, t);
}

static Sim *new_sim(uint64_t seed, bool no_punch)
{
    static uint8_t nothing[OFFSET];
    SimConfig config = {.seed = seed,
                        .short_transfers = seed % 2,
                        .inline_completion = seed % 3 == 0,
                        .no_punch = no_punch};
    Sim *sim = sim_new(&config);
    assert_int_equal(sim_write_file(sim, PATH, nothing, sizeof nothing), 0);
    return sim;
}

static void an_image_grows_behind_filters_and_in_raw_parts(void **state)
{
    static const char *const stacks[] = {"", "p", "b", "c", "pcb", "r", "pr", "rp", "prb"};
    uint64_t seed = host_seed(3);
    for (unsigned i = 0; i < G_N_ELEMENTS(stacks); i++, seed++) {
        Test t = {.random = {seed}, .shadow = g_malloc0(DISK)};
        Sim *sim = new_sim(seed, i % 4 == 3);
        assert_true(run_in(&t, sim, stacks[i], grow));
        sim_free(sim);
        g_free(t.shadow);
    }
}

// -- an end ---------------------------------------------------------------------------------------

static void fill(Fiber *self, Test *t)
{
    make_image(self, t);
    open_view(self, t);
    uint64_t off = 0;
    int r = 0;
    for (; r == 0 && off < DISK; off += CLUSTER) {
        memset(t->shadow + off, 0x5a, CLUSTER);
        r = node_write(self, t->view, guest_off(off), t->shadow + off, CLUSTER, 0);
    }
    assert_int_equal(r, -ENOSPC);
    memset(t->shadow + off - CLUSTER, 0, CLUSTER);
    assert_int_equal(node_flush(self, t->view), 0);
    assert_shows_shadow(self, t);
    assert_int_equal(top_of(t)->size_bytes, t->part_bytes);
    node_unref_close(self, t->view);
    check_image(self, t);
}

static void a_raw_part_with_a_size_ends_there(void **state)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        static uint8_t nothing[2 << 20];
        Test t = {.shadow = g_malloc0(DISK), .part_bytes = 1 << 20};
        Sim *sim = new_sim(seed, false);
        assert_int_equal(sim_write_file(sim, PATH, nothing, sizeof nothing), 0);
        assert_true(run_in(&t, sim, seed % 2 ? "r" : "pr", fill));
        sim_free(sim);
        g_free(t.shadow);
    }
}

// -- a power cut ----------------------------------------------------------------------------------

static int cut_power(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                     uint64_t len)
{
    const Test *t = (const Test *)((char *)hook - offsetof(Test, hook));
    return t->is_cut ? SIM_POWER_CUT : 0;
}

static void write_and_lose_power(Fiber *self, Test *t)
{
    make_image(self, t);
    open_view(self, t);
    work(self, t);
    t->is_cut = true;
    node_write(self, t->view, guest_off(0), t->shadow, 1, NODE_IO_FUA);
    fail_msg("the power was not cut");
}

static void look(Fiber *self, Test *t)
{
    open_view(self, t);
    assert_shows_shadow(self, t);
    node_unref_close(self, t->view);
}

static void a_flush_goes_through_all_that_lies_below(void **state)
{
    static const char *const stacks[] = {"pb", "r", "prb"};
    for (unsigned i = 0; i < G_N_ELEMENTS(stacks); i++) {
        Test t = {.random = {i}, .shadow = g_malloc0(DISK), .hook.fn = cut_power};
        Sim *sim = new_sim(i + 1, false);
        sim_set_hook(sim, &t.hook);
        assert_false(run_in(&t, sim, stacks[i], write_and_lose_power));
        Sim *after = sim_clone_after_power_cut(sim, i);
        assert_true(run_in(&t, after, stacks[i], look));
        sim_free(after);
        sim_free(sim);
        g_free(t.shadow);
    }
}

// -- locks ----------------------------------------------------------------------------------------

static void lock_through(Fiber *self, Test *t)
{
    File *image = file_on(top_of(t)), *other;
    unsigned held = FILE_PERM_CONSISTENT_READ, unshared = FILE_PERM_WRITE;
    assert_int_equal(file_lock(self, image, held, unshared, NULL), 0);
    assert_int_equal(file_open(self, PATH, 0, &other, NULL), 0);
    g_autoptr(GError) error = NULL;
    assert_int_equal(file_lock(self, other, FILE_PERM_WRITE, 0, &error), -EAGAIN);
    assert_int_equal(file_lock(self, other, held, 0, NULL), 0);
    file_close(self, image);
    assert_int_equal(file_lock(self, node_file(t->nodes->pdata[0]), 0, 0, NULL), 0);
    assert_int_equal(file_lock(self, other, FILE_PERM_WRITE, 0, NULL), 0);
    file_close(self, other);
}

static void the_locks_of_an_image_are_those_of_the_file_below(void **state)
{
    static const char *const stacks[] = {"p", "r", "prb"};
    for (unsigned i = 0; i < G_N_ELEMENTS(stacks); i++) {
        Test t = {0};
        Sim *sim = new_sim(i, false);
        assert_true(run_in(&t, sim, stacks[i], lock_through));
        sim_free(sim);
    }
}

// -- events ---------------------------------------------------------------------------------------

static unsigned n_events[DEBUG_N_EVENTS];

static void count_event(Node *node, DebugEvent event)
{
    n_events[event]++;
}

static const NodeOps counting_ops = {
    .driver = "counting", .is_filter = true, .debug_event = count_event};

static void make_events(Fiber *self, Test *t)
{
    Qcow2CreateOptions options = {.size_bytes = DISK, .cluster_bytes = 512, .refcount_bits = 64};
    Node *counting = g_new0(Node, 1);
    node_init(counting, &counting_ops, top_of(t)->loop, "counting", top_of(t)->size_bytes);
    node_set_backing(self, counting, top_of(t));
    g_ptr_array_add(t->nodes, counting);
    File *file = file_on(counting);
    assert_int_equal(qcow2_create_in(self, file, &options, NULL), 0);
    file_close(self, file);
    open_view(self, t);
    MemoryNode *below = memory_node_new(fiber_loop(self), DISK);
    memset(below->data, 0x77, DISK);
    node_set_backing(self, t->view, &below->node);
    memset(t->shadow, 0x77, DISK);
    assert_int_equal(node_write(self, t->view, guest_off(0), t->shadow, 100, 0), 0);
    assert_int_equal(n_events[DEBUG_CLUSTER_ALLOC], 2); // data, and a table
    assert_int_equal(n_events[DEBUG_L2_UPDATE] + n_events[DEBUG_L1_UPDATE], 0);
    for (uint64_t off = 100; off < DISK / 2; off += 10000) {
        memset(t->shadow + off, 0x11, 9999);
        assert_int_equal(node_write(self, t->view, guest_off(off), t->shadow + off, 9999, 0), 0);
    }
    assert_int_equal(node_flush(self, t->view), 0);
    memset(t->shadow + 1024, 0x22, 512);
    assert_int_equal(node_write(self, t->view, guest_off(1024), t->shadow + 1024, 512, 0), 0);
    assert_int_equal(node_discard(self, t->view, guest_off(8192), 8192, 0), 0);
    memset(t->shadow + 8192, 0, 8192);
    assert_int_equal(node_flush(self, t->view), 0);
    assert_shows_shadow(self, t);
    assert_int_equal(node_resize(self, t->view, 8 * (uint64_t)DISK, NULL), 0);
    node_unref_close(self, t->view);
    open_view(self, t);
    node_set_backing(self, t->view, &below->node);
    assert_shows_shadow(self, t);
    node_unref_close(self, t->view);
    node_unref_close(self, &below->node);
}

static void an_image_tells_what_it_is_about_to_do(void **state)
{
    static const DebugEvent come[] = {
        DEBUG_REFTABLE_LOAD,
        DEBUG_REFBLOCK_LOAD,
        DEBUG_L2_LOAD,
        DEBUG_READ_AIO,
        DEBUG_WRITE_AIO,
        DEBUG_COW_READ,
        DEBUG_COW_WRITE,
        DEBUG_CLUSTER_ALLOC,
        DEBUG_CLUSTER_FREE,
        DEBUG_L2_ALLOC_WRITE,
        DEBUG_L2_UPDATE,
        DEBUG_L1_UPDATE,
        DEBUG_REFBLOCK_UPDATE_PART,
        DEBUG_REFBLOCK_ALLOC,
        DEBUG_REFBLOCK_ALLOC_HOOKUP,
        DEBUG_REFTABLE_GROW,
        DEBUG_REFBLOCK_ALLOC_WRITE_BLOCKS,
        DEBUG_REFBLOCK_ALLOC_WRITE_TABLE,
        DEBUG_REFBLOCK_ALLOC_SWITCH_TABLE,
        DEBUG_FLUSH_TO_OS,
        DEBUG_FLUSH_TO_DISK,
        DEBUG_L1_GROW_ALLOC_TABLE,
        DEBUG_L1_GROW_WRITE_TABLE,
        DEBUG_L1_GROW_ACTIVATE_TABLE,
    };
    Test t = {.shadow = g_malloc0(DISK)};
    Sim *sim = new_sim(1, false);
    assert_true(run_in(&t, sim, "", make_events));
    for (unsigned i = 0; i < G_N_ELEMENTS(come); i++)
        if (!n_events[come[i]])
            fail_msg("%s does not come", debug_event_names[come[i]]);
    sim_free(sim);
    g_free(t.shadow);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_image_grows_behind_filters_and_in_raw_parts),
        cmocka_unit_test(a_raw_part_with_a_size_ends_there),
        cmocka_unit_test(a_flush_goes_through_all_that_lies_below),
        cmocka_unit_test(an_image_tells_what_it_is_about_to_do),
        cmocka_unit_test(the_locks_of_an_image_are_those_of_the_file_below),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
