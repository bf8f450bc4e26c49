// SPDX-License-Identifier: LGPL-2.1-or-later
// One fiber, in copy_engine_run(), decides: it looks ahead in the metadata, takes work from the set
// and starts chunks, each in a fiber of its own. All that may hold a job up for long (a pause, the
// limit on the rate, a full window) is waited for there, where nothing is held. On the engine's
// loop.
//
// What is taken from the set is whole granules of it, and done piece by piece, as `find` tells what
// is there now: clusters may be smaller than granules, and guests may have changed it.
#include "copy-engine.h"

#include <errno.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/io-buffers.h"
#include "chain-core/mutant.h"
#include "copy-rate.h"
#include "copy-window.h"

enum {
    FINDS_AT_ONCE = 16, // then others get their turn
    MAX_METADATA_PIECES = 64,
    METADATA_PIECE_BYTES = 32 << 20, // by which a guest waits for zeros at most
};

struct CopyEngine {
    CopyEngineConfig config;
    Loop *loop;
    WorkSet *work;
    CopyWindow window;
    CopyRate rate;
    uint64_t found_off;
    CopyChunk *chunks; // under way
    uint64_t in_flight_bytes;
    FiberQueue changed; // copy_engine_run() waits for whatever it may be
    int error, skipped_error;
    unsigned n_failures; // in a row
    uint64_t retry_ns;   // not before
    CopyEngineStats stats;
};

// Small enough for guests to go on in between, in whole granules.
static uint64_t least_window(const CopyEngine *e)
{
    const CopyEngineConfig *config = &e->config;
    if (!config->guests)
        return config->window_bytes;
    return MIN(config->chunk_bytes, MAX(COPY_MEMORY_CHUNK_BYTES, work_set_granularity(e->work)));
}

// Of data.
static uint64_t chunk_bytes(const CopyEngine *e)
{
    return MIN(e->config.chunk_bytes, e->window.limit_bytes);
}

CopyEngine *copy_engine_new(Loop *loop, const CopyEngineConfig *config)
{
    CopyEngine *e = g_new0(CopyEngine, 1);
    e->config = *config;
    e->loop = loop;
    e->work = work_set_new(config->size_bytes, config->granularity_bits);
    g_assert(config->chunk_bytes && config->chunk_bytes % work_set_granularity(e->work) == 0);
    io_buffers_hold(loop);
    copy_window_init(&e->window, least_window(e), config->window_bytes, loop_now_ns(loop));
    return e;
}

void copy_engine_free(CopyEngine *e)
{
    if (!e)
        return;
    g_assert(!e->chunks);
    io_buffers_release(e->loop);
    work_set_free(e->work);
    g_free(e);
}

void copy_engine_wake(CopyEngine *e)
{
    fiber_queue_wake_all(&e->changed);
}

static void tell_progress(CopyEngine *e)
{
    if (e->config.ops->progress)
        e->config.ops->progress(e->config.arg);
}

// -- failures -------------------------------------------------------------------------------------

static void back_off(CopyEngine *e)
{
    enum { STEP_NS = 10000000, MAX_STEPS = 10 };
    e->n_failures = MIN(e->n_failures + 1, MAX_STEPS);
    e->retry_ns = loop_now_ns(e->loop) + e->n_failures * STEP_NS;
}

static CopyErrorAction note_failure(CopyEngine *e, const CopyChunk *chunk, int error)
{
    CopyErrorAction action = e->config.ops->failed(e->config.arg, chunk, error);
    if (action == COPY_ERROR_FAIL && !e->error)
        e->error = error;
    if (action == COPY_ERROR_SKIP && !e->skipped_error)
        e->skipped_error = error;
    if (action == COPY_ERROR_RETRY)
        back_off(e);
    return action;
}

// -- looking ahead --------------------------------------------------------------------------------

static int ask(Fiber *self, CopyEngine *e, CopyFindFn *find, BitmapRun run, CopyExtent *ret_extent)
{
    int r = find(self, e->config.arg, run.off, run.len, ret_extent);
    g_assert(r < 0 || (ret_extent->len > 0 && ret_extent->len <= run.len));
    return r;
}

