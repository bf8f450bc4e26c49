// SPDX-License-Identifier: LGPL-2.1-or-later
// Copy-before-write in the simulation: whatever guests do beside a backup, and whatever fails in
// the target, nothing of the source is changed before the target has what it showed at the begin,
// and the target shows that when the backup is done, or the backup is broken and guests go on.
//
// What holds at every moment holds after a cut of the power at that moment.
#include "slow-disk.h"

#include "chain-core/switch.h"
#include "filter-copy-before.h"

enum {
    N_GUESTS = 5,
    N_REQUESTS = 40,
    GRANULE_BITS = 12,
    TIMEOUT_NS = 5000000,
};

// -- a backup -------------------------------------------------------------------------------------

typedef struct Scene {
    GRand *rand;
    Disk *source, *target;
    uint8_t before[SIZE];      // what the source showed at the begin
    uint8_t wanted[N_SECTORS]; // is it part of the backup?
    Node *filter;
    CopyEngine *engine;
    Bitmap *unsaved;
    RangeLock lock;
    Port guests, job;
    CopyNodes nodes;
    FiberWaitGroup running;
    int broken;
    unsigned n_broken, n_failed;
} Scene;

static int scene_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Scene *s = arg;
    NodeExtent extent;
    bool is_unsaved;
    len = bitmap_run_at(s->unsaved, off, len, &is_unsaved);
    *ret_extent = (CopyExtent){.len = len};
    int r = is_unsaved ? node_map(self, &s->source->node, guest_off(off), len, &extent) : 0;
    if (r == 0 && is_unsaved)
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
    int r = copy_nodes_chunk(self, &s->nodes, chunk);
    return r == 0 ? filter_copy_before_saved(s->filter, chunk) : r;
}

static CopyErrorAction scene_failed(void *arg, const CopyChunk *chunk, int error)
{
    return ((const Scene *)arg)->broken ? COPY_ERROR_FAIL : COPY_ERROR_RETRY;
}

static const CopyEngineOps scene_ops = {
    .find = scene_find, .copy = scene_copy, .failed = scene_failed};

static void scene_saved(void *arg, uint64_t off, uint64_t len)
{
    Scene *s = arg;
    copy_engine_guest_wrote(s->engine, off, len);
    copy_engine_remove(s->engine, off, len);
}

static void scene_broken(void *arg, int error)
{
    Scene *s = arg;
    s->broken = error;
    s->n_broken++;
}

static const CopyBeforeOps copy_before_ops = {
    .find = scene_find, .saved = scene_saved, .broken = scene_broken};

// Old data is in the target first (docs/ordering.md §20).
static void look_before_change(void *arg, uint64_t off, uint64_t len)
{
    Scene *s = arg;
    for (uint64_t i = off; i < off + len && !s->broken; i++)
        if (s->wanted[i / SECTOR] && s->target->data[i] != s->before[i])
            g_error("byte %u of sector %u is changed before it was saved", (unsigned)(i % SECTOR),
                    (unsigned)(i / SECTOR));
}

typedef struct SceneConfig {
    bool breaks_guests;
    uint64_t timeout_ns;
} SceneConfig;

static Scene *scene_new(Fiber *self, SceneConfig how)
{
    static guint32 seed;
    Scene *s = g_new0(Scene, 1);
    s->rand = g_rand_new_with_seed(++seed);
    s->source = disk_new(self, s->rand);
    s->target = disk_new(self, s->rand);
    memset(s->source->data + 40 * SECTOR, 0, 99 * SECTOR);
    memcpy(s->before, s->source->data, SIZE);
    memset(s->wanted, 1, sizeof s->wanted);
    s->source->about_to_change = look_before_change;
    s->source->arg = s;
    s->unsaved = bitmap_new(SIZE, GRANULE_BITS);
    bitmap_set(s->unsaved, 0, SIZE);
    CopyEngineConfig engine = {.size_bytes = SIZE,
                               .granularity_bits = GRANULE_BITS,
                               .chunk_bytes = 2 * GRANULE,
                               .window_bytes = 8 * GRANULE,
                               .ops = &scene_ops,
                               .arg = s};
    s->engine = copy_engine_new(fiber_loop(self), &engine);
    port_init(&s->guests, &s->source->node, "guests");
    port_init(&s->job, &s->source->node, "job");
    s->nodes = (CopyNodes){
        .source = &s->source->node, .target = &s->target->node, .port = &s->job, .lock = &s->lock};
    CopyBeforeConfig config = {.name = "copy-before",
                               .nodes = &s->nodes,
                               .unsaved = s->unsaved,
                               .max_save_bytes = 3 * GRANULE,
                               .timeout_ns = how.timeout_ns,
                               .breaks_guests = how.breaks_guests,
                               .ops = &copy_before_ops,
                               .arg = s};
    s->filter = filter_copy_before_new(&config);
    node_insert_filter(self, &s->source->node, s->filter);
    return s;
}

