// SPDX-License-Identifier: LGPL-2.1-or-later
// A commit from its begin to its end. What is to be copied is asked of metadata as it is copied:
// ranges that a layer above the base owns. Guests do not change them, but for those of an active
// commit, whose filter tells the engine. In fibers on the chain's loop.
//
// Write order (docs/ordering.md §18): base's data is durable before an overlay's header names base,
// and before a head is left for it.
#include "jobs/commit.h"

#include <errno.h>

#include "chain-core/chain-range.h"
#include "chain-core/chain.h"
#include "chain-core/mutant.h"
#include "chain-core/qcow2.h"
#include "chain-core/switch.h"
#include "copy-nodes.h"
#include "filter-forward.h"
#include "job-copy.h"
#include "keep-points.h"

struct Commit {
    JobCopy copy; // first
    CommitSpec spec;
    char *name, *backing_name, *backing_format;
    Node **overlays;
    Port port;
    CopyNodes nodes;
    KeepPoints points;
    // Active:
    RangeLock lock;
    Node *filter; // NULL: not in the graph
    bool is_ready, is_over;
    uint64_t looked_ns, left_before;
    unsigned n_looks_without_progress;
};

static bool is_active(const Commit *c)
{
    return c->spec.n_overlays == 0;
}

static int fail(GError **error, int r, const Commit *c, const char *what)
{
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s: %s: %s", c->spec.base->name,
                what, g_strerror(-r));
    return r;
}

// -- begin ----------------------------------------------------------------------------------------

static void free_commit(Fiber *self, Commit *c)
{
    for (unsigned i = 0; i < c->spec.n_overlays; i++)
        node_unref_close(self, c->overlays[i]);
    keep_points_done(self, &c->points);
    node_unref_close(self, c->spec.top);
    node_unref_close(self, c->spec.base);
    g_free(c->overlays);
    g_free(c->name);
    g_free(c->backing_name);
    g_free(c->backing_format);
    g_free(c);
}

int commit_begin(Fiber *self, const CommitSpec *spec, Commit **ret_commit, GError **error)
{
    Commit *c = g_new0(Commit, 1);
    c->spec = *spec;
    c->name = g_strdup(spec->name);
    c->backing_name = g_strdup(spec->backing_name);
    c->backing_format = g_strdup(spec->backing_format);
    c->overlays = g_new(Node *, spec->n_overlays);
    for (unsigned i = 0; i < spec->n_overlays; i++)
        c->overlays[i] = node_ref(spec->overlays[i]);
    node_ref(spec->top);
    node_ref(spec->base);
    c->copy.on_error = spec->on_error;
    c->copy.retries_ignored = true;
    c->copy.counts_all = !is_active(c);
    c->left_before = UINT64_MAX;
    int r = 0;
    if (spec->base->size_bytes < spec->top->size_bytes)
        r = node_resize(self, spec->base, spec->top->size_bytes, error);
    if (r < 0) {
        free_commit(self, c);
        return r;
    }
    keep_points_init(&c->points, spec->points, spec->n_points);
    port_init(&c->port, spec->top, "commit");
    c->port.is_background = true;
    c->nodes = (CopyNodes){.source = spec->top,
                           .target = spec->base,
                           .port = &c->port,
                           .lock = is_active(c) ? &c->lock : NULL};
    *ret_commit = c;
    return 0;
}

// -- copying --------------------------------------------------------------------------------------

static bool hides_end_of_base(const Commit *c)
{
    bool any = is_active(c);
    for (unsigned i = 0; i < c->spec.n_overlays; i++)
        any |= c->overlays[i]->size_bytes > c->spec.top->size_bytes;
    return any;
}

// What `top` ends before reads as zeros above it, and has to in base.
static uint64_t size_of_work(const Commit *c)
{
    uint64_t top = c->spec.top->size_bytes, base = c->spec.base->size_bytes;
    return hides_end_of_base(c) ? MAX(top, base) : top;
}

static int find(Fiber *self, const Commit *c, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    uint64_t top_bytes = c->spec.top->size_bytes;
    const ChainLayers layers = {.top = c->spec.top, .base = c->spec.base};
    ChainRange range;
    if (off >= top_bytes) {
        *ret_extent = (CopyExtent){.len = len, .is_work = true, .kind = WORK_METADATA};
        return 0;
    }
    int r = chain_range_find(self, &layers, guest_off(off), MIN(len, top_bytes - off), &range);
    if (r == 0)
        *ret_extent = (CopyExtent){.len = range.len,
                                   .is_work = range.is_owned,
                                   .kind = range.is_zero ? WORK_METADATA : WORK_DATA};
    return r;
}

static int find_in(Fiber *self, Commit *c, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    port_enter(self, &c->port, REQUEST_READ);
    int r = find(self, c, off, len, ret_extent);
    port_leave(&c->port, REQUEST_READ);
    return r;
}

