// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-forwarding in the simulation: whatever guests do, in whichever mode, and whatever fails in
// the target, it shows what the source shows once the work is done.
#include "slow-disk.h"

#include "chain-core/switch.h"
#include "copy-nodes.h"
#include "filter-forward.h"

enum {
    N_GUESTS = 5,
    N_REQUESTS = 60,
};

// -- a copy of it ---------------------------------------------------------------------------------

typedef struct Scene {
    GRand *rand;
    Disk *source, *target;
    Node *filter;
    CopyEngine *engine;
    RangeLock lock;
    Port guests, job;
    CopyNodes nodes;
    FiberWaitGroup running;
    unsigned n_hot_sectors; // to which guests keep
    bool switches_mode;
} Scene;

static int scene_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Scene *s = arg;
    NodeExtent extent;
    int r = node_map(self, &s->source->node, guest_off(off), len, &extent);
    if (r == 0)
        *ret_extent = (CopyExtent){
            .len = extent.len,
            .is_work = true,
            .kind = extent.kind == NODE_EXTENT_ZERO ? WORK_METADATA : WORK_DATA,
        };
    return r;
}

static int scene_copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    Scene *s = arg;
    return copy_nodes_chunk(self, &s->nodes, chunk);
}

static CopyErrorAction scene_failed(void *arg, const CopyChunk *chunk, int error)
{
    return COPY_ERROR_RETRY;
}

static const CopyEngineOps scene_ops = {
    .find = scene_find, .copy = scene_copy, .failed = scene_failed};

static Scene *scene_new(Fiber *self, ForwardMode mode)
{
    static guint32 seed;
    Scene *s = g_new0(Scene, 1);
    s->rand = g_rand_new_with_seed(++seed);
    s->n_hot_sectors = N_SECTORS - 20;
    s->source = disk_new(self, s->rand);
    s->target = disk_new(self, s->rand);
    CopyEngineConfig engine = {.size_bytes = SIZE,
                               .granularity_bits = 12,
                               .chunk_bytes = 2 * GRANULE,
                               .window_bytes = 8 * GRANULE,
                               .ops = &scene_ops,
                               .arg = s};
    s->engine = copy_engine_new(fiber_loop(self), &engine);
    port_init(&s->guests, &s->source->node, "guests");
    ForwardConfig config = {.name = "forward",
                            .source = &s->source->node,
                            .target = &s->target->node,
                            .engine = s->engine,
                            .lock = &s->lock,
                            .mode = mode};
    s->filter = filter_forward_new(&config);
    node_insert_filter(self, &s->source->node, s->filter);
    port_init(&s->job, s->filter, "job");
    s->nodes = (CopyNodes){
        .source = &s->source->node, .target = &s->target->node, .port = &s->job, .lock = &s->lock};
    return s;
}

static void scene_free(Fiber *self, Scene *s)
{
    fiber_assert(range_lock_is_free(&s->lock));
    port_done(self, &s->job);
    port_done(self, &s->guests);
    node_unref_close(self, s->filter);
    node_unref_close(self, &s->source->node);
    node_unref_close(self, &s->target->node);
    copy_engine_free(s->engine);
    g_rand_free(s->rand);
    g_free(s);
}

static void assert_in_step(const Scene *s)
{
    for (unsigned i = 0; i < SIZE; i++)
        if (s->source->data[i] != s->target->data[i])
            g_error("byte %u of sector %u: source %u, target %u", i, i / SECTOR, s->source->data[i],
                    s->target->data[i]);
}

// -- guests ---------------------------------------------------------------------------------------

static int request(Fiber *self, Scene *s, Node *node, RequestKind kind, uint64_t off, uint64_t len)
{
    if (kind == REQUEST_ZERO)
        return node_zero(self, node, guest_off(off), len, 0);
    if (kind == REQUEST_DISCARD)
        return node_discard(self, node, guest_off(off), len, 0);
    g_autofree uint8_t *buf = g_malloc(len);
    memset(buf, g_rand_int_range(s->rand, 1, 256), len);
    return node_write(self, node, guest_off(off), buf, len, 0);
}

