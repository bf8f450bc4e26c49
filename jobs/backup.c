// SPDX-License-Identifier: LGPL-2.1-or-later
// A backup from its begin to its end. `unsaved` says what is part of it and not in the target yet:
// the filter saves what guests are about to change of it (filter-copy-before.h), the copy engine
// the rest. In fibers on the nodes' loop.
//
// What guests change from the moment of the backup on is noted in a bitmap of its own, beside the
// one that the user has handed to it. So that one needs nothing to be done when the backup fails,
// or the daemon ends before (docs/ordering.md §20); when it went well it gets the bits of the
// other.
#include "jobs/backup.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/mutant.h"
#include "chain-core/switch.h"
#include "copy-range.h"
#include "filter-copy-before.h"
#include "job-copy.h"
#include "moment-view.h"

struct Backup {
    JobCopy copy; // first
    BackupSpec spec;
    char *name;
    Port port; // entered for each look at metadata and each chunk
    CopyNodes nodes;
    RangeLock lock;
    CopyEngineConfig config;
    Bitmap *unsaved;
    CopyRange range;
    Node *filter;       // NULL: not in the graph
    Node *moment;       // what lies below a target that shows the moment, or NULL
    Switch *graph;      // until the run
    DirtyBitmap *since; // what guests have changed since the moment; NULL: nobody wants to know
    int broken;         // guests have gone on without it
};

static int fail(GError **error, int r, const Backup *b, const char *what)
{
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s: %s: %s", g_strerror(-r),
                b->spec.target->name, what);
    return r;
}

static bool shows_moment(const BackupSpec *spec)
{
    return spec->is_over_source && spec->sync == BACKUP_SYNC_NONE;
}

// -- copying --------------------------------------------------------------------------------------

static int find_unsaved(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    const Backup *b = arg;
    bool is_unsaved;
    len = bitmap_run_at(b->unsaved, off, len, &is_unsaved);
    *ret_extent = (CopyExtent){.len = len};
    return is_unsaved ? copy_range_find(self, &b->range, off, len, ret_extent) : 0;
}

static int backup_find(Fiber *self, void *arg, uint64_t off, uint64_t len, CopyExtent *ret_extent)
{
    Backup *b = arg;
    port_enter(self, &b->port, REQUEST_READ);
    int r = find_unsaved(self, arg, off, len, ret_extent);
    port_leave(&b->port, REQUEST_READ);
    return r;
}

static int flush_target(Fiber *self, Backup *b)
{
    port_enter(self, &b->port, REQUEST_FLUSH);
    int r = node_flush(self, b->spec.target);
    port_leave(&b->port, REQUEST_FLUSH);
    return r;
}

// What a disk shows is nowhere else then than in the target, so that has to have it after a power
// cut, too. What a view shows is gone then in any case. Chunks that are copied meanwhile share a
// flush.
static int discard_copied(Fiber *self, Backup *b, CopyChunk *chunk)
{
    int r = b->spec.source->ops->is_view ? 0 : flush_target(self, b);
    return r == 0 ? filter_copy_before_discard_saved(self, b->filter, chunk) : r;
}

static int backup_copy(Fiber *self, void *arg, CopyChunk *chunk)
{
    Backup *b = arg;
    int r = copy_nodes_chunk(self, &b->nodes, chunk);
    if (r == 0 && b->spec.discards_source)
        return discard_copied(self, b, chunk);
    return r == 0 ? filter_copy_before_saved(b->filter, chunk) : r;
}

static CopyErrorAction backup_failed(void *arg, const CopyChunk *chunk, int error)
{
    return ((const Backup *)arg)->broken ? COPY_ERROR_FAIL : job_copy_failed(arg, chunk, error);
}

static bool backup_wants_pause(void *arg)
{
    return ((const Backup *)arg)->broken || job_copy_wants_pause(arg);
}

static int backup_pause_point(Fiber *self, void *arg)
{
    const Backup *b = arg;
    int r = b->broken ? 0 : job_copy_pause_point(self, arg);
    return r == 0 ? b->broken : r;
}

// Of a backup of nothing, what guests have saved is all that it does.
static void backup_progress(void *arg)
{
    if (((const Backup *)arg)->spec.sync != BACKUP_SYNC_NONE)
        job_copy_progress(arg);
}

