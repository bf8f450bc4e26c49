// SPDX-License-Identifier: LGPL-2.1-or-later
// A mirror from its begin to its end. What is data, and what reads as zeros, is asked of the
// source's metadata as it is copied, so zeros and holes are never read. In the target they are
// written as zeros, or left out where it shows them already and goes on to. In fibers on the nodes'
// loop.
//
// Write order (docs/ordering.md §19): the target is durable before guests are taken to it.
#include "jobs/mirror.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/mutant.h"
#include "chain-core/qcow2.h"
#include "copy-range.h"
#include "live-copy.h"
#include "mirror-bitmap.h"

struct Mirror {
    LiveCopy live; // first
    MirrorSpec spec;
    char *name;
    MirrorBitmap bitmap;
    CopyRange range;
};

// Nothing lies below the target yet, and what will is not there to complete a cluster.
static uint64_t choose_whole_bytes(const MirrorSpec *spec)
{
    Node *target = copy_range_image_of(spec->target);
    bool gets_backing =
        spec->sync != MIRROR_SYNC_FULL && qcow2_node_image(target) && !chain_backing(target);
    return gets_backing ? target->preferred_bytes : 0;
}

static bool may_skip_zeros(const MirrorSpec *spec)
{
    return spec->sync == MIRROR_SYNC_FULL && !spec->keeps_space &&
           !copy_range_has_hidden_backing(spec->target);
}

Mirror *mirror_begin(const MirrorSpec *spec)
{
    Mirror *m = g_new0(Mirror, 1);
    m->spec = *spec;
    m->name = g_strdup(spec->name);
    node_ref(spec->source);
    node_ref(spec->target);
    node_ref(spec->replaced);
    mirror_bitmap_init(&m->bitmap, spec->bitmap, spec->bitmap_mode);
    m->range = (CopyRange){
        .image = copy_range_image_of(spec->source),
        .is_top = spec->sync == MIRROR_SYNC_TOP,
        .whole_bytes = choose_whole_bytes(spec),
    };
    m->live.copy.on_read_error = spec->on_source_error;
    m->live.copy.on_write_error = spec->on_target_error;
    m->live.copy.retries_ignored = true;
    const LiveCopySpec live = {
        .name = m->name,
        .owner = "mirror",
        .source = spec->source,
        .target = spec->target,
        .is_live = true,
        .mode = spec->copy_mode,
        .whole_bytes = m->range.whole_bytes,
        .pivot = spec->pivot,
        .completes_itself = spec->completes_itself,
    };
    live_copy_init(&m->live, &live);
    m->live.nodes.verifies = spec->verifies;
    m->live.nodes.skips_zeros = may_skip_zeros(spec);
    m->live.nodes.owns_zeros = m->range.whole_bytes;
    m->live.nodes.zero_flags = spec->keeps_space ? NODE_IO_NO_UNMAP : 0;
    return m;
}

static void note_left(void *arg)
{
    Mirror *m = arg;
    mirror_bitmap_set_left(&m->bitmap, m->live.copy.engine, m->live.unflushed.bits);
}

void mirror_end(Fiber *self, Mirror *m)
{
    if (!m)
        return;
    if (m->live.filter)
        live_copy_stop(self, &m->live, note_left, m);
    live_copy_done(self, &m->live);
    mirror_bitmap_done(&m->bitmap);
    node_unref_close(self, m->spec.replaced);
    node_unref_close(self, m->spec.source);
    node_unref_close(self, m->spec.target);
    g_free(m->name);
    g_free(m);
}

// -- copying --------------------------------------------------------------------------------------

static int mirror_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Mirror *m = arg;
    port_enter(self, &m->live.port, REQUEST_READ);
    int r = copy_range_find(self, &m->range, off, len, ret_extent);
    port_leave(&m->live.port, REQUEST_READ);
    return r;
}

static int mirror_look(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    const Mirror *m = arg;
    int r = mirror_find(self, arg, off, len, ret_extent);
    if (r < 0)
        return r;
    if (m->spec.target_is_zero && ret_extent->kind == WORK_METADATA)
        ret_extent->is_work = false;
    if (m->spec.sync == MIRROR_SYNC_BITMAP) {
        bool is_dirty;
        ret_extent->len = mirror_bitmap_look(&m->bitmap, off, ret_extent->len, &is_dirty);
        ret_extent->is_work &= is_dirty;
    }
    return 0;
}

static int mirror_copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    return copy_nodes_chunk(self, &((const Mirror *)arg)->live.nodes, chunk);
}

static const CopyEngineOps mirror_ops = {
    .find = mirror_find,
    .look = mirror_look,
    .copy = mirror_copy,
    LIVE_COPY_OPS,
};

// -- the end --------------------------------------------------------------------------------------

// The users of the source are those of the filter over it.
static void note_copied(void *arg)
{
    mirror_bitmap_set_copied(&((Mirror *)arg)->bitmap);
}

static void plan_let_go(Switch *s, void *arg)
{
    const Mirror *m = arg;
    switch_move_users(s, m->live.filter, m->spec.source);
    switch_set_backing(s, m->live.filter, NULL);
    switch_call(s, note_copied, arg);
}

// What guests wrote since it came close is not durable by itself (docs/ordering.md §19).
static int let_go(Fiber *self, Mirror *m, GError **error)
{
    m->live.spec.pivot.before = NULL; // guests stay where they are
    int r = live_copy_leave(self, &m->live, plan_let_go, m, error);
    return r < 0 || MUTANT("mirror-left-durable") ? r
                                                  : live_copy_make_durable(self, &m->live, error);
}

static void plan_pivot(Switch *s, void *arg)
{
    const Mirror *m = arg;
    plan_let_go(s, arg);
    switch_move_users(s, m->spec.replaced, m->spec.target);
}

static int check_sizes(const Mirror *m, GError **error)
{
    if (m->spec.source->size_bytes == m->spec.target->size_bytes)
        return 0;
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                "Source and target image have different sizes");
    return -EINVAL;
}

int mirror_run(Fiber *self, JobControl *control, void *mirror, GError **error)
{
    Mirror *m = mirror;
    CopyEngineConfig config = {
        .size_bytes = m->spec.source->size_bytes,
        .granularity_bits = m->spec.granularity_bits,
        .window_bytes = m->spec.window_bytes,
        .guests = m->spec.source,
        .ops = &mirror_ops,
        .arg = m,
    };
    int r = check_sizes(m, error);
    if (r == 0)
        r = mirror_bitmap_begin(self, &m->bitmap);
    if (r < 0)
        return r;
    live_copy_begin(self, &m->live, control, &config);
    if (m->spec.sync == MIRROR_SYNC_NONE)
        copy_engine_set_found(m->live.copy.engine, config.size_bytes);
    r = live_copy_run(self, &m->live, error);
    if (r == 0 && job_asked_end(control) == JOB_END_CANCEL)
        r = let_go(self, m, error);
    if (r < 0 && m->bitmap.mode == MIRROR_BITMAP_ALWAYS) // so that less of it is left
        live_copy_make_durable(self, &m->live, NULL);
    return r;
}

int mirror_come_close(Fiber *self, Mirror *m, GError **error)
{
    return m->live.filter ? live_copy_come_close(self, &m->live, error) : 0;
}

int mirror_switch(Fiber *self, Mirror *m, bool *ret_switched, GError **error)
{
    *ret_switched = false;
    if (!m->live.filter) // it was let go
        return 0;
    int r = live_copy_try_leave(self, &m->live, plan_pivot, m, error);
    *ret_switched = r == 0;
    return r;
}