static void scene_free(Fiber *self, Scene *s)
{
    filter_copy_before_stop(self, s->filter);
    fiber_assert(range_lock_is_free(&s->lock));
    port_done(self, &s->job);
    port_done(self, &s->guests);
    node_unref_close(self, s->filter);
    node_unref_close(self, &s->source->node);
    node_unref_close(self, &s->target->node);
    copy_engine_free(s->engine);
    bitmap_free(s->unsaved);
    g_rand_free(s->rand);
    g_free(s);
}

static void assert_saved(const Scene *s)
{
    for (unsigned i = 0; i < SIZE; i++)
        if (s->wanted[i / SECTOR] && s->target->data[i] != s->before[i])
            g_error("byte %u of sector %u is %u, was %u", i % SECTOR, i / SECTOR,
                    s->target->data[i], s->before[i]);
}

// -- guests ---------------------------------------------------------------------------------------

static int request(Fiber *self, Scene *s, RequestKind kind, uint64_t off, uint64_t len)
{
    return port_change(self, &s->guests, s->rand, kind, off, len);
}

static void guest(Fiber *self, void *arg)
{
    static const RequestKind kinds[] = {REQUEST_WRITE, REQUEST_WRITE, REQUEST_WRITE, REQUEST_ZERO,
                                        REQUEST_DISCARD};
    Scene *s = arg;
    for (unsigned i = 0; i < N_REQUESTS; i++) {
        RequestKind kind = kinds[g_rand_int_range(s->rand, 0, G_N_ELEMENTS(kinds))];
        uint64_t first = (uint64_t)g_rand_int_range(s->rand, 0, N_SECTORS - 30);
        uint64_t n = (uint64_t)g_rand_int_range(s->rand, 1, 30);
        take_time(self, s->rand);
        s->n_failed += request(self, s, kind, first * SECTOR, n * SECTOR) < 0;
    }
    fiber_wait_group_done(&s->running);
}

static int run_beside_guests(Fiber *self, Scene *s)
{
    fiber_wait_group_add(&s->running, N_GUESTS);
    for (unsigned i = 0; i < N_GUESTS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", guest, s, NULL), 0);
    int r = copy_engine_run(self, s->engine);
    fiber_wait_group_wait(self, &s->running);
    return r;
}

SIM_TEST(the_target_shows_the_moment_of_the_begin)
{
    Scene *s = scene_new(self, (SceneConfig){0});
    fiber_assert_equal(run_beside_guests(self, s), 0);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_saved(s);
    fiber_assert_equal(bitmap_n_dirty(s->unsaved), 0);
    fiber_assert_equal(s->n_failed, 0);
    scene_free(self, s);
}

SIM_TEST(guests_alone_save_what_they_change_and_nothing_else)
{
    Scene *s = scene_new(self, (SceneConfig){0});
    copy_engine_set_found(s->engine, SIZE);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 9 * SECTOR, SECTOR), 0);
    fiber_assert_equal(s->target->n_writes, 1);
    fiber_assert_equal(memcmp(s->target->data + GRANULE, s->before + GRANULE, GRANULE), 0);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 8 * SECTOR, 8 * SECTOR), 0);
    fiber_assert_equal(s->target->n_writes, 1);
    fiber_assert_equal(bitmap_n_dirty(s->unsaved), SIZE / GRANULE - 1);
    scene_free(self, s);
}

SIM_TEST(discards_that_are_ignored_save_nothing)
{
    Scene *s = scene_new(self, (SceneConfig){0});
    s->target->hangs = true;
    s->source->node.ignores_discards = true;
    fiber_assert_equal(request(self, s, REQUEST_DISCARD, 0, SIZE), 0);
    fiber_assert_equal(bitmap_n_dirty(s->unsaved), SIZE / GRANULE);
    fiber_assert_equal(memcmp(s->source->data, s->before, SIZE), 0);
    s->target->hangs = false;
    scene_free(self, s);
}

SIM_TEST(what_is_not_in_the_backup_is_changed_at_once)
{
    Scene *s = scene_new(self, (SceneConfig){0});
    s->target->hangs = true;
    bitmap_clear(s->unsaved, 16 * SECTOR, 64 * SECTOR);
    memset(s->wanted + 16, 0, 64);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 20 * SECTOR, 60 * SECTOR), 0);
    fiber_assert_equal(request(self, s, REQUEST_DISCARD, 16 * SECTOR, SECTOR), 0);
    fiber_assert_equal(s->target->n_writes, 0);
    scene_free(self, s);
}

