// SPDX-License-Identifier: LGPL-2.1-or-later
// The copy engine in the simulation, over a disk of numbers: each sector has one, zero is a hole.
// What is work is copied once, a window at a time, whatever fails, is paused or cancelled; what
// guests write meanwhile is never overwritten by what was there before.
#include "../node/on-sim.h"

#include <errno.h>
#include <glib.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "copy-engine.h"
#include "range-lock.h"

enum {
    SECTOR = 512,
    GRANULE = 4096,
    CHUNK = 4 * GRANULE,
    N_SECTORS = 2048,
    SIZE = N_SECTORS * SECTOR,
    N_GUESTS = 6,
};

// What a sector of the source is to the job.
typedef enum SectorKind { SECTOR_NONE, SECTOR_DATA, SECTOR_ZERO } SectorKind;

typedef struct Scene {
    CopyEngine *engine;
    GRand *rand;
    SectorKind kinds[N_SECTORS];
    unsigned source[N_SECTORS], target[N_SECTORS];
    RangeLock lock;
    unsigned n_in_flight, max_in_flight_bytes, in_flight_bytes, n_metadata_chunks;
    uint64_t n_written; // sectors of data
    bool wants_pause;
    unsigned n_pauses;
    // Of 100 chunks fail; 0: none.
    unsigned fail_percent, fail_find_percent;
    CopyErrorAction action;
    unsigned n_failed;
    unsigned max_delay_ns;
    FiberWaitGroup guests;
    unsigned next_number;
    bool is_background;
} Scene;

static void take_time(Fiber *self, Scene *s)
{
    fiber_sleep(self, (uint64_t)g_rand_int_range(s->rand, 0, (gint32)s->max_delay_ns));
}

static int scene_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Scene *s = arg;
    uint64_t first = off / SECTOR, i = first;
    if (g_rand_int_range(s->rand, 0, 4) == 0)
        take_time(self, s);
    if ((unsigned)g_rand_int_range(s->rand, 0, 100) < s->fail_find_percent)
        return -EIO;
    while (i * SECTOR < off + len && s->kinds[i] == s->kinds[first])
        i++;
    *ret_extent = (CopyExtent){.len = i * SECTOR - off,
                               .is_work = s->kinds[first] != SECTOR_NONE,
                               .kind = s->kinds[first] == SECTOR_DATA ? WORK_DATA : WORK_METADATA};
    return 0;
}

static void copy_sectors(Fiber *self, Scene *s, CopyChunk *chunk, const unsigned *data)
{
    uint64_t first = chunk->off / SECTOR, n = chunk->len / SECTOR;
    for (uint64_t i = 0; i < n; i++) {
        if (i == n / 2)
            take_time(self, s);
        s->target[first + i] = data[i];
    }
    s->n_written += chunk->kind == WORK_DATA ? n : 0;
    chunk->copied_bytes = chunk->kind == WORK_DATA ? chunk->len : 0;
    s->n_metadata_chunks += chunk->kind == WORK_METADATA;
}

static int copy_held(Fiber *self, Scene *s, CopyChunk *chunk)
{
    g_autofree unsigned *data = g_new0(unsigned, chunk->len / SECTOR);
    RangeHold hold;
    for (uint64_t i = 0; i < chunk->len / SECTOR; i++)
        data[i] = chunk->kind == WORK_DATA ? s->source[chunk->off / SECTOR + i] : 0;
    take_time(self, s);
    if ((unsigned)g_rand_int_range(s->rand, 0, 100) < s->fail_percent)
        return -ENOSPC;
    range_lock_take(self, &s->lock, &hold, chunk->off, chunk->len);
    bool is_stale = copy_chunk_is_stale(chunk);
    if (!is_stale)
        copy_sectors(self, s, chunk, data);
    range_lock_release(&s->lock, &hold);
    return is_stale ? COPY_AGAIN : 0;
}

static int scene_copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    Scene *s = arg;
    uint64_t bytes = chunk->kind == WORK_DATA ? chunk->len : 0;
    fiber_assert(chunk->off + chunk->len <= SIZE && chunk->len);
    s->n_in_flight++;
    s->in_flight_bytes += bytes;
    s->max_in_flight_bytes = MAX(s->max_in_flight_bytes, s->in_flight_bytes);
    int r = copy_held(self, s, chunk);
    s->n_in_flight--;
    s->in_flight_bytes -= bytes;
    return r;
}