static void find_failed(CopyEngine *e, int error)
{
    uint64_t len = MIN(work_set_granularity(e->work), e->config.size_bytes - e->found_off);
    CopyChunk chunk = {.off = e->found_off, .len = len, .engine = e, .failed_reading = true};
    if (note_failure(e, &chunk, error) == COPY_ERROR_SKIP)
        e->found_off += len;
}

static void find_ahead(Fiber *self, CopyEngine *e)
{
    uint64_t size = e->config.size_bytes;
    for (unsigned i = 0; i < FINDS_AT_ONCE && e->found_off < size; i++) {
        CopyExtent extent;
        uint64_t off = e->found_off;
        int r = ask(self, e, e->config.ops->look ?: e->config.ops->find,
                    (BitmapRun){off, size - off}, &extent);
        if (r < 0) {
            find_failed(e, r);
            return;
        }
        if (extent.is_work)
            work_set_add(e->work, extent.kind, off, extent.len);
        e->found_off = off + extent.len;
        e->n_failures = 0;
    }
    tell_progress(e);
}

// -- chunks ---------------------------------------------------------------------------------------

static int find_extent(Fiber *self, CopyEngine *e, CopyChunk *chunk)
{
    uint64_t granularity = work_set_granularity(e->work);
    CopyExtent *found = &chunk->found;
    chunk->is_stale = false;
    chunk->failed_reading = true;
    chunk->len = MIN(granularity - chunk->off % granularity, chunk->end - chunk->off);
    int r =
        ask(self, e, e->config.ops->find, (BitmapRun){chunk->off, chunk->end - chunk->off}, found);
    if (r < 0)
        return r;
    chunk->failed_reading = false;
    chunk->found_end = chunk->off + found->len;
    // Data where metadata was thought to be is left to a chunk that counts for window and rate.
    if (found->is_work && found->kind == WORK_DATA && chunk->kind == WORK_METADATA) {
        work_set_add(e->work, WORK_DATA, chunk->off, found->len);
        found->is_work = false;
    }
    return 0;
}

static uint64_t piece_bytes(const CopyEngine *e, const CopyChunk *chunk)
{
    uint64_t most = MAX(METADATA_PIECE_BYTES, work_set_granularity(e->work));
    uint64_t left = chunk->found_end - chunk->off;
    bool is_metadata = chunk->found.is_work && chunk->found.kind == WORK_METADATA;
    return is_metadata ? MIN(left, most - chunk->off % most) : left;
}

// What `find` says holds as long as the chunk is not stale.
static int next_piece(Fiber *self, CopyEngine *e, CopyChunk *chunk)
{
    chunk->copied_bytes = chunk->shared_bytes = 0;
    chunk->beside_copied = chunk->beside_shared = 0;
    if (chunk->is_stale || chunk->off >= chunk->found_end) {
        int r = find_extent(self, e, chunk);
        if (r < 0)
            return r;
    }
    chunk->len = piece_bytes(e, chunk);
    return 0;
}

static int copy_piece(Fiber *self, CopyEngine *e, CopyChunk *chunk)
{
    int r = next_piece(self, e, chunk);
    if (r < 0)
        return r;
    if (chunk->found.is_work) {
        chunk->kind = chunk->found.kind;
        r = e->config.ops->copy(self, e->config.arg, chunk);
        chunk->kind = chunk->taken_as;
        chunk->moved_bytes += chunk->copied_bytes + chunk->beside_copied;
        e->stats.beside_copied += chunk->beside_copied;
        e->stats.beside_shared += chunk->beside_shared;
        if (r)
            return r;
        e->stats.copied += chunk->copied_bytes;
        e->stats.shared += chunk->shared_bytes;
        e->stats.done += chunk->found.kind == WORK_DATA ? chunk->len : 0;
    }
    chunk->off += chunk->len;
    return 0;
}

// The rest of a chunk that ended early is work again.
static void give_back(CopyEngine *e, CopyChunk *chunk, int result)
{
    if (result < 0 && note_failure(e, chunk, result) == COPY_ERROR_SKIP)
        chunk->off += chunk->len;
    e->stats.n_again += result == COPY_AGAIN;
    if (chunk->off < chunk->end)
        work_set_add(e->work, chunk->kind, chunk->off, chunk->end - chunk->off);
}

