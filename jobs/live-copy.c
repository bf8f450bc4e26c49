// SPDX-License-Identifier: LGPL-2.1-or-later
// In fibers on the nodes' loop. The target is durable before guests are taken to it
// (docs/ordering.md §18).
#include "live-copy.h"

#include <errno.h>

#include "chain-core/mutant.h"
#include "filter-forward.h"

static int fail(GError **error, int r, const LiveCopy *live, const char *what)
{
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s: %s: %s",
                live->spec.target->name, what, g_strerror(-r));
    return r;
}

void live_copy_init(LiveCopy *live, const LiveCopySpec *spec)
{
    live->spec = *spec;
    port_init(&live->port, spec->source, spec->owner);
    live->port.is_background = true;
    live->nodes = (CopyNodes){.source = spec->source,
                              .target = spec->target,
                              .port = &live->port,
                              .lock = spec->is_live ? &live->lock : NULL};
}

static void insert_filter(Fiber *self, LiveCopy *live)
{
    bool is_blocking = live->spec.mode == COPY_MODE_WRITE_BLOCKING;
    ForwardConfig config = {
        .name = live->spec.name,
        .source = live->spec.source,
        .target = live->spec.target,
        .engine = live->copy.engine,
        .lock = &live->lock,
        .mode = is_blocking ? FORWARD_WRITE_BLOCKING : FORWARD_BACKGROUND,
        .whole_bytes = live->spec.whole_bytes,
    };
    live->filter = filter_forward_new(&config);
    node_insert_filter(self, live->spec.source, live->filter);
}

static void close_filter(Fiber *self, LiveCopy *live)
{
    filter_forward_stop(live->filter);
    node_unref_close(self, g_steal_pointer(&live->filter));
}

void live_copy_stop(Fiber *self, LiveCopy *live, SwitchFn *fn, void *arg)
{
    Switch *s = switch_new(REQUESTS_ALL);
    switch_move_users(s, live->filter, live->spec.source);
    switch_set_backing(s, live->filter, NULL);
    switch_call(s, fn, arg);
    switch_drain_always(self, s);
    switch_commit(s);
    switch_end(self, s);
    close_filter(self, live);
}

void live_copy_done(Fiber *self, LiveCopy *live)
{
    if (live->filter) {
        node_remove_filter(self, live->filter);
        close_filter(self, live);
    }
    if (live->spec.source)
        port_done(self, &live->port);
    unflushed_end(&live->unflushed);
    job_copy_end(&live->copy);
}

// -- the copy -------------------------------------------------------------------------------------

// Once the run is over users are not asked any more, and see a failure as that of the end.
CopyErrorAction live_copy_failed(void *arg, const CopyChunk *chunk, int error)
{
    return ((LiveCopy *)arg)->is_over ? COPY_ERROR_FAIL : job_copy_failed(arg, chunk, error);
}

static JobEnd asked_end(const LiveCopy *live)
{
    if (!live->is_ready)
        return JOB_END_NOT_YET;
    return live->spec.completes_itself ? JOB_END_COMPLETE : job_asked_end(live->copy.control);
}

bool live_copy_is_to_complete(const LiveCopy *live)
{
    return asked_end(live) == JOB_END_COMPLETE;
}

static bool is_asked_to_end_as_it_is(const LiveCopy *live)
{
    return live->spec.ends_as_it_is && asked_end(live) == JOB_END_CANCEL;
}

bool live_copy_wants_pause(void *arg)
{
    const LiveCopy *live = arg;
    return !live->is_over && (job_copy_wants_pause(arg) || is_asked_to_end_as_it_is(live));
}

int live_copy_pause_point(Fiber *self, void *arg)
{
    int r = job_copy_pause_point(self, arg);
    return r == 0 && is_asked_to_end_as_it_is(arg) ? -EINTR : r;
}

// What the job is in by its own choice, or users'. Not so at its end, which nobody hears of.
static void set_mode(LiveCopy *live, CopyMode mode)
{
    filter_forward_set_mode(live->filter, mode == COPY_MODE_WRITE_BLOCKING ? FORWARD_WRITE_BLOCKING
                                                                           : FORWARD_BACKGROUND);
    job_set_copy_mode(live->copy.control, mode);
}

// Less is no sign of guests who are too fast: what they have in flight comes and goes.
static uint64_t small_bytes(const LiveCopy *live)
{
    enum { MOST = 16 << 20, PART = 8 };
    return MIN(MOST, live->copy.size_bytes / PART);
}