static void write_second_granule(Fiber *self, void *arg)
{
    Scene *s = arg;
    s->n_failed += request(self, s, REQUEST_WRITE, 9 * SECTOR, SECTOR) < 0;
    fiber_wait_group_done(&s->running);
}

static void let_go(Disk *disk)
{
    disk->hangs = false;
    fiber_queue_wake_all(&disk->hanging);
}

SIM_TEST(guests_wait_for_the_granules_that_they_change_only)
{
    Scene *s = scene_new(self, (SceneConfig){0});
    copy_engine_set_found(s->engine, SIZE);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 160 * SECTOR, SECTOR), 0);
    s->target->hangs = true;
    fiber_wait_group_add(&s->running, 2);
    fiber_spawn(fiber_loop(self), "guest", write_second_granule, s, NULL);
    fiber_spawn(fiber_loop(self), "guest", write_second_granule, s, NULL);
    while (s->target->n_writes == 1)
        fiber_sleep(self, 1000);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 161 * SECTOR, SECTOR), 0);
    fiber_sleep(self, 1000000);
    fiber_assert_equal(s->running.count, 2);
    let_go(s->target);
    fiber_wait_group_wait(self, &s->running);
    fiber_assert_equal(s->target->n_writes, 2); // one save for both
    scene_free(self, s);
}

// -- a target that fails --------------------------------------------------------------------------

SIM_TEST(a_target_that_fails_ends_the_backup_and_no_guest_hears_of_it)
{
    static const int errors[] = {-EIO, -ENOSPC};
    for (unsigned i = 0; i < G_N_ELEMENTS(errors); i++) {
        Scene *s = scene_new(self, (SceneConfig){0});
        fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, SECTOR), 0);
        s->target->write_error = errors[i];
        fiber_assert_equal(run_beside_guests(self, s), errors[i]);
        fiber_assert_equal(s->broken, errors[i]);
        fiber_assert_equal(filter_copy_before_error(s->filter), errors[i]);
        fiber_assert_equal(s->n_broken, 1);
        fiber_assert_equal(s->n_failed, 0);
        scene_free(self, s);
    }
}

SIM_TEST(where_guests_are_to_fail_the_backup_goes_on)
{
    Scene *s = scene_new(self, (SceneConfig){.breaks_guests = true});
    s->target->fail_percent = 20;
    fiber_assert_equal(run_beside_guests(self, s), 0);
    s->target->fail_percent = 0;
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_saved(s);
    fiber_assert_equal(s->broken, 0);
    scene_free(self, s);
}

SIM_TEST(a_request_that_fails_has_changed_nothing)
{
    Scene *s = scene_new(self, (SceneConfig){.breaks_guests = true});
    copy_engine_set_found(s->engine, SIZE);
    s->target->write_error = -ENOSPC;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, 9 * SECTOR), -ENOSPC);
    fiber_assert_equal(memcmp(s->source->data, s->before, SIZE), 0);
    s->target->write_error = 0;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, 9 * SECTOR), 0);
    scene_free(self, s);
}

SIM_TEST(a_target_that_hangs_holds_guests_up_for_a_while_only)
{
    Scene *s = scene_new(self, (SceneConfig){.timeout_ns = TIMEOUT_NS});
    copy_engine_set_found(s->engine, SIZE);
    s->target->hangs = true;
    uint64_t begun_ns = loop_now_ns(fiber_loop(self));
    fiber_wait_group_add(&s->running, 1);
    fiber_spawn(fiber_loop(self), "guest", write_second_granule, s, NULL);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 160 * SECTOR, 30 * SECTOR), 0);
    fiber_wait_group_wait(self, &s->running);
    fiber_assert(loop_now_ns(fiber_loop(self)) - begun_ns >= TIMEOUT_NS);
    fiber_assert_equal(s->broken, -ETIMEDOUT);
    fiber_assert_equal(s->n_failed, 0);
    bool hangs = s->target->n_writes > 0; // what has not come that far is not written any more
    fiber_assert(!hangs || s->job.n_in_flight[REQUEST_WRITE] > 0); // what has timed out still is
    fiber_sleep(self, 1000000);
    fiber_assert_equal(!range_lock_is_free(&s->lock), hangs);
    let_go(s->target);
    scene_free(self, s);
}