static void end_chunk(CopyEngine *e, CopyChunk *chunk)
{
    *(chunk->previous ? &chunk->previous->next : &e->chunks) = chunk->next;
    if (chunk->next)
        chunk->next->previous = chunk->previous;
    e->in_flight_bytes -= chunk->taken_bytes;
    if (chunk->kind == WORK_DATA)
        copy_rate_take(&e->rate, (int64_t)chunk->moved_bytes - (int64_t)chunk->taken_bytes);
    g_free(chunk);
    tell_progress(e);
    copy_engine_wake(e);
}

static void run_chunk(Fiber *self, void *arg)
{
    CopyChunk *chunk = arg;
    CopyEngine *e = chunk->engine;
    unsigned n_left = chunk->kind == WORK_METADATA ? MAX_METADATA_PIECES : UINT_MAX;
    int r = 0;
    for (; r == 0 && chunk->off < chunk->end && n_left; n_left--)
        r = copy_piece(self, e, chunk);
    if (r == 0)
        e->n_failures = 0;
    give_back(e, chunk, r);
    end_chunk(e, chunk);
}

static void begin_chunk(CopyEngine *e, CopyChunk *chunk)
{
    chunk->next = e->chunks;
    if (e->chunks)
        e->chunks->previous = chunk;
    e->chunks = chunk;
    e->in_flight_bytes += chunk->taken_bytes;
    if (chunk->kind == WORK_DATA)
        copy_rate_take(&e->rate, (int64_t)chunk->taken_bytes);
    work_set_remove(e->work, chunk->off, chunk->end - chunk->off);
    work_set_go_on(e->work, chunk->end);
}

// On its way, or done; false: there is no stack for it now.
static bool start_chunk(CopyEngine *e, WorkKind kind, BitmapRun run)
{
    CopyChunk *chunk = g_new0(CopyChunk, 1);
    uint64_t bytes = MIN(run.len, chunk_bytes(e));
    *chunk = (CopyChunk){.off = run.off,
                         .end = run.off + (kind == WORK_DATA ? bytes : run.len),
                         .kind = kind,
                         .engine = e,
                         .taken_as = kind,
                         .taken_bytes = bytes};
    begin_chunk(e, chunk);
    if (fiber_spawn(e->loop, "copy", run_chunk, chunk, NULL) == 0)
        return true;
    give_back(e, chunk, 0);
    end_chunk(e, chunk);
    return false;
}

// -- what to do next ------------------------------------------------------------------------------

// Others go first: those that are runnable, and whoever has become so by what the kernel knows.
static void let_others_go(Fiber *self)
{
    fiber_sleep(self, 0);
}

static void wait_idle(Fiber *self, CopyEngine *e)
{
    while (e->chunks)
        fiber_queue_wait(self, &e->changed, false, "copy: the end of chunks");
}

static int pause_now(Fiber *self, CopyEngine *e)
{
    wait_idle(self, e);
    int r = e->config.ops->pause_point(self, e->config.arg);
    e->retry_ns = 0;
    return r < 0 ? r : 1;
}

static void update_window(CopyEngine *e)
{
    uint64_t now_ns = loop_now_ns(e->loop);
    if (e->config.guests && copy_window_wants_sample(&e->window, now_ns))
        copy_window_sample(&e->window, port_load_above(e->config.guests), now_ns);
}

static bool has_room(const CopyEngine *e, uint64_t bytes)
{
    return !e->chunks || e->in_flight_bytes + MIN(bytes, chunk_bytes(e)) <= e->window.limit_bytes;
}

static uint64_t rate_ns(CopyEngine *e, WorkKind kind, uint64_t now_ns)
{
    uint64_t wait_ns = kind == WORK_DATA ? copy_rate_wait_ns(&e->rate, now_ns) : 0;
    return wait_ns ? now_ns + wait_ns : 0;
}