static CopyErrorAction scene_failed(void *arg, const CopyChunk *chunk, int error)
{
    Scene *s = arg;
    fiber_assert(chunk->failed_reading == (error == -EIO));
    s->n_failed++;
    return s->action;
}

static bool scene_wants_pause(void *arg)
{
    return ((Scene *)arg)->wants_pause;
}

static int scene_pause_point(Fiber *self, void *arg)
{
    Scene *s = arg;
    fiber_assert_equal(s->n_in_flight, 0);
    s->n_pauses++;
    for (unsigned i = 0; i < 3; i++) {
        uint64_t n_written = s->n_written;
        fiber_sleep(self, 1000000);
        fiber_assert_equal(s->n_written, n_written);
    }
    s->wants_pause = false;
    return 0;
}

static const CopyEngineOps scene_ops = {
    .find = scene_find,
    .copy = scene_copy,
    .failed = scene_failed,
    .wants_pause = scene_wants_pause,
    .pause_point = scene_pause_point,
};

static guint32 last_seed;

static Scene *scene_new(Fiber *self)
{
    Scene *s = g_new0(Scene, 1);
    s->rand = g_rand_new_with_seed(++last_seed);
    s->max_delay_ns = 100000;
    for (unsigned i = 0; i < N_SECTORS;) {
        unsigned n = (unsigned)g_rand_int_range(s->rand, 1, g_rand_boolean(s->rand) ? 4 : 200);
        SectorKind kind = (SectorKind)g_rand_int_range(s->rand, 0, 3);
        for (; n && i < N_SECTORS; n--, i++) {
            s->kinds[i] = kind;
            s->source[i] = kind == SECTOR_DATA ? ++s->next_number : 0;
            s->target[i] = 1000000;
        }
    }
    const CopyEngineConfig config = {.size_bytes = SIZE,
                                     .granularity_bits = 12,
                                     .chunk_bytes = CHUNK,
                                     .window_bytes = 4 * CHUNK,
                                     .ops = &scene_ops,
                                     .arg = s};
    s->engine = copy_engine_new(fiber_loop(self), &config);
    return s;
}

static void scene_free(Scene *s)
{
    fiber_assert(range_lock_is_free(&s->lock));
    copy_engine_free(s->engine);
    g_rand_free(s->rand);
    g_free(s);
}

static void assert_copied(const Scene *s)
{
    for (unsigned i = 0; i < N_SECTORS; i++)
        fiber_assert_equal(s->target[i], s->kinds[i] == SECTOR_NONE ? 1000000 : s->source[i]);
}

static uint64_t count_data(const Scene *s)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < N_SECTORS; i++)
        n += s->kinds[i] == SECTOR_DATA;
    return n;
}

static void assert_all_done(const Scene *s)
{
    CopyEngineStats stats;
    copy_engine_stats(s->engine, &stats);
    fiber_assert(copy_engine_is_idle(s->engine));
    fiber_assert_equal(s->n_in_flight, 0);
    fiber_assert_equal(stats.left, 0);
    fiber_assert_equal(stats.found_off, SIZE);
    assert_copied(s);
}

SIM_TEST(what_is_work_is_copied_once_and_the_rest_left_alone)
{
    Scene *s = scene_new(self);
    CopyEngineStats stats;
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_all_done(s);
    copy_engine_stats(s->engine, &stats);
    fiber_assert_equal(stats.done, count_data(s) * SECTOR);
    fiber_assert_equal(stats.copied, stats.done);
    // Where a granule has both kinds its data may be done with either.
    fiber_assert(s->n_written >= count_data(s));
    fiber_assert_equal(s->max_in_flight_bytes <= 4 * CHUNK, true);
    fiber_assert(s->max_in_flight_bytes > CHUNK);
    scene_free(s);
}

// Of a disk full of data that is found granule by granule, so that a chunk is many pieces.
static int find_a_granule(Fiber *self G_GNUC_UNUSED, void *arg G_GNUC_UNUSED, uint64_t off,
                          uint64_t len, CopyExtent *ret_extent)
{
    *ret_extent =
        (CopyExtent){.len = MIN(len, GRANULE - off % GRANULE), .is_work = true, .kind = WORK_DATA};
    return 0;
}