// Zeros that hide data of the base are data to points, so they come in short pieces, too.
static int commit_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Commit *c = arg;
    int r = find_in(self, c, off, len, ret_extent);
    if (r == 0 && c->points.n)
        ret_extent->kind = WORK_DATA;
    return r;
}

// The chunk lies in one extent of `find`, whose kind this is.
static int save_points(Fiber *self, Commit *c, CopyChunk *chunk, WorkKind *ret_kind)
{
    CopyExtent extent;
    int r = keep_points_save(self, &c->points, chunk->off, chunk->len, &chunk->failed_reading);
    if (r == 0)
        r = find_in(self, c, chunk->off, chunk->len, &extent);
    if (r == 0)
        *ret_kind = extent.kind;
    return r;
}

static int commit_copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    Commit *c = arg;
    WorkKind kind = chunk->kind;
    int r = c->points.n ? save_points(self, c, chunk, &chunk->kind) : 0;
    if (r == 0)
        r = copy_nodes_chunk(self, &c->nodes, chunk);
    chunk->kind = kind;
    return r;
}

// Once the run is over users are not asked any more, and see a failure as that of the end.
static CopyErrorAction commit_failed(void *arg, const CopyChunk *chunk, int error)
{
    return ((Commit *)arg)->is_over ? COPY_ERROR_FAIL : job_copy_failed(arg, chunk, error);
}

static bool is_asked_to_end_as_it_is(const Commit *c)
{
    return c->is_ready && job_asked_end(c->copy.control) == JOB_END_CANCEL;
}

static bool commit_wants_pause(void *arg)
{
    const Commit *c = arg;
    return !c->is_over && (job_copy_wants_pause(arg) || is_asked_to_end_as_it_is(c));
}

static int commit_pause_point(Fiber *self, void *arg)
{
    int r = job_copy_pause_point(self, arg);
    return r == 0 && is_asked_to_end_as_it_is(arg) ? -EINTR : r;
}

// Guests make work as fast as it is done, or the job is to be completed.
static void look_at_progress(Commit *c)
{
    enum { LOOKS = 2 };
    static const uint64_t look_ns = 1000000000;
    CopyEngineStats stats;
    uint64_t now_ns = loop_now_ns(c->spec.top->loop);
    if (!c->filter || c->spec.copy_mode != COMMIT_COPY_AUTOMATIC || now_ns - c->looked_ns < look_ns)
        return;
    copy_engine_stats(c->copy.engine, &stats);
    bool gets_less = stats.left < c->left_before || stats.found_off < c->spec.top->size_bytes;
    c->n_looks_without_progress = gets_less ? 0 : c->n_looks_without_progress + 1;
    c->looked_ns = now_ns;
    c->left_before = stats.left;
    if (c->n_looks_without_progress >= LOOKS)
        filter_forward_set_mode(c->filter, FORWARD_WRITE_BLOCKING);
}

static void commit_progress(void *arg)
{
    Commit *c = arg;
    if (c->is_over)
        return;
    job_copy_progress(arg);
    look_at_progress(c);
    if (c->filter && c->is_ready && job_asked_end(c->copy.control) == JOB_END_COMPLETE)
        filter_forward_set_mode(c->filter, FORWARD_WRITE_BLOCKING);
}

static const CopyEngineOps commit_ops = {
    .find = commit_find,
    .copy = commit_copy,
    .failed = commit_failed,
    .wants_pause = commit_wants_pause,
    .pause_point = commit_pause_point,
    .progress = commit_progress,
};

static void insert_filter(Fiber *self, Commit *c)
{
    bool is_blocking = c->spec.copy_mode == COMMIT_COPY_WRITE_BLOCKING;
    ForwardConfig config = {
        .name = c->name,
        .source = c->spec.top,
        .target = c->spec.base,
        .engine = c->copy.engine,
        .lock = &c->lock,
        .mode = is_blocking ? FORWARD_WRITE_BLOCKING : FORWARD_BACKGROUND,
    };
    c->filter = filter_forward_new(&config);
    node_insert_filter(self, c->spec.top, c->filter);
}

static void remove_filter(Fiber *self, Commit *c)
{
    node_remove_filter(self, c->filter);
    filter_forward_stop(c->filter);
    node_unref_close(self, g_steal_pointer(&c->filter));
}

// Until users want it to end, in step with what guests write.
static int stay_in_step(Fiber *self, Commit *c)
{
    int r = job_copy_run(self, &c->copy);
    while (r == 0) {
        if (!c->is_ready)
            job_ready(c->copy.control);
        c->is_ready = true;
        c->left_before = UINT64_MAX;
        if (job_asked_end(c->copy.control) != JOB_END_NOT_YET)
            return 0;
        copy_engine_wait(self, c->copy.engine);
        r = job_copy_run(self, &c->copy);
    }
    return r == -EINTR ? 0 : r;
}