static const CopyEngineOps engine_ops = {
    .find = backup_find,
    .copy = backup_copy,
    .failed = backup_failed,
    .wants_pause = backup_wants_pause,
    .pause_point = backup_pause_point,
    .progress = backup_progress,
};

// -- guests ---------------------------------------------------------------------------------------

// Before the run there is no engine, and nothing it could have under way.
static void guest_saved(void *arg, uint64_t off, uint64_t len)
{
    Backup *b = arg;
    if (!b->copy.engine)
        return;
    if (b->spec.sync == BACKUP_SYNC_NONE)
        job_count(b->copy.control, JOB_BYTES_COPIED, len);
    copy_engine_guest_wrote(b->copy.engine, off, len);
    copy_engine_remove(b->copy.engine, off, len);
    copy_engine_wake(b->copy.engine);
}

static void guest_broke(void *arg, int error)
{
    Backup *b = arg;
    b->broken = error;
    if (b->copy.engine)
        copy_engine_wake(b->copy.engine);
}

static const CopyBeforeOps filter_ops = {
    .find = find_unsaved, .saved = guest_saved, .broken = guest_broke};

// -- the begin ------------------------------------------------------------------------------------

uint64_t backup_granule_bytes(const Node *source, Node *target, uint32_t granularity_bits)
{
    CopyEngineConfig config = {
        .size_bytes = source->size_bytes,
        .granularity_bits = granularity_bits,
    };
    job_copy_choose_sizes(&config, target);
    return UINT64_C(1) << config.granularity_bits;
}

static void choose_sizes(Backup *b)
{
    const BackupSpec *spec = &b->spec;
    b->config = (CopyEngineConfig){
        .size_bytes = spec->source->size_bytes,
        .granularity_bits = spec->granularity_bits,
        .guests = spec->source,
        .ops = &engine_ops,
        .arg = b,
    };
    job_copy_choose_sizes(&b->config, spec->target);
    uint32_t granule = UINT32_C(1) << b->config.granularity_bits;
    if (spec->max_chunk_bytes) {
        uint64_t most = MAX(spec->max_chunk_bytes / granule * granule, granule);
        b->config.chunk_bytes = (uint32_t)MIN(b->config.chunk_bytes, most);
    }
    if (spec->max_chunks && spec->max_chunks < b->config.window_bytes / b->config.chunk_bytes)
        b->config.window_bytes = spec->max_chunks * b->config.chunk_bytes;
}

// What the target has got already would be shown instead of what the source has.
static int check_shows_source(Fiber *self, const BackupSpec *spec, GError **error)
{
    Node *overlay = copy_range_image_of(spec->target);
    NodeExtentKind kind = NODE_EXTENT_BELOW;
    uint64_t len;
    int r = 0;
    for (uint64_t off = 0; off < overlay->size_bytes && kind == NODE_EXTENT_BELOW; off += len) {
        r = node_find_kind(self, overlay, guest_off(off), overlay->size_bytes - off, &kind, &len);
        if (r < 0)
            break;
    }
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r), "%s: %s", overlay->name,
                    g_strerror(-r));
    else if (kind != NODE_EXTENT_BELOW)
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "%s has data of its own already, which would be read in place of that of %s: "
                    "use a new overlay",
                    overlay->name, spec->source->name);
    return r < 0 ? r : kind == NODE_EXTENT_BELOW ? 0 : -EEXIST;
}

static int check_overlay(Fiber *self, const BackupSpec *spec, GError **error)
{
    if (!spec->is_over_source)
        return 0;
    if (shows_moment(spec))
        return check_shows_source(self, spec, error);
    if (chain_backing(copy_range_image_of(spec->target)) == spec->source)
        return 0;
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                "%s lies over another backup of %s: add it again while that is under way",
                spec->target->name, spec->source->name);
    return -EBUSY;
}

static void make_filter(Backup *b)
{
    CopyBeforeConfig config = {
        .name = b->name,
        .nodes = &b->nodes,
        .unsaved = b->unsaved,
        .max_save_bytes = b->config.chunk_bytes,
        .timeout_ns = b->spec.cbw_timeout_ns,
        .breaks_guests = b->spec.breaks_guests,
        .ops = &filter_ops,
        .arg = b,
    };
    b->filter = filter_copy_before_new(&config);
    b->graph = switch_new(REQUESTS_ALL);
    if (shows_moment(&b->spec)) {
        // First: the filter goes over all that uses the source, but for what lies below the target.
        b->moment = moment_view_new(b->spec.source, b->filter);
        switch_set_backing(b->graph, copy_range_image_of(b->spec.target), b->moment);
    }
    switch_insert_filter(b->graph, b->spec.source, b->filter);
}