static void guest(Fiber *self, void *arg)
{
    static const RequestKind kinds[] = {REQUEST_WRITE, REQUEST_WRITE, REQUEST_WRITE, REQUEST_ZERO,
                                        REQUEST_DISCARD};
    Scene *s = arg;
    for (unsigned i = 0; i < N_REQUESTS; i++) {
        RequestKind kind = kinds[g_rand_int_range(s->rand, 0, G_N_ELEMENTS(kinds))];
        uint64_t first = (uint64_t)g_rand_int_range(s->rand, 0, (gint32)s->n_hot_sectors);
        uint64_t n = (uint64_t)g_rand_int_range(s->rand, 1, 20);
        take_time(self, s->rand);
        Node *node = port_enter(self, &s->guests, kind);
        fiber_assert_equal(request(self, s, node, kind, first * SECTOR, n * SECTOR), 0);
        port_leave(&s->guests, kind);
        if (s->switches_mode && g_rand_int_range(s->rand, 0, 5) == 0)
            filter_forward_set_mode(s->filter, (ForwardMode)g_rand_int_range(s->rand, 0, 3));
    }
    fiber_wait_group_done(&s->running);
}

static void run_beside_guests(Fiber *self, Scene *s)
{
    fiber_wait_group_add(&s->running, N_GUESTS);
    for (unsigned i = 0; i < N_GUESTS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", guest, s, NULL), 0);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    fiber_wait_group_wait(self, &s->running);
}

SIM_TEST(in_the_background_what_guests_wrote_is_copied)
{
    Scene *s = scene_new(self, FORWARD_BACKGROUND);
    run_beside_guests(self, s);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_in_step(s);
    scene_free(self, s);
}

// The copy takes them as they are.
SIM_TEST(compressed_clusters_that_guests_wrote_meanwhile_are_dropped)
{
    static const ForwardMode modes[] = {FORWARD_BACKGROUND, FORWARD_WRITE_BLOCKING};
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        Scene *s = scene_new(self, modes[i]);
        s->source->is_compressed = s->target->is_compressed = true;
        run_beside_guests(self, s);
        fiber_assert_equal(copy_engine_run(self, s->engine), 0);
        fiber_assert(s->target->n_compressed_writes > 0);
        assert_in_step(s);
        scene_free(self, s);
    }
}

SIM_TEST(write_blocking_guests_keep_the_target_in_step_themselves)
{
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    run_beside_guests(self, s);
    assert_in_step(s); // what was left when the copy ended was nothing, and stayed so
    scene_free(self, s);
}

SIM_TEST(discards_that_do_nothing_are_copied_too)
{
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    s->source->discards_nothing = true;
    run_beside_guests(self, s);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_in_step(s);
    scene_free(self, s);
}

static void assert_nothing_added(const Scene *s)
{
    CopyEngineStats stats;
    copy_engine_stats(s->engine, &stats);
    fiber_assert_equal(stats.n_added, 0);
    assert_in_step(s);
}

SIM_TEST(near_the_end_nothing_that_guests_do_becomes_work)
{
    Scene *s = scene_new(self, FORWARD_ENDING);
    s->source->discards_nothing = true;
    run_beside_guests(self, s);
    assert_nothing_added(s);
    scene_free(self, s);
}

SIM_TEST(discards_that_are_ignored_are_no_work)
{
    static const ForwardMode modes[] = {FORWARD_BACKGROUND, FORWARD_WRITE_BLOCKING};
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        Scene *s = scene_new(self, modes[i]);
        fiber_assert_equal(copy_engine_run(self, s->engine), 0);
        s->source->node.ignores_discards = true;
        fiber_assert_equal(node_discard(self, s->filter, guest_off(0), SIZE, 0), 0);
        assert_nothing_added(s);
        fiber_assert(copy_engine_is_idle(s->engine));
        fiber_assert_equal(node_discard(self, s->filter, guest_off(0), SIZE, NODE_IO_FUA), 0);
        fiber_assert_equal(s->source->n_flushes, 1);
        scene_free(self, s);
    }
}