int commit_run(Fiber *self, JobControl *control, void *commit, GError **error)
{
    Commit *c = commit;
    CopyEngineConfig config = {
        .size_bytes = size_of_work(c),
        .guests = c->spec.top,
        .ops = &commit_ops,
        .arg = c,
    };
    job_copy_choose_sizes(&config, c->spec.base);
    c->copy.control = control;
    job_copy_begin(&c->copy, fiber_loop(self), &config);
    if (is_active(c))
        insert_filter(self, c);
    int r = is_active(c) ? stay_in_step(self, c) : job_copy_run(self, &c->copy);
    // However long users take to finalize it, little is left then.
    if (r == 0 && is_active(c) && job_asked_end(control) == JOB_END_COMPLETE)
        filter_forward_set_mode(c->filter, FORWARD_WRITE_BLOCKING);
    c->is_over = true;
    job_set_asked(control, NULL, NULL);
    return r;
}

// -- the switch -----------------------------------------------------------------------------------

static int make_durable(Fiber *self, const Commit *c, GError **error)
{
    int r = MUTANT("commit-base-durable-first") ? 0 : node_flush(self, c->spec.base);
    return r < 0 ? fail(error, r, c, "what was committed to it does not become durable") : 0;
}

static int drain(Fiber *self, const Commit *c, Switch *s, GError **error)
{
    int r = switch_drain(self, s, loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS);
    return r < 0 ? fail(error, r, c, "no other chain was made, as requests under way do not end")
                 : 0;
}

// An overlay that records base already and is not switched shows the same.
static int leave_out(Fiber *self, Commit *c, GError **error)
{
    int r = make_durable(self, c, error);
    for (unsigned i = 0; r == 0 && i < c->spec.n_overlays; i++)
        r = qcow2_set_backing_name(self, c->overlays[i], c->backing_name, c->backing_format, error);
    if (r < 0)
        return r;
    Switch *s = switch_new(REQUESTS_ALL);
    switch_move_users(s, c->spec.top, c->spec.base);
    r = drain(self, c, s, error);
    if (r == 0)
        switch_commit(s);
    switch_end(self, s);
    return r;
}

// -- the pivot ------------------------------------------------------------------------------------

// What guests do from now on goes to both; what is left is copied, and made durable ahead, so that
// little is to be done while they wait. No limit on the rate any more: others wait for the graph.
static int come_close(Fiber *self, Commit *c, GError **error)
{
    filter_forward_set_mode(c->filter, FORWARD_WRITE_BLOCKING);
    copy_engine_set_speed(c->copy.engine, 0);
    int r = copy_engine_run(self, c->copy.engine);
    if (r < 0)
        return fail(error, r, c, "what guests wrote last cannot be committed to it");
    return make_durable(self, c, error);
}

static void tell_size(void *node)
{
    node_size_changed(node);
}

static Switch *pivot_new(const Commit *c)
{
    Switch *s = switch_new(REQUESTS_ALL);
    switch_move_users(s, c->filter, c->spec.base);
    switch_set_backing(s, c->filter, NULL);
    if (c->spec.base->size_bytes != c->spec.top->size_bytes)
        switch_call(s, tell_size, c->spec.base);
    return s;
}

// 1: done. 0: guests were faster once more.
static int try_pivot(Fiber *self, Commit *c, GError **error)
{
    int r = come_close(self, c, error);
    if (r < 0)
        return r;
    Switch *s = pivot_new(c);
    r = drain(self, c, s, error);
    bool is_in_step = r == 0 && copy_engine_is_idle(c->copy.engine);
    if (is_in_step)
        r = make_durable(self, c, error);
    if (r == 0 && is_in_step)
        switch_commit(s);
    switch_end(self, s);
    return r < 0 ? r : is_in_step;
}

static int pivot(Fiber *self, Commit *c, GError **error)
{
    enum { MAX_TRIES = 100 };
    int r = 0;
    for (unsigned i = 0; r == 0 && i < MAX_TRIES; i++)
        r = try_pivot(self, c, error);
    if (r == 0)
        return fail(error, -EBUSY, c, "guests' discards keep it from being in step");
    if (r < 0)
        return r;
    filter_forward_stop(c->filter);
    node_unref_close(self, g_steal_pointer(&c->filter));
    return 0;
}

int commit_prepare(Fiber *self, Commit *c, bool *ret_switched, GError **error)
{
    *ret_switched = false;
    if (is_active(c) && job_asked_end(c->copy.control) != JOB_END_COMPLETE)
        return 0;
    int r = is_active(c) ? pivot(self, c, error) : leave_out(self, c, error);
    *ret_switched = r == 0;
    return r;
}

void commit_end(Fiber *self, Commit *c)
{
    if (!c)
        return;
    if (c->filter)
        remove_filter(self, c);
    port_done(self, &c->port);
    job_copy_end(&c->copy);
    free_commit(self, c);
}