static int begin_bitmaps(Fiber *self, Backup *b, GError **error)
{
    DirtyBitmapInfo info;
    if (!b->spec.bitmap)
        return 0;
    dirty_bitmap_info(b->spec.bitmap, &info);
    DirtyBitmapSpec since = {
        .node_name = b->spec.source->name,
        .granularity_bits = dirty_bitmap_granularity_bits(b->spec.bitmap),
        .is_disabled = !info.is_enabled,
    };
    return dirty_bitmap_add(b->spec.source, &since, &b->since, error);
}

// What guests change from here on until the moment is looked at once more then.
static void begin_unsaved(Backup *b)
{
    b->unsaved = bitmap_new(b->config.size_bytes, b->config.granularity_bits);
    if (b->spec.sync != BACKUP_SYNC_BITMAP)
        bitmap_set(b->unsaved, 0, b->config.size_bytes);
    else
        bitmap_merge(b->unsaved, dirty_bitmap_bits(b->spec.bitmap));
}

Backup *backup_begin(Fiber *self, const BackupSpec *spec, GError **error)
{
    Backup *b = g_new0(Backup, 1);
    b->spec = *spec;
    b->name = g_strdup(spec->name);
    node_ref(spec->source);
    node_ref(spec->target);
    port_init(&b->port, spec->source, "backup");
    b->port.is_background = true;
    if (spec->bitmap) {
        dirty_bitmap_ref(spec->bitmap);
        dirty_bitmap_set_busy(spec->bitmap, true);
    }
    choose_sizes(b);
    b->copy = (JobCopy){
        .on_read_error = spec->on_source_error,
        .on_write_error = spec->on_target_error,
        .retries_ignored = true,
        .counts_all = spec->sync == BACKUP_SYNC_FULL,
        .source = spec->source,
        .target = spec->target,
    };
    b->nodes = (CopyNodes){
        .source = spec->source,
        .target = spec->target,
        .port = &b->port,
        .lock = &b->lock,
        // Where the host moves bytes, what they were when guests went on without the backup is not
        // known; the target would be read as if it were right.
        .uses_buffers = spec->uses_buffers || shows_moment(spec),
        .compresses = spec->compresses,
        .verifies = spec->verifies,
        .skips_zeros = spec->sync == BACKUP_SYNC_FULL && !spec->is_over_source &&
                       !copy_range_has_hidden_backing(spec->target),
    };
    b->range = (CopyRange){
        .image = copy_range_image_of(spec->source),
        .is_top = spec->sync == BACKUP_SYNC_TOP,
        // A part of a cluster that shows zeros is not written where those of the source show; of
        // what is discarded nothing is saved again.
        .whole_bytes =
            spec->sync == BACKUP_SYNC_TOP || spec->is_over_source || spec->discards_source
                ? UINT64_C(1) << b->config.granularity_bits
                : 0,
    };
    if (check_overlay(self, spec, error) < 0 || begin_bitmaps(self, b, error) < 0) {
        backup_end(self, b);
        return NULL;
    }
    begin_unsaved(b);
    make_filter(b);
    return b;
}

int backup_drain(Fiber *self, Backup *b, GError **error)
{
    int r =
        switch_drain_in_tries(self, b->graph, loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "%s: the backup was not begun, as requests under way do not end: %s",
                    b->spec.source->name, g_strerror(-r));
    return r;
}

// Since that is what guests have changed until now.
static void note_moment(const Backup *b)
{
    const Bitmap *until = dirty_bitmap_bits(b->since);
    if (b->spec.sync == BACKUP_SYNC_BITMAP)
        bitmap_merge(b->unsaved, until);
    Bitmap *none = bitmap_new(bitmap_size_bytes(until), bitmap_granularity_bits(until));
    bitmap_free(dirty_bitmap_swap_bits(b->since, none));
}

void backup_commit(Backup *b)
{
    if (b->since)
        note_moment(b);
    switch_commit(b->graph);
}