// Starts the next chunk if it may be started now: true. Else *ret_until_ns says when it is to be
// looked at again, if nothing changes before.
static bool try_start(CopyEngine *e, uint64_t *ret_until_ns)
{
    enum { NO_STACK_NS = 1000000 };
    uint64_t now_ns = loop_now_ns(e->loop);
    WorkKind kind;
    BitmapRun run;
    *ret_until_ns = UINT64_MAX;
    if (!work_set_next(e->work, &kind, &run) || !has_room(e, run.len))
        return false;
    uint64_t until_ns = MAX(rate_ns(e, kind, now_ns), e->retry_ns);
    if (until_ns <= now_ns && start_chunk(e, kind, run))
        return true;
    *ret_until_ns = MAX(until_ns, now_ns + NO_STACK_NS);
    return false;
}

static bool is_all_found(const CopyEngine *e)
{
    return e->found_off == e->config.size_bytes;
}

bool copy_engine_is_idle(const CopyEngine *e)
{
    return is_all_found(e) && !e->chunks && work_set_is_empty(e->work);
}

// 1: there is more to do; 0: all is done; or an error.
static int step(Fiber *self, CopyEngine *e)
{
    uint64_t until_ns;
    if (fiber_is_cancelled(self))
        return -ECANCELED;
    if (e->error)
        return e->error;
    if (e->config.ops->wants_pause && e->config.ops->wants_pause(e->config.arg))
        return pause_now(self, e);
    if (copy_engine_is_idle(e))
        return 0;
    update_window(e);
    bool has_found = !is_all_found(e) && e->retry_ns <= loop_now_ns(e->loop);
    if (has_found)
        find_ahead(self, e);
    if (try_start(e, &until_ns) || has_found)
        let_others_go(self);
    else
        fiber_queue_wait_until(self, &e->changed,
                               is_all_found(e) ? until_ns : MIN(until_ns, e->retry_ns),
                               "copy: window or rate");
    return 1;
}

int copy_engine_run(Fiber *self, CopyEngine *e)
{
    int r = 1;
    e->error = e->skipped_error = 0;
    e->retry_ns = e->n_failures = 0;
    while (r > 0)
        r = step(self, e);
    wait_idle(self, e);
    return r == 0 ? e->skipped_error : r;
}

// -- from outside ---------------------------------------------------------------------------------

void copy_engine_wait(Fiber *self, CopyEngine *e)
{
    fiber_queue_wait(self, &e->changed, false, "copy: more to do");
}

void copy_engine_set_found(CopyEngine *e, uint64_t off)
{
    e->found_off = off;
    copy_engine_wake(e);
}

void copy_engine_add(CopyEngine *e, WorkKind kind, uint64_t off, uint64_t len)
{
    work_set_add(e->work, kind, off, len);
    e->stats.n_added++;
    copy_engine_wake(e);
}

void copy_engine_remove(CopyEngine *e, uint64_t off, uint64_t len)
{
    work_set_remove(e->work, off, len);
}

WorkSet *copy_engine_work(CopyEngine *e)
{
    return e->work;
}

void copy_engine_guest_wrote(CopyEngine *e, uint64_t off, uint64_t len)
{
    for (CopyChunk *chunk = e->chunks; chunk; chunk = chunk->next)
        if (chunk->off < off + len && off < chunk->end)
            chunk->is_stale = true;
}

bool copy_chunk_is_stale(const CopyChunk *chunk)
{
    return chunk->is_stale && !MUTANT("copy-stale");
}

void copy_engine_set_speed(CopyEngine *e, uint64_t bytes_per_s)
{
    copy_rate_set(&e->rate, bytes_per_s, loop_now_ns(e->loop));
    copy_engine_wake(e);
}

// Without the pieces that are done: who compares what is left with what was done sees no work come.
static uint64_t data_in_flight(const CopyEngine *e)
{
    uint64_t bytes = 0;
    for (const CopyChunk *chunk = e->chunks; chunk; chunk = chunk->next)
        bytes += chunk->taken_as == WORK_DATA ? chunk->end - chunk->off : 0;
    return bytes;
}

void copy_engine_stats(const CopyEngine *e, CopyEngineStats *ret_stats)
{
    *ret_stats = e->stats;
    ret_stats->left = work_set_data_bytes(e->work) + data_in_flight(e);
    ret_stats->found_off = e->found_off;
    ret_stats->window_bytes = e->window.limit_bytes;
}
