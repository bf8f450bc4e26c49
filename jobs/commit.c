// SPDX-License-Identifier: LGPL-2.1-or-later
// A commit from its begin to its end. What is to be copied is asked of metadata as it is copied:
// ranges that a layer above the base owns. Guests do not change them, but for those of an active
// commit, whose filter tells the engine. In fibers on the chain's loop.
//
// Write order (docs/ordering.md §18): base's data is durable before an overlay's header names base,
// and before a head is left for it, or gives back what base has.
#include "jobs/commit.h"

#include <errno.h>

#include "chain-core/chain-range.h"
#include "chain-core/chain.h"
#include "chain-core/mutant.h"
#include "chain-core/node-fill.h"
#include "chain-core/qcow2.h"
#include "chain-core/switch.h"
#include "job-space.h"
#include "keep-points.h"
#include "keep-top.h"
#include "live-copy.h"

struct Commit {
    LiveCopy live; // first
    CommitSpec spec;
    char *name, *backing_name, *backing_format;
    Node **overlays;
    KeepPoints points;
    KeepTop keep; // if the top stays
};

static bool is_active(const Commit *c)
{
    return c->spec.n_overlays == 0;
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

static int check_gives_back(Fiber *self, const Commit *c, GError **error)
{
    int r = node_unfill(self, c->spec.top, guest_off(0), 0);
    if (r == -ENOTSUP)
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOSYS,
                    "Node '%s' cannot give back what was committed, as images with a data file of "
                    "their own cannot; without keep-top it leaves the chain",
                    c->spec.top->name);
    else if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s cannot be written: %s",
                    c->spec.top->name, g_strerror(-r));
    return r;
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
    c->live.copy.on_read_error = c->live.copy.on_write_error = spec->on_error;
    c->live.copy.retries_ignored = true;
    c->live.copy.counts_all = !is_active(c);
    int r = spec->keeps_top ? check_gives_back(self, c, error) : 0;
    if (r == 0 && spec->base->size_bytes < spec->top->size_bytes)
        r = node_resize(self, spec->base, spec->top->size_bytes, error);
    if (r < 0) {
        free_commit(self, c);
        return r;
    }
    keep_points_init(&c->points, spec->points, spec->n_points);
    const LiveCopySpec live = {
        .name = c->name,
        .owner = "commit",
        .source = spec->top,
        .target = spec->base,
        .is_live = is_active(c) && !spec->keeps_top,
        .ends_as_it_is = true,
        .completes_itself = spec->completes_itself,
        .mode = spec->copy_mode,
        .pivot = spec->pivot,
    };
    live_copy_init(&c->live, &live);
    *ret_commit = c;
    return 0;
}

// -- copying --------------------------------------------------------------------------------------