static int copy_and_sum(Fiber *self, void *arg, CopyChunk *chunk)
{
    CopyEngineStats stats;
    copy_engine_stats(chunk->engine, &stats);
    fiber_assert(stats.done + stats.left <= SIZE);
    if (stats.found_off == SIZE)
        fiber_assert_equal(stats.done + stats.left, SIZE);
    *(bool *)arg |= stats.found_off == SIZE && stats.done % CHUNK;
    chunk->copied_bytes = chunk->len;
    fiber_sleep(self, 1000);
    return 0;
}

SIM_TEST(what_is_done_is_not_left_from_piece_to_piece)
{
    static const CopyEngineOps ops = {
        .find = find_a_granule, .copy = copy_and_sum, .failed = scene_failed};
    bool was_within_chunks = false;
    const CopyEngineConfig config = {.size_bytes = SIZE,
                                     .granularity_bits = 12,
                                     .chunk_bytes = CHUNK,
                                     .window_bytes = 4 * CHUNK,
                                     .ops = &ops,
                                     .arg = &was_within_chunks};
    CopyEngine *engine = copy_engine_new(fiber_loop(self), &config);
    fiber_assert_equal(copy_engine_run(self, engine), 0);
    fiber_assert(was_within_chunks);
    copy_engine_free(engine);
}

SIM_TEST(a_failure_ends_the_run_and_the_next_one_goes_on)
{
    Scene *s = scene_new(self);
    s->fail_percent = 10;
    s->fail_find_percent = 2;
    s->action = COPY_ERROR_FAIL;
    int r;
    while ((r = copy_engine_run(self, s->engine)) != 0) {
        fiber_assert(r == -ENOSPC || r == -EIO);
        fiber_assert_equal(s->n_in_flight, 0);
        fiber_assert(!copy_engine_is_idle(s->engine));
    }
    assert_all_done(s);
    scene_free(s);
}

SIM_TEST(what_is_to_be_tried_again_is)
{
    Scene *s = scene_new(self);
    s->fail_percent = s->fail_find_percent = 20;
    s->action = COPY_ERROR_RETRY;
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    fiber_assert(s->n_failed > 0);
    assert_all_done(s);
    scene_free(s);
}

SIM_TEST(what_is_to_be_left_out_is_and_the_rest_done)
{
    Scene *s = scene_new(self);
    s->fail_percent = 20;
    s->action = COPY_ERROR_SKIP;
    fiber_assert_equal(copy_engine_run(self, s->engine), -ENOSPC);
    fiber_assert(copy_engine_is_idle(s->engine));
    unsigned n_missing = 0;
    for (unsigned i = 0; i < N_SECTORS; i++)
        n_missing += s->kinds[i] != SECTOR_NONE && s->target[i] != s->source[i];
    fiber_assert(n_missing > 0 && n_missing < N_SECTORS);
    scene_free(s);
}

typedef struct Asker {
    Scene *scene;
    Fiber *runner;
    uint64_t asked_ns;
} Asker;

static void ask_for_pauses(Fiber *self, void *arg)
{
    Scene *s = arg;
    for (unsigned i = 0; i < 5; i++) {
        fiber_sleep(self, (uint64_t)g_rand_int_range(s->rand, 0, 300000));
        s->wants_pause = true;
        copy_engine_wake(s->engine);
    }
    fiber_wait_group_done(&s->guests);
}

SIM_TEST(nothing_is_in_flight_while_it_is_paused)
{
    Scene *s = scene_new(self);
    fiber_wait_group_add(&s->guests, 1);
    fiber_spawn(fiber_loop(self), "asker", ask_for_pauses, s, NULL);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_all_done(s);
    fiber_assert(s->n_pauses > 0);
    fiber_wait_group_wait(self, &s->guests);
    scene_free(s);
}

static void cancel(Fiber *self, void *arg)
{
    Asker *asker = arg;
    fiber_sleep(self, (uint64_t)g_rand_int_range(asker->scene->rand, 0, 400000));
    asker->asked_ns = loop_now_ns(fiber_loop(self));
    fiber_cancel(asker->runner);
    fiber_wait_group_done(&asker->scene->guests);
}