// Until a good part of what is left is done. By work and not by time, so that a short job does not
// wait for it, and a slow one is not judged too soon.
static void begin_look(LiveCopy *live, const CopyEngineStats *stats)
{
    enum { PART = 4 };
    live->look_done = stats->done;
    live->look_left = stats->left;
    live->look_bytes = MAX(stats->left / PART, small_bytes(live));
    live->look_is_fair = stats->found_off >= live->copy.size_bytes;
}

// Do guests make work more than half as fast as it is done?
static void look_at_progress(LiveCopy *live)
{
    CopyEngineStats stats;
    copy_engine_stats(live->copy.engine, &stats);
    uint64_t done = stats.done - live->look_done;
    if (done < live->look_bytes)
        return;
    bool gets_less = stats.left + done / 2 <= live->look_left;
    if (live->look_is_fair && !gets_less && stats.left > small_bytes(live) / 2)
        set_mode(live, COPY_MODE_WRITE_BLOCKING);
    begin_look(live, &stats);
}

static void choose_mode(LiveCopy *live)
{
    CopyMode asked = job_asked_copy_mode(live->copy.control);
    if (asked != COPY_MODE_AUTOMATIC)
        set_mode(live, asked);
    else if (live->spec.mode == COPY_MODE_AUTOMATIC)
        look_at_progress(live);
    if (asked_end(live) != JOB_END_NOT_YET && !is_asked_to_end_as_it_is(live))
        filter_forward_set_mode(live->filter, FORWARD_ENDING);
    job_set_synced(live->copy.control, filter_forward_mode(live->filter) != FORWARD_BACKGROUND &&
                                           copy_engine_is_idle(live->copy.engine));
}

void live_copy_progress(void *arg)
{
    LiveCopy *live = arg;
    if (live->is_over)
        return;
    job_copy_progress(arg);
    if (live->filter)
        choose_mode(live);
}

// Whatever it is: guests need not wait for the end of a chunk, which a limit may put off for long.
static void asked(void *arg)
{
    LiveCopy *live = arg;
    job_copy_asked(arg);
    if (live->filter && !live->is_over)
        choose_mode(live);
}

void live_copy_begin(Fiber *self, LiveCopy *live, JobControl *control, CopyEngineConfig *config)
{
    job_copy_choose_sizes(config, live->spec.target);
    live->copy.control = control;
    live->copy.source = live->spec.source;
    live->copy.target = live->spec.target;
    job_copy_begin(&live->copy, fiber_loop(self), config);
    if (!live->spec.is_live)
        return;
    unflushed_begin(&live->unflushed, live->spec.target, config->granularity_bits);
    insert_filter(self, live);
    job_set_asked(control, asked, live);
}

void live_copy_set_ready(LiveCopy *live)
{
    if (!live->is_ready && !live->spec.completes_itself)
        job_ready(live->copy.control);
    live->is_ready = true;
}

void live_copy_set_over(LiveCopy *live)
{
    live->is_over = true;
    job_set_asked(live->copy.control, NULL, NULL);
}

// Until users want it to end, in step with what guests write.
static int stay_in_step(Fiber *self, LiveCopy *live)
{
    int r = job_copy_run(self, &live->copy);
    while (r == 0) {
        live_copy_set_ready(live);
        choose_mode(live);
        if (asked_end(live) != JOB_END_NOT_YET)
            return 0;
        copy_engine_wait(self, live->copy.engine);
        r = job_copy_run(self, &live->copy);
    }
    return r;
}

// -- the end --------------------------------------------------------------------------------------

static int flush_target(Fiber *self, LiveCopy *live)
{
    if (MUTANT("copy-target-durable-first"))
        return 0;
    return live->unflushed.bits ? unflushed_flush(self, &live->unflushed, live->copy.engine)
                                : node_flush(self, live->spec.target);
}

int live_copy_make_durable(Fiber *self, LiveCopy *live, GError **error)
{
    int r = flush_target(self, live);
    return r < 0 ? fail(error, r, live, "what was copied to it does not become durable") : 0;
}

int live_copy_drain(Fiber *self, const LiveCopy *live, Switch *s, GError **error)
{
    int r = switch_drain_in_tries(self, s, loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS);
    return r < 0
               ? fail(error, r, live, "the graph stays as it is, as requests under way do not end")
               : 0;
}

// Once the run is over it is the end that fails.
static int do_what_is_left(Fiber *self, LiveCopy *live, GError **error)
{
    int r = job_copy_run(self, &live->copy);
    return r < 0 && live->is_over
               ? fail(error, r, live, "what guests wrote last cannot be copied to it")
               : r;
}