static bool hides_end_of_base(const Commit *c)
{
    bool any = is_active(c);
    if (c->spec.keeps_top)
        return false;
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

static int find_in(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Commit *c = arg;
    port_enter(self, &c->live.port, REQUEST_READ);
    int r = find(self, c, off, len, ret_extent);
    port_leave(&c->live.port, REQUEST_READ);
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
    int r = keep_points_save(self, &c->points, chunk);
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
        r = copy_nodes_chunk(self, &c->live.nodes, chunk);
    chunk->kind = kind;
    return r;
}

static const CopyEngineOps commit_ops = {
    .find = commit_find,
    .copy = commit_copy,
    LIVE_COPY_OPS,
};

// As it is: what points need beside it is not counted.
static int check_space(Fiber *self, Commit *c, JobControl *control, CopyEngineConfig config,
                       GError **error)
{
    JobSpace space = {&config, &c->live.port, c->spec.top, c->spec.base};
    config.ops = &(CopyEngineOps){.find = find_in};
    return job_space_check(self, &space, control, c->spec.on_error, error);
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
    int r = check_space(self, c, control, config, error);
    if (r < 0)
        return r;
    live_copy_begin(self, &c->live, control, &config);
    if (c->spec.keeps_top)
        keep_top_begin(&c->keep, c->spec.top, config.granularity_bits);
    return is_active(c) && c->spec.keeps_top ? keep_top_copy(self, &c->keep, &c->live)
                                             : live_copy_run(self, &c->live, error);
}

// -- the switch -----------------------------------------------------------------------------------

// What an image's header names below it.
typedef struct Backing {
    char *name, *format;
} Backing;

// The images that are to lie over the base, whose headers will name it.
static Node *const *images_over(const Commit *c, unsigned *ret_n)
{
    *ret_n = c->spec.keeps_top ? 1 : c->spec.n_overlays;
    return c->spec.keeps_top ? &c->spec.top : c->overlays;
}

static int record_base(Fiber *self, const Commit *c, Node *image, Backing *ret_old, GError **error)
{
    const Qcow2Image *old = qcow2_node_image(image);
    ret_old->name = g_strdup(qcow2_image_backing_name(old));
    ret_old->format = g_strdup(qcow2_image_backing_format(old));
    return qcow2_set_backing_name(self, image, c->backing_name, c->backing_format, error);
}

// One that names the base and still lies over what it did shows the same, but not for ever: the
// next commit may overwrite the base. `error`: why the commit has failed.
static void record_old(Fiber *self, Node *image, const Backing *old, GError **error)
{
    g_autoptr(GError) failed = NULL;
    if (!old->name || MUTANT("commit-names-old-backing"))
        return;
    qcow2_set_backing_name(self, image, old->name, old->format, &failed);
    const char *named = qcow2_image_backing_name(qcow2_node_image(image));
    if (failed && g_strcmp0(named, old->name) != 0)
        g_prefix_error(
            error,
            "%s; it names '%s', over which it shows the same only as long as nothing "
            "else is committed there (change-backing-file records it later). What failed "
            "before: ",
            failed->message, named);
}

static int switch_overlays(Fiber *self, Commit *c, GError **error)
{
    Switch *s = switch_new(REQUESTS_ALL);
    switch_move_users(s, c->spec.top, c->spec.base);
    int r = live_copy_drain(self, &c->live, s, error);
    if (r == 0)
        switch_commit(s);
    switch_end(self, s);
    return r;
}

static int switch_top(Fiber *self, Commit *c, GError **error)
{
    Node *below = chain_below_new(self, c->spec.base, c->spec.memory);
    Switch *s = switch_new(REQUESTS_ALL);
    switch_set_backing(s, c->spec.top, below);
    switch_call(s, keep_top_hold, &c->keep);
    int r = live_copy_drain(self, &c->live, s, error);
    if (r == 0)
        switch_commit(s);
    switch_end(self, s);
    node_unref_close(self, below);
    return r;
}

static int leave_out(Fiber *self, Commit *c, GError **error)
{
    unsigned n;
    int r = 0;
    Node *const *images = images_over(c, &n);
    g_autofree Backing *old = g_new0(Backing, n);
    for (unsigned i = 0; r == 0 && i < n; i++)
        r = record_base(self, c, images[i], &old[i], error);
    if (r == 0)
        r = c->spec.keeps_top ? switch_top(self, c, error) : switch_overlays(self, c, error);
    for (unsigned i = 0; i < n; i++) {
        if (r < 0)
            record_old(self, images[i], &old[i], error);
        g_free(old[i].name);
        g_free(old[i].format);
    }
    return r;
}

// What has been copied by now is all that will be.
static int keep_durable(Fiber *self, Commit *c, GError **error)
{
    return MUTANT("keep-top-base-durable-first") ? 0
                                                 : live_copy_make_durable(self, &c->live, error);
}

int commit_give_back(Fiber *self, Commit *c)
{
    if (!c->keep.holds)
        return 0;
    return keep_top_give_back(self, &c->keep, &c->live.port, c->live.copy.control);
}

// -- the pivot ------------------------------------------------------------------------------------

static void tell_size(void *node)
{
    node_size_changed(node);
}

static void plan_pivot(Switch *s, void *arg)
{
    const Commit *c = arg;
    switch_move_users(s, c->live.filter, c->spec.base);
    switch_set_backing(s, c->live.filter, NULL);
    if (c->spec.base->size_bytes != c->spec.top->size_bytes)
        switch_call(s, tell_size, c->spec.base);
}

static bool is_to_stay(const Commit *c)
{
    return is_active(c) && !live_copy_is_to_complete(&c->live);
}

int commit_come_close(Fiber *self, Commit *c, GError **error)
{
    if (is_to_stay(c))
        return 0;
    if (c->spec.keeps_top)
        return keep_durable(self, c, error);
    return is_active(c) ? live_copy_come_close(self, &c->live, error)
                        : live_copy_make_durable(self, &c->live, error);
}

int commit_switch(Fiber *self, Commit *c, bool *ret_switched, GError **error)
{
    *ret_switched = false;
    if (is_to_stay(c))
        return 0;
    int r = is_active(c) && !c->spec.keeps_top
                ? live_copy_try_leave(self, &c->live, plan_pivot, c, error)
                : leave_out(self, c, error);
    *ret_switched = r == 0;
    return r;
}

void commit_end(Fiber *self, Commit *c)
{
    if (!c)
        return;
    keep_top_done(self, &c->keep);
    live_copy_done(self, &c->live);
    free_commit(self, c);
}