static void run_to_cancel(Fiber *self, void *arg)
{
    Asker *asker = arg;
    Scene *s = asker->scene;
    int r = copy_engine_run(self, s->engine);
    fiber_assert(r == 0 || r == -ECANCELED);
    fiber_assert_equal(s->n_in_flight, 0);
    if (r < 0) // chunks that were under way end, no other begins
        fiber_assert(loop_now_ns(fiber_loop(self)) - asker->asked_ns < 2000000);
    fiber_wait_group_done(&s->guests);
}

// Also while it waits for the limit on its rate, where it could wait for ever.
SIM_TEST(it_can_be_cancelled_at_any_moment_and_goes_on_later)
{
    Scene *s = scene_new(self);
    if (last_seed % 2)
        copy_engine_set_speed(s->engine, 1000);
    Asker asker = {.scene = s};
    fiber_wait_group_add(&s->guests, 2);
    fiber_spawn(fiber_loop(self), "runner", run_to_cancel, &asker, &asker.runner);
    fiber_spawn(fiber_loop(self), "canceller", cancel, &asker, NULL);
    fiber_wait_group_wait(self, &s->guests);
    copy_engine_set_speed(s->engine, 0);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_all_done(s);
    scene_free(s);
}

static void speed_up(Fiber *self, void *arg)
{
    Scene *s = arg;
    fiber_sleep(self, UINT64_C(1000000000));
    fiber_assert(s->n_written * SECTOR <= 10000 + CHUNK);
    copy_engine_set_speed(s->engine, 100000);
    fiber_wait_group_done(&s->guests);
}

SIM_TEST(the_rate_is_kept_and_can_be_changed)
{
    Scene *s = scene_new(self);
    uint64_t start_ns = loop_now_ns(fiber_loop(self));
    copy_engine_set_speed(s->engine, 10000);
    fiber_wait_group_add(&s->guests, 1);
    fiber_spawn(fiber_loop(self), "speed", speed_up, s, NULL);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    double took_s = (double)(loop_now_ns(fiber_loop(self)) - start_ns) / 1e9;
    double bytes = (double)count_data(s) * SECTOR;
    // The last chunk is begun before its bytes are there; data in two kinds of chunks is copied
    // twice.
    fiber_assert(took_s > (bytes - 10000 - CHUNK) / 100000);
    fiber_assert(took_s < (double)s->n_written * SECTOR / 100000 + 2);
    assert_all_done(s);
    fiber_wait_group_wait(self, &s->guests);
    scene_free(s);
}

// -- a large disk ---------------------------------------------------------------------------------

#define LARGE (UINT64_C(30) << 40)

typedef struct Large {
    uint64_t n_finds, n_copies, first_copy_finds;
} Large;

// A gigabyte of data at each full terabyte, half of the rest zero clusters.
static int large_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Large *large = arg;
    uint64_t at = off % (UINT64_C(1) << 40), gib = UINT64_C(1) << 30;
    large->n_finds++;
    *ret_extent = (CopyExtent){.len = MIN(len, gib - at % gib),
                               .is_work = at < gib || at >= UINT64_C(1) << 39,
                               .kind = at < gib ? WORK_DATA : WORK_METADATA};
    return 0;
}

static int large_copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    Large *large = arg;
    if (!large->n_copies++)
        large->first_copy_finds = large->n_finds;
    chunk->shared_bytes = chunk->kind == WORK_DATA ? chunk->len : 0;
    return 0;
}

SIM_TEST(a_large_disk_begins_at_once_and_is_done_in_few_steps)
{
    if (last_seed % ON_SIM_SEEDS)
        return; // once is enough: no randomness in it
    Large large = {0};
    static const CopyEngineOps ops = {.find = large_find, .copy = large_copy};
    CopyEngineConfig config = {.size_bytes = LARGE,
                               .granularity_bits = 16,
                               .chunk_bytes = 1 << 20,
                               .window_bytes = 16 << 20,
                               .ops = &ops,
                               .arg = &large};
    CopyEngine *engine = copy_engine_new(fiber_loop(self), &config);
    fiber_assert_equal(copy_engine_run(self, engine), 0);
    CopyEngineStats stats;
    copy_engine_stats(engine, &stats);
    fiber_assert_equal(stats.shared, UINT64_C(30) << 30);
    fiber_assert_equal(stats.done, UINT64_C(30) << 30);
    fiber_assert(large.first_copy_finds <= 64);
    copy_engine_free(engine);
}