// 1: it has failed, and users want it tried again: what was lost is work, or it is to pause. What
// is ignored may fail each time, at once.
static int flush_as_wanted(Fiber *self, LiveCopy *live, GError **error)
{
    enum { RETRY_NS = 100000000 };
    int r = live_copy_make_durable(self, live, error);
    if (r == 0 || live->is_over)
        return r;
    JobErrorAction action =
        job_error_action(live->copy.control, live->copy.on_write_error, r, false);
    bool is_again = action == JOB_ERROR_STOP ||
                    (action == JOB_ERROR_IGNORE && !copy_engine_is_idle(live->copy.engine));
    if (!is_again)
        return r;
    g_clear_error(error);
    r = action == JOB_ERROR_IGNORE ? job_sleep(self, live->copy.control, RETRY_NS) : 0;
    return r < 0 ? r : 1;
}

// What guests do from now on goes to both, so a flush has less to do than the one before it, as
// long as what was copied is what it takes its time for.
static int approach(Fiber *self, LiveCopy *live, GError **error)
{
    static const uint64_t short_ns = 10000000;
    Loop *loop = fiber_loop(self);
    uint64_t took_ns = UINT64_MAX, before_ns;
    int r;
    filter_forward_set_mode(live->filter, FORWARD_ENDING);
    do {
        r = do_what_is_left(self, live, error);
        uint64_t begun_ns = loop_now_ns(loop);
        if (r == 0)
            r = flush_as_wanted(self, live, error);
        before_ns = took_ns;
        took_ns = r > 0 ? UINT64_MAX : loop_now_ns(loop) - begun_ns;
    } while (r > 0 || (r == 0 && took_ns > short_ns && took_ns < before_ns / 2));
    return r;
}

int live_copy_run(Fiber *self, LiveCopy *live, GError **error)
{
    int r = live->filter ? stay_in_step(self, live) : job_copy_run(self, &live->copy);
    job_copy_explain(&live->copy, r, error);
    // However long users take to finalize it, little is left then. Discards are done meanwhile.
    if (r == 0 && live->filter && !is_asked_to_end_as_it_is(live)) {
        r = approach(self, live, error);
        filter_forward_set_mode(live->filter, FORWARD_WRITE_BLOCKING);
    }
    live_copy_set_over(live);
    return r == -EINTR ? 0 : r;
}

// docs/ordering.md §18: in that order.
int live_copy_come_close(Fiber *self, LiveCopy *live, GError **error)
{
    CopyEngineStats stats;
    copy_engine_set_speed(live->copy.engine, 0);
    int r = approach(self, live, error);
    if (r < 0)
        return r;
    filter_forward_set_durable(live->filter, true);
    r = do_what_is_left(self, live, error);
    if (r < 0)
        return r;
    copy_engine_stats(live->copy.engine, &stats);
    live->n_added = stats.n_added;
    return live_copy_make_durable(self, live, error);
}

// Work that came since and was done does not count: it was not there when the target was flushed.
static bool is_in_step(const LiveCopy *live)
{
    CopyEngineStats stats;
    copy_engine_stats(live->copy.engine, &stats);
    bool is_durable = stats.n_added == live->n_added || MUTANT("copy-work-since");
    return copy_engine_is_idle(live->copy.engine) && is_durable &&
           filter_forward_is_durable(live->filter);
}

// 1: done. 0: not yet.
static int drain_and_leave(Fiber *self, const LiveCopy *live, Switch *s, GError **error)
{
    int r = live_copy_drain(self, live, s, error);
    if (r < 0 || !is_in_step(live))
        return r;
    if (live->spec.pivot.before)
        r = live->spec.pivot.before(self, live->spec.pivot.arg, error);
    if (r < 0)
        return r;
    switch_commit(s);
    return 1;
}

int live_copy_try_leave(Fiber *self, LiveCopy *live, LiveCopyPlanFn *plan, void *arg,
                        GError **error)
{
    // Nobody can cancel it any more, and a target may refuse what guests write and take it later,
    // again and again.
    enum { MAX_TRIES = 100 };
    Switch *s = switch_new(REQUESTS_ALL);
    plan(s, arg);
    int r = drain_and_leave(self, live, s, error);
    switch_end(self, s);
    if (r == 0 && ++live->n_tries == MAX_TRIES)
        r = fail(error, -EBUSY, live, "what guests change fails to come to it, again and again");
    if (r <= 0)
        return r < 0 ? r : 1;
    close_filter(self, live);
    return 0;
}

int live_copy_leave(Fiber *self, LiveCopy *live, LiveCopyPlanFn *plan, void *arg, GError **error)
{
    int r;
    do {
        r = live_copy_come_close(self, live, error);
        if (r == 0)
            r = live_copy_try_leave(self, live, plan, arg, error);
    } while (r > 0);
    return r;
}