static void copy_and_discard(Fiber *self, void *arg)
{
    Scene *s = arg;
    CopyChunk chunk = {.len = GRANULE, .kind = WORK_DATA};
    fiber_assert_equal(copy_nodes_chunk(self, &s->nodes, &chunk), 0);
    fiber_assert_equal(filter_copy_before_discard_saved(self, s->filter, &chunk), 0);
    fiber_wait_group_done(&s->running);
}

static void write_first_sector(Fiber *self, void *arg)
{
    Scene *s = arg;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, SECTOR), 0);
    fiber_wait_group_done(&s->running);
}

SIM_TEST(what_guests_write_after_a_failure_is_not_discarded)
{
    Scene *s = scene_new(self, (SceneConfig){.timeout_ns = TIMEOUT_NS});
    s->source->next_discard_hangs = true;
    fiber_wait_group_add(&s->running, 2);
    fiber_spawn(fiber_loop(self), "chunk", copy_and_discard, s, NULL);
    while (s->source->next_discard_hangs)
        fiber_sleep(self, 1000);
    fiber_spawn(fiber_loop(self), "guest", write_first_sector, s, NULL);
    fiber_sleep(self, 3 * TIMEOUT_NS);
    fiber_assert_equal(s->broken, -ETIMEDOUT);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, GRANULE, SECTOR), 0); // beside it
    let_go(s->source);
    fiber_wait_group_wait(self, &s->running);
    fiber_assert(!is_zero(s->source, 0) && is_zero(s->source, 1));
    scene_free(self, s);
}

SIM_TEST(the_wait_of_a_guest_that_is_to_fail_ends_too)
{
    Scene *s = scene_new(self, (SceneConfig){.timeout_ns = TIMEOUT_NS, .breaks_guests = true});
    copy_engine_set_found(s->engine, SIZE);
    s->target->hangs = true;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, SECTOR), -ETIMEDOUT);
    fiber_assert_equal(s->broken, 0);
    let_go(s->target);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, SECTOR), 0);
    fiber_assert_equal(s->target->n_writes, 1);
    scene_free(self, s);
}

// -- the end, and drains --------------------------------------------------------------------------

static void stop(Fiber *self, void *arg)
{
    Scene *s = arg;
    filter_copy_before_stop(self, s->filter);
    fiber_wait_group_done(&s->running);
}

SIM_TEST(a_backup_that_is_stopped_lets_guests_go_and_waits_for_its_saves)
{
    Scene *s = scene_new(self, (SceneConfig){0});
    copy_engine_set_found(s->engine, SIZE);
    s->target->hangs = true;
    fiber_wait_group_add(&s->running, 2);
    fiber_spawn(fiber_loop(self), "guest", write_second_granule, s, NULL);
    while (s->target->n_writes == 0)
        fiber_sleep(self, 1000);
    s->source->about_to_change = NULL;
    fiber_spawn(fiber_loop(self), "stop", stop, s, NULL);
    while (s->running.count > 1)
        fiber_sleep(self, 1000);
    fiber_sleep(self, 1000000);
    fiber_assert_equal(s->running.count, 1); // the guest has gone on, and the save is under way
    fiber_assert_equal(s->n_failed, 0);
    let_go(s->target);
    fiber_wait_group_wait(self, &s->running);
    scene_free(self, s);
}

SIM_TEST(a_drain_waits_for_guests_and_their_saves)
{
    Scene *s = scene_new(self, (SceneConfig){0});
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
    assert_saved(s);
    scene_free(self, s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_target_shows_the_moment_of_the_begin),
        cmocka_unit_test(guests_alone_save_what_they_change_and_nothing_else),
        cmocka_unit_test(discards_that_are_ignored_save_nothing),
        cmocka_unit_test(what_is_not_in_the_backup_is_changed_at_once),
        cmocka_unit_test(guests_wait_for_the_granules_that_they_change_only),
        cmocka_unit_test(a_target_that_fails_ends_the_backup_and_no_guest_hears_of_it),
        cmocka_unit_test(where_guests_are_to_fail_the_backup_goes_on),
        cmocka_unit_test(a_request_that_fails_has_changed_nothing),
        cmocka_unit_test(a_target_that_hangs_holds_guests_up_for_a_while_only),
        cmocka_unit_test(what_guests_write_after_a_failure_is_not_discarded),
        cmocka_unit_test(the_wait_of_a_guest_that_is_to_fail_ends_too),
        cmocka_unit_test(a_backup_that_is_stopped_lets_guests_go_and_waits_for_its_saves),
        cmocka_unit_test(a_drain_waits_for_guests_and_their_saves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