// -- guests ---------------------------------------------------------------------------------------

// Write-blocking: to source and target, with the range of the target held all the while.
static void guest_write_both(Fiber *self, Scene *s, unsigned first, unsigned n, unsigned number)
{
    RangeHold hold;
    uint64_t off = (uint64_t)first * SECTOR, len = (uint64_t)n * SECTOR;
    range_lock_take(self, &s->lock, &hold, off, len);
    for (unsigned i = first; i < first + n; i++) {
        if (g_rand_int_range(s->rand, 0, 8) == 0)
            take_time(self, s);
        s->source[i] = number;
        s->kinds[i] = SECTOR_DATA;
    }
    take_time(self, s);
    for (unsigned i = first; i < first + n; i++)
        s->target[i] = number;
    copy_engine_guest_wrote(s->engine, off, len);
    range_lock_release(&s->lock, &hold);
}

// To the source; what it wrote is work before the guest hears of it.
static void guest_write_source(Fiber *self, Scene *s, unsigned first, unsigned n, unsigned number)
{
    for (unsigned i = first; i < first + n; i++) {
        if (g_rand_int_range(s->rand, 0, 8) == 0)
            take_time(self, s);
        s->source[i] = number;
        s->kinds[i] = SECTOR_DATA;
    }
    copy_engine_guest_wrote(s->engine, (uint64_t)first * SECTOR, (uint64_t)n * SECTOR);
    copy_engine_add(s->engine, WORK_DATA, (uint64_t)first * SECTOR, (uint64_t)n * SECTOR);
}

static void guest(Fiber *self, void *arg)
{
    Scene *s = arg;
    for (unsigned i = 0; i < 40; i++) {
        unsigned first = (unsigned)g_rand_int_range(s->rand, 0, N_SECTORS - 24);
        unsigned n = (unsigned)g_rand_int_range(s->rand, 1, 24), number = ++s->next_number;
        take_time(self, s);
        if (s->is_background)
            guest_write_source(self, s, first, n, number);
        else
            guest_write_both(self, s, first, n, number);
    }
    fiber_wait_group_done(&s->guests);
}

static void run_beside_guests(Fiber *self, bool is_background)
{
    Scene *s = scene_new(self);
    s->is_background = is_background;
    // Guests write where they like; what the job finds there is data or zeros.
    for (unsigned i = 0; i < N_SECTORS; i++)
        s->kinds[i] = s->kinds[i] == SECTOR_NONE ? SECTOR_ZERO : s->kinds[i];
    fiber_wait_group_add(&s->guests, N_GUESTS);
    for (unsigned i = 0; i < N_GUESTS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", guest, s, NULL), 0);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    fiber_wait_group_wait(self, &s->guests);
    fiber_assert_equal(copy_engine_run(self, s->engine), 0);
    assert_all_done(s);
    scene_free(s);
}

SIM_TEST(what_guests_write_to_both_is_never_overwritten)
{
    run_beside_guests(self, false);
}

SIM_TEST(what_guests_write_to_the_source_comes_to_the_target)
{
    run_beside_guests(self, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_work_is_copied_once_and_the_rest_left_alone),
        cmocka_unit_test(what_is_done_is_not_left_from_piece_to_piece),
        cmocka_unit_test(a_failure_ends_the_run_and_the_next_one_goes_on),
        cmocka_unit_test(what_is_to_be_tried_again_is),
        cmocka_unit_test(what_is_to_be_left_out_is_and_the_rest_done),
        cmocka_unit_test(nothing_is_in_flight_while_it_is_paused),
        cmocka_unit_test(it_can_be_cancelled_at_any_moment_and_goes_on_later),
        cmocka_unit_test(the_rate_is_kept_and_can_be_changed),
        cmocka_unit_test(a_large_disk_begins_at_once_and_is_done_in_few_steps),
        cmocka_unit_test(what_guests_write_to_both_is_never_overwritten),
        cmocka_unit_test(what_guests_write_to_the_source_comes_to_the_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