SIM_TEST(zeros_that_were_refused_as_slow_are_no_work)
{
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    s->source->has_slow_zeros = true;
    int r = node_zero(self, s->filter, guest_off(SECTOR), GRANULE, NODE_IO_FAST_ZERO);
    fiber_assert_equal(r, -ENOTSUP);
    s->source->has_slow_zeros = false;
    s->target->has_slow_zeros = true;
    fiber_assert_equal(node_zero(self, s->filter, guest_off(SECTOR), GRANULE, NODE_IO_FAST_ZERO),
                       0);
    assert_nothing_added(s);
    scene_free(self, s);
}

SIM_TEST(the_mode_can_be_switched_at_any_moment)
{
    Scene *s = scene_new(self, FORWARD_BACKGROUND);
    s->switches_mode = true;
    s->n_hot_sectors = 20;
    run_beside_guests(self, s);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_in_step(s);
    scene_free(self, s);
}

static void write_first_granule(Fiber *self, void *arg)
{
    Scene *s = arg;
    uint8_t buf[GRANULE];
    memset(buf, g_rand_int_range(s->rand, 1, 256), sizeof buf);
    fiber_assert_equal(node_write(self, s->filter, guest_off(0), buf, GRANULE, 0), 0);
    fiber_wait_group_done(&s->running);
}

// Two guests that write the same at once, one before the mode was switched, one after it.
SIM_TEST(what_is_still_written_in_the_background_is_not_taken_for_done)
{
    Scene *s = scene_new(self, FORWARD_BACKGROUND);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    for (unsigned i = 0; i < 20; i++) {
        fiber_wait_group_add(&s->running, 2);
        filter_forward_set_mode(s->filter, FORWARD_BACKGROUND);
        fiber_spawn(fiber_loop(self), "before", write_first_granule, s, NULL);
        take_time(self, s->rand);
        filter_forward_set_mode(s->filter, FORWARD_WRITE_BLOCKING);
        fiber_spawn(fiber_loop(self), "after", write_first_granule, s, NULL);
        fiber_wait_group_wait(self, &s->running);
        fiber_assert_equal(copy_engine_run(self, s->engine), 0);
        assert_in_step(s);
    }
    scene_free(self, s);
}

SIM_TEST(failures_of_the_target_are_not_the_guests)
{
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    s->target->fail_percent = 20;
    run_beside_guests(self, s);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_in_step(s);
    scene_free(self, s);
}

// Without the copy: guests alone do all the work there is.
SIM_TEST(each_write_that_blocks_makes_the_work_less)
{
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    copy_engine_set_found(s->engine, SIZE);
    copy_engine_add(s->engine, WORK_DATA, 0, SIZE);
    uint8_t buf[SECTOR];
    for (unsigned i = 0; i < SIZE / GRANULE; i++) {
        CopyEngineStats before, after;
        copy_engine_stats(s->engine, &before);
        uint64_t off = (uint64_t)i * GRANULE + i % 8 * SECTOR;
        memset(buf, (int)i, sizeof buf);
        fiber_assert_equal(node_write(self, s->filter, guest_off(off), buf, SECTOR, 0), 0);
        copy_engine_stats(s->engine, &after);
        fiber_assert_equal(after.left, before.left - GRANULE);
    }
    assert_in_step(s);
    unsigned n_writes = s->target->n_writes;
    fiber_assert_equal(node_write(self, s->filter, guest_off(SECTOR), buf, SECTOR, 0), 0);
    fiber_assert_equal(s->target->n_writes, n_writes + 1);
    scene_free(self, s);
}