void backup_resume(Backup *b)
{
    switch_resume(b->graph);
}

// -- the run --------------------------------------------------------------------------------------

static int run_until_cancelled(Fiber *self, Backup *b)
{
    job_set_endless(b->copy.control);
    job_set_total(b->copy.control, b->config.size_bytes);
    copy_engine_set_found(b->copy.engine, b->config.size_bytes);
    int r = job_copy_run(self, &b->copy);
    while (r == 0) {
        copy_engine_wait(self, b->copy.engine);
        r = job_copy_run(self, &b->copy);
    }
    return r;
}

// docs/ordering.md §20: before anybody takes it for a backup.
static int make_durable(Fiber *self, Backup *b, GError **error)
{
    int r = MUTANT("backup-durable") ? 0 : flush_target(self, b);
    return r < 0 ? fail(error, r, b, "what was copied to it does not become durable") : 0;
}

static void explain(const Backup *b, int result, GError **error)
{
    if (b->broken && result == b->broken)
        fail(error, result, b,
             result == -ETIMEDOUT ? "what clients were about to change was not saved there within "
                                    "cbw-timeout, and they went on without the backup"
                                  : "what clients were about to change could not be saved there, "
                                    "and they went on without the backup");
    else
        job_copy_explain(&b->copy, result, error);
}

static void remove_filter(Fiber *self, Backup *b)
{
    if (!b->filter)
        return;
    filter_copy_before_stop(self, b->filter);
    if (b->moment)
        moment_view_end(b->moment);
    node_unref_close(self, g_steal_pointer(&b->moment));
    if (b->filter->backing)
        node_remove_filter(self, b->filter);
    node_unref_close(self, g_steal_pointer(&b->filter));
}

int backup_run(Fiber *self, JobControl *control, void *backup, GError **error)
{
    Backup *b = backup;
    switch_end(self, g_steal_pointer(&b->graph));
    b->copy.control = control;
    job_copy_begin(&b->copy, fiber_loop(self), &b->config);
    int r = b->spec.sync == BACKUP_SYNC_NONE ? run_until_cancelled(self, b)
                                             : job_copy_run(self, &b->copy);
    if (r == 0 && b->broken)
        r = b->broken;
    if (r == 0)
        r = make_durable(self, b, error);
    else
        explain(b, r, error);
    remove_filter(self, b);
    job_copy_end(&b->copy);
    return r;
}

// -- the end --------------------------------------------------------------------------------------

// What was copied is not dirty any more, so it has to be there.
static int prepare_settling(Fiber *self, Backup *b, bool is_good, GError **error)
{
    int r = is_good ? 0 : make_durable(self, b, error);
    if (r < 0)
        return r;
    r = dirty_bitmap_before_change(self, b->spec.bitmap);
    return r < 0 ? fail(error, r, b, "the bitmap cannot be changed in its image") : 0;
}

int backup_settle(Fiber *self, Backup *b, bool is_good, GError **error)
{
    is_good |= MUTANT("backup-union");
    bool leaves = b->spec.bitmap_mode == BACKUP_BITMAP_NEVER ||
                  (!is_good && b->spec.bitmap_mode == BACKUP_BITMAP_ON_SUCCESS);
    if (!b->since || leaves)
        return 0;
    int r = prepare_settling(self, b, is_good, error);
    if (r < 0)
        return r;
    Bitmap *bits = bitmap_clone(dirty_bitmap_bits(b->since));
    if (!is_good)
        bitmap_merge(bits, b->unsaved);
    bitmap_free(dirty_bitmap_swap_bits(b->spec.bitmap, bits));
    return 0;
}

void backup_end(Fiber *self, Backup *b)
{
    if (!b)
        return;
    switch_end(self, g_steal_pointer(&b->graph));
    remove_filter(self, b);
    if (b->since)
        dirty_bitmap_drop(b->since);
    if (b->spec.bitmap) {
        dirty_bitmap_set_busy(b->spec.bitmap, false);
        dirty_bitmap_unref(b->spec.bitmap);
    }
    port_done(self, &b->port);
    job_copy_end(&b->copy);
    bitmap_free(b->unsaved);
    node_unref_close(self, b->spec.source);
    node_unref_close(self, b->spec.target);
    g_free(b->name);
    g_free(b);
}