// A disk that is committed into a base that is larger.
SIM_TEST(the_last_granule_of_a_shorter_source_is_completed_with_zeros)
{
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    uint8_t buf[SECTOR];
    memset(buf, 7, sizeof buf);
    uint64_t end = SIZE - 2 * SECTOR;
    s->source->node.size_bytes = s->filter->size_bytes = end;
    copy_engine_set_found(s->engine, SIZE);
    copy_engine_add(s->engine, WORK_DATA, SIZE - GRANULE, GRANULE);
    fiber_assert_equal(node_write(self, s->filter, guest_off(end - 2 * SECTOR), buf, SECTOR, 0), 0);
    fiber_assert(copy_engine_is_idle(s->engine));
    memset(s->source->data + end, 0, SIZE - end);
    for (unsigned i = SIZE - GRANULE; i < SIZE; i++)
        fiber_assert_equal(s->target->data[i], s->source->data[i]);
    scene_free(self, s);
}

SIM_TEST(a_drain_of_the_target_waits_for_guests_and_chunks)
{
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    fiber_wait_group_add(&s->running, N_GUESTS);
    for (unsigned i = 0; i < N_GUESTS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", guest, s, NULL), 0);
    for (unsigned i = 0; i < 10; i++) {
        take_time(self, s->rand);
        node_drain_begin(self, &s->target->node, REQUESTS_ALL);
        unsigned n_writes = s->target->n_writes;
        fiber_assert(range_lock_is_free(&s->lock));
        fiber_sleep(self, 1000000);
        fiber_assert_equal(s->target->n_writes, n_writes);
        node_drain_end(&s->target->node, REQUESTS_ALL);
    }
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    fiber_wait_group_wait(self, &s->running);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_in_step(s);
    scene_free(self, s);
}

static void promise(Fiber *self, const Scene *s, RequestKind kind)
{
    uint8_t buf[SECTOR] = {1};
    int r = kind == REQUEST_FLUSH
                ? node_flush(self, s->filter)
                : node_write(self, s->filter, guest_off(0), buf, sizeof buf, NODE_IO_FUA);
    fiber_assert_equal(r, 0);
}

SIM_TEST(what_guests_are_promised_holds_in_the_target_when_that_is_asked_for)
{
    static const RequestKind kinds[] = {REQUEST_FLUSH, REQUEST_WRITE};
    Scene *s = scene_new(self, FORWARD_WRITE_BLOCKING);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        filter_forward_set_durable(s->filter, false);
        promise(self, s, kinds[i]);
        fiber_assert_equal(s->target->n_flushes, i);
        filter_forward_set_durable(s->filter, true);
        promise(self, s, kinds[i]);
        fiber_assert_equal(s->target->n_flushes, i + 1);
        fiber_assert(filter_forward_is_durable(s->filter));
    }
    s->target->flush_error = -EIO;
    promise(self, s, REQUEST_FLUSH); // no failure of the guest's
    fiber_assert(!filter_forward_is_durable(s->filter));
    scene_free(self, s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_the_background_what_guests_wrote_is_copied),
        cmocka_unit_test(compressed_clusters_that_guests_wrote_meanwhile_are_dropped),
        cmocka_unit_test(write_blocking_guests_keep_the_target_in_step_themselves),
        cmocka_unit_test(discards_that_do_nothing_are_copied_too),
        cmocka_unit_test(near_the_end_nothing_that_guests_do_becomes_work),
        cmocka_unit_test(discards_that_are_ignored_are_no_work),
        cmocka_unit_test(zeros_that_were_refused_as_slow_are_no_work),
        cmocka_unit_test(the_mode_can_be_switched_at_any_moment),
        cmocka_unit_test(what_is_still_written_in_the_background_is_not_taken_for_done),
        cmocka_unit_test(failures_of_the_target_are_not_the_guests),
        cmocka_unit_test(each_write_that_blocks_makes_the_work_less),
        cmocka_unit_test(the_last_granule_of_a_shorter_source_is_completed_with_zeros),
        cmocka_unit_test(what_guests_are_promised_holds_in_the_target_when_that_is_asked_for),
        cmocka_unit_test(a_drain_of_the_target_waits_for_guests_and_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
