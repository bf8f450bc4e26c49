// SPDX-License-Identifier: LGPL-2.1-or-later
// Operations, each with its part of the shadow model. Requests enter through the chain's port; what
// changes the graph, the size or the bitmaps takes turns, as the daemon's commands do. In fibers of
// the simulation.
#include "operations.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../crash/crash-workload.h"
#include "chain-core/external-snapshot.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"

#define BORDER(at) (at) - CLUSTER, 2 * CLUSTER, (at)-CELL, 2 * CELL
const Place places[] = {
    {"a shared cluster", 2, 4 * CLUSTER, CLUSTER, 4 * CLUSTER + CELL, CELL},
    {"a cluster that is not there", 2, 9 * CLUSTER, CLUSTER, 9 * CLUSTER + CELL, CELL},
    {"a border of clusters", 2, BORDER(5 * CLUSTER)},
    {"a border of tables", 2, BORDER(TABLE_BYTES)},
    {"a cluster of its own", 3, 4 * CLUSTER, CLUSTER, 4 * CLUSTER + CELL, CELL},
    {"the end of the disk", 3, TABLE_BYTES - 2 * CLUSTER, 2 * CLUSTER - CELL, TABLE_BYTES - CLUSTER,
     CELL},
    // What the head has is a commit's work, what only the layer below has a stream's.
    {"a cluster that is committed", 3, 4 * CLUSTER, CLUSTER, 4 * CLUSTER + CELL, CELL,
     JOB_TYPE_COMMIT},
    {"a border that is committed", 3, BORDER(5 * CLUSTER), JOB_TYPE_COMMIT},
    {"a cluster that is streamed", 3, 5 * CLUSTER, CLUSTER, 5 * CLUSTER + CELL, CELL,
     JOB_TYPE_STREAM},
    {"a border that is streamed", 3, BORDER(5 * CLUSTER), JOB_TYPE_STREAM},
    {"a cluster that is mirrored", 3, 4 * CLUSTER, CLUSTER, 4 * CLUSTER + CELL, CELL,
     JOB_TYPE_MIRROR},
    {"a border that is mirrored", 3, BORDER(5 * CLUSTER), JOB_TYPE_MIRROR},
    {"a cluster that is backed up", 3, 4 * CLUSTER, CLUSTER, 4 * CLUSTER + CELL, CELL,
     JOB_TYPE_BACKUP},
    {"a border that is backed up", 3, BORDER(5 * CLUSTER), JOB_TYPE_BACKUP},
    {"a bitmap that is backed up", 2, 4 * CLUSTER, CLUSTER, 4 * CLUSTER + CELL, CELL,
     JOB_TYPE_BACKUP},
};
const unsigned n_places = G_N_ELEMENTS(places);

void work_fail(Work *work, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!work->problem[0])
        g_vsnprintf(work->problem, sizeof(work->problem), format, args);
    va_end(args);
}

bool is_on_first_head(const Work *work)
{
    return work->chain.top == work->world->n_layers - 1;
}

// --- requests ------------------------------------------------------------------------------------

// Where a request goes, and its node while it is inside the port.
typedef struct Request {
    const Operation *operation;
    Node *node;
    uint64_t off, len;
} Request;

// False, and not inside: the disk has become too small for it.
static bool enter(Fiber *self, Work *work, const Operation *operation, Request *ret_request)
{
    const Place *p = work->place;
    Request request = {.operation = operation,
                       .off = operation->is_part ? p->part_off : p->off,
                       .len = operation->is_part ? p->part_len : p->len};
    request.node = port_enter(self, &work->chain.port, operation->kind);
    if (request.off + request.len > request.node->size_bytes) {
        port_leave(&work->chain.port, operation->kind);
        return false;
    }
    *ret_request = request;
    return true;
}

static void leave(Work *work, const Request *request)
{
    port_leave(&work->chain.port, request->operation->kind);
}

static Change *begin_change(Work *work, const Request *request, uint32_t version)
{
    if (!is_on_first_head(work))
        return NULL;
    g_assert(work->n_changes < MAX_CHANGES);
    Change *change = &work->changes[work->n_changes++];
    *change = (Change){version, request->off, request->len, 0};
    return change;
}

static void end_change(Work *work, Change *change)
{
    if (change)
        change->ended = shadow_model_now(work->model);
}

static void run_write(Fiber *self, Work *work, const Operation *operation)
{
    Request q;
    uint8_t data[2 * CLUSTER];
    if (!enter(self, work, operation, &q))
        return;
    uint32_t version = shadow_model_begin(work->model, SHADOW_DATA, q.off, q.len);
    Change *change = begin_change(work, &q, version);
    shadow_model_fill(work->model, version, q.off, data, q.len);
    int r = node_write(self, q.node, guest_off(q.off), data, q.len, operation->flags);
    shadow_model_end(work->model, version, r, operation->flags & NODE_IO_FUA);
    end_change(work, change);
    leave(work, &q);
    if (r < 0 && !work->may_fail)
        work_fail(work, "%s: %s", operation->name, g_strerror(-r));
}

static void run_zero(Fiber *self, Work *work, const Operation *operation)
{
    Request q;
    if (!enter(self, work, operation, &q))
        return;
    uint32_t version = shadow_model_begin(work->model, SHADOW_ZEROS, q.off, q.len);
    Change *change = begin_change(work, &q, version);
    int r = node_zero(self, q.node, guest_off(q.off), q.len, operation->flags);
    shadow_model_end(work->model, version, r, operation->flags & NODE_IO_FUA);
    end_change(work, change);
    leave(work, &q);
    if (r < 0 && !work->may_fail)
        work_fail(work, "%s: %s", operation->name, g_strerror(-r));
}

// What guests discard may be left undone while it ends.
static bool is_beside_live_copy(const Work *work)
{
    return work->job &&
           (work->place->job == JOB_TYPE_COMMIT || work->place->job == JOB_TYPE_MIRROR);
}

// A cluster that the request does not fill need not become zeros; the disk's end counts as a
// border.
static void run_discard(Fiber *self, Work *work, const Operation *operation)
{
    Request q;
    if (!enter(self, work, operation, &q))
        return;
    uint64_t end = q.off + q.len;
    uint64_t whole = end == q.node->size_bytes ? end : end - end % CLUSTER;
    bool may_do_nothing = is_beside_live_copy(work);
    uint32_t zeros = shadow_model_begin(work->model, may_do_nothing ? SHADOW_HINT : SHADOW_ZEROS,
                                        q.off, whole - q.off);
    uint32_t hint = shadow_model_begin(work->model, SHADOW_HINT, whole, end - whole);
    Change *change = may_do_nothing ? NULL : begin_change(work, &q, zeros);
    int r = node_discard(self, q.node, guest_off(q.off), q.len, 0);
    shadow_model_end(work->model, zeros, r, false);
    shadow_model_end(work->model, hint, r, false);
    end_change(work, change);
    leave(work, &q);
    if (r < 0 && !work->may_fail)
        work_fail(work, "%s: %s", operation->name, g_strerror(-r));
}

static void run_flush(Fiber *self, Work *work, const Operation *operation)
{
    Node *node = port_enter(self, &work->chain.port, operation->kind);
    uint64_t begun = shadow_model_flush_begin(work->model);
    int r = node_flush(self, node);
    shadow_model_flush_end(work->model, begun, r);
    port_leave(&work->chain.port, operation->kind);
    if (r < 0 && !work->may_fail)
        work_fail(work, "%s: %s", operation->name, g_strerror(-r));
}

static void run_read(Fiber *self, Work *work, const Operation *operation)
{
    Request q;
    uint8_t data[2 * CLUSTER];
    char problem[256];
    if (!enter(self, work, operation, &q))
        return;
    uint64_t begun = shadow_model_read_begin(work->model);
    int r = node_read(self, q.node, guest_off(q.off), data, q.len);
    if (r == 0 && !shadow_model_check(work->model, q.off, data, q.len, begun, NULL, problem))
        work_fail(work, "read: %s", problem);
    shadow_model_read_end(work->model);
    leave(work, &q);
    if (r < 0 && !work->may_fail)
        work_fail(work, "%s: %s", operation->name, g_strerror(-r));
}

// --- snapshots -----------------------------------------------------------------------------------

// What a layer shows now: nothing that writes is in flight. One that is no head stays as it was.
static const ShadowModel *keep(Work *work, unsigned layer)
{
    return work->layers[layer] ? work->layers[layer] : shadow_model_keep(work->model);
}

static void make_snapshot(Fiber *self, Work *work, Node *head, Kept *kept)
{
    g_autoptr(GError) error = NULL;
    Qcow2NewSnapshot *new;
    int r = qcow2_snapshot_prepare(self, head, kept->name, &new, &error);
    if (r == 0) {
        node_drain_begin(self, head, REQUESTS_THAT_WRITE);
        qcow2_snapshot_take(new);
        kept->model = keep(work, kept->layer);
        node_drain_end(head, REQUESTS_THAT_WRITE);
        r = qcow2_snapshot_finish(self, new, NULL, &error);
    } else if (r == -EBUSY) { // this one waits for its turn
        r = qcow2_snapshot_create(self, head, kept->name, NULL, NULL);
    }
    kept->state = r == 0 ? KEPT_MADE : KEPT_LEAVING;
    // Made read-only, or resized, meanwhile.
    if (r < 0 && r != -EROFS && r != -EAGAIN && !work->may_fail)
        work_fail(work, "snapshot: %s", error ? error->message : g_strerror(-r));
}

static void run_snapshot(Fiber *self, Work *work, const Operation *operation)
{
    g_assert(work->n_snapshots < MAX_SNAPSHOTS);
    Kept *kept = &work->snapshots[work->n_snapshots++];
    kept->layer = work->chain.top;
    kept->state = KEPT_BEGUN;
    g_snprintf(kept->name, sizeof(kept->name), "new-%u", work->n_snapshots);
    Node *head = node_ref(work->chain.head);
    make_snapshot(self, work, head, kept);
    node_unref_close(self, head);
}

static void run_delete(Fiber *self, Work *work, const Operation *operation)
{
    if (!is_on_first_head(work) || work->old.state != KEPT_MADE)
        return;
    Node *head = node_ref(work->chain.head);
    work->old.state = KEPT_LEAVING;
    int r = qcow2_snapshot_delete(self, head, NULL, "old", NULL, NULL);
    if (r == 0)
        work->old.state = KEPT_GONE;
    else if (r != -EROFS && !work->may_fail)
        work_fail(work, "delete: %s", g_strerror(-r));
    node_unref_close(self, head);
}

// The overlay was made for the disk's size at the beginning, and has no backing file yet.
static int fit_overlay(Fiber *self, Node *overlay, const Node *head, GError **error)
{
    if (overlay->size_bytes == head->size_bytes)
        return 0;
    return node_resize(self, overlay, head->size_bytes, error);
}

static int switch_to(Fiber *self, Work *work, Node *overlay, GError **error)
{
    Chain *chain = &work->chain;
    unsigned layer = chain->top;
    Switch *s;
    int r = fit_overlay(self, overlay, chain->head, error);
    if (r == 0)
        r = external_snapshot_prepare(self, chain->head, overlay, chain->memory, &s, error);
    if (r < 0)
        return r;
    r = switch_drain(self, s, UINT64_MAX);
    if (r == 0) {
        work->layers[layer] = shadow_model_keep(work->model);
        switch_commit(s);
        chain->head = overlay;
        chain->overlays[chain->n_taken++] = NULL;
        chain->top++;
        switch_resume(s);
    }
    switch_end(self, s);
    return r;
}

// The overlays lie over what was the head before a commit; a job holds its nodes.
static bool has_next_head(const Work *work)
{
    return !work->job && work->chain.top == work->world->n_layers - 1 + work->chain.n_taken;
}

// One that ends in the middle of a cluster does not grow before it lies over something.
static bool may_fit(const Work *work)
{
    uint64_t size = work->world->size_bytes;
    return work->chain.head->size_bytes <= size || size % CLUSTER == 0;
}

static void run_external(Fiber *self, Work *work, const Operation *operation)
{
    g_autoptr(GError) error = NULL;
    fiber_mutex_lock(self, &work->graph);
    if (!has_next_head(work) || !may_fit(work)) {
        fiber_mutex_unlock(self, &work->graph);
        return;
    }
    Node *old = work->chain.head, *overlay = work->chain.overlays[work->chain.n_taken];
    int r = switch_to(self, work, overlay, &error);
    if (r == 0) {
        r = external_snapshot_finish(self, old, &error);
        node_unref_close(self, old);
    }
    fiber_mutex_unlock(self, &work->graph);
    if (r < 0 && !work->may_fail)
        work_fail(work, "external snapshot: %s", error ? error->message : g_strerror(-r));
}

// --- sizes ---------------------------------------------------------------------------------------

// An image with internal snapshots does not shrink.
static bool may_be_refused(const Work *work)
{
    bool has_snapshot = is_on_first_head(work) && work->old.state != KEPT_GONE;
    for (unsigned i = 0; i < work->n_snapshots; i++)
        has_snapshot |= work->snapshots[i].state != KEPT_GONE;
    return has_snapshot;
}

static void resize(Fiber *self, Work *work, uint64_t size_bytes)
{
    bool is_smaller = size_bytes < shadow_model_size(work->model);
    g_autoptr(GError) error = NULL;
    shadow_model_resize_begin(work->model, size_bytes);
    int r = node_resize(self, work->chain.head, size_bytes, &error);
    shadow_model_resize_end(work->model, r);
    for (unsigned i = 0; r == 0 && i < work->n_changes; i++)
        work->changes[i].is_cut_off |= work->changes[i].off >= size_bytes;
    if (r < 0 && !work->may_fail && !(is_smaller && may_be_refused(work)))
        work_fail(work, "resize: %s", error->message);
}

static void run_grow(Fiber *self, Work *work, const Operation *operation)
{
    fiber_mutex_lock(self, &work->graph);
    uint64_t size_bytes = shadow_model_size(work->model) + CLUSTER + CELL;
    if (size_bytes <= MAX_DISK_BYTES)
        resize(self, work, size_bytes);
    fiber_mutex_unlock(self, &work->graph);
}

static void run_shrink(Fiber *self, Work *work, const Operation *operation)
{
    fiber_mutex_lock(self, &work->graph);
    resize(self, work, shadow_model_size(work->model) - CLUSTER);
    fiber_mutex_unlock(self, &work->graph);
}

// --- bitmaps -------------------------------------------------------------------------------------

static void clear(DirtyBitmap *bitmap)
{
    const Bitmap *bits = dirty_bitmap_bits(bitmap);
    Bitmap *clean = bitmap_new(bitmap_size_bytes(bits), bitmap_granularity_bits(bits));
    bitmap_free(dirty_bitmap_swap_bits(bitmap, clean));
}

static void run_clear(Fiber *self, Work *work, const Operation *operation)
{
    fiber_mutex_lock(self, &work->graph);
    clear(work->transient);
    work->transient_cleared = shadow_model_now(work->model);
    if (work->stored && dirty_bitmap_check(work->stored, DIRTY_BITMAP_USE_CHANGE, NULL) == 0 &&
        dirty_bitmap_before_change(self, work->stored) == 0) {
        clear(work->stored);
        work->stored_cleared = shadow_model_now(work->model);
    }
    fiber_mutex_unlock(self, &work->graph);
}

static void run_remove(Fiber *self, Work *work, const Operation *operation)
{
    g_autoptr(GError) error = NULL;
    fiber_mutex_lock(self, &work->graph);
    if (work->stored && dirty_bitmap_check(work->stored, DIRTY_BITMAP_USE_REMOVE, NULL) == 0) {
        work->is_stored_leaving = true;
        if (dirty_bitmap_remove(self, work->stored, &error) == 0)
            work->stored = NULL;
        else if (!work->may_fail)
            work_fail(work, "bitmap: %s", error->message);
    }
    fiber_mutex_unlock(self, &work->graph);
}

const Operation operations[] = {
    {.name = "write",
     .run = run_write,
     .kind = REQUEST_WRITE,
     .is_part = true,
     .is_beside_job = true},
    {.name = "write-fua",
     .run = run_write,
     .kind = REQUEST_WRITE,
     .flags = NODE_IO_FUA,
     .is_beside_job = true},
    {.name = "zero", .run = run_zero, .kind = REQUEST_ZERO},
    {.name = "zero-part",
     .run = run_zero,
     .kind = REQUEST_ZERO,
     .is_part = true,
     .is_beside_job = true},
    {.name = "discard", .run = run_discard, .kind = REQUEST_DISCARD, .is_beside_job = true},
    {.name = "flush", .run = run_flush, .kind = REQUEST_FLUSH, .is_beside_job = true},
    {.name = "read", .run = run_read, .kind = REQUEST_READ, .is_beside_job = true},
    {.name = "snapshot", .run = run_snapshot},
    {.name = "delete", .run = run_delete},
    {.name = "external", .run = run_external, .is_beside_job = true},
    {.name = "grow", .run = run_grow},
    {.name = "shrink", .run = run_shrink},
    {.name = "clear-bitmap", .run = run_clear},
    {.name = "remove-bitmap", .run = run_remove},
    {.name = "cancel", .run = run_cancel, .is_beside_job = true},
    {.name = "commit",
     .run = run_commit,
     .job = JOB_TYPE_COMMIT,
     .copy_mode = COPY_MODE_BACKGROUND},
    {.name = "commit-blocking",
     .run = run_commit,
     .job = JOB_TYPE_COMMIT,
     .copy_mode = COPY_MODE_WRITE_BLOCKING},
    {.name = "commit-ready",
     .run = run_commit,
     .job = JOB_TYPE_COMMIT,
     .copy_mode = COPY_MODE_BACKGROUND,
     .end = JOB_END_COMPLETE},
    {.name = "commit-switched",
     .run = run_commit,
     .job = JOB_TYPE_COMMIT,
     .copy_mode = COPY_MODE_BACKGROUND,
     .end = JOB_END_COMPLETE,
     .switches_mode = true},
    {.name = "commit-middle", .run = run_commit_of_middle, .job = JOB_TYPE_COMMIT},
    {.name = "keep-top", .run = run_commit, .job = JOB_TYPE_COMMIT, .keeps_top = true},
    {.name = "stream", .run = run_stream, .job = JOB_TYPE_STREAM},
    {.name = "mirror",
     .run = run_mirror,
     .job = JOB_TYPE_MIRROR,
     .copy_mode = COPY_MODE_BACKGROUND,
     .end = JOB_END_COMPLETE},
    {.name = "mirror-blocking",
     .run = run_mirror,
     .job = JOB_TYPE_MIRROR,
     .copy_mode = COPY_MODE_WRITE_BLOCKING,
     .end = JOB_END_COMPLETE},
    {.name = "mirror-left",
     .run = run_mirror,
     .job = JOB_TYPE_MIRROR,
     .copy_mode = COPY_MODE_BACKGROUND,
     .end = JOB_END_CANCEL},
    {.name = "backup", .run = run_backup, .job = JOB_TYPE_BACKUP},
    {.name = "backup-bitmap", .run = run_backup, .job = JOB_TYPE_BACKUP, .hands_over_bitmap = true},
};
const unsigned n_operations = G_N_ELEMENTS(operations);

static bool is_ordinary(const Operation *operation)
{
    return !operation->job && operation->run != run_cancel;
}

bool operations_meet(const Place *place, const Operation *a, const Operation *b, const Operation *c)
{
    if (a > b || b > c)
        return false;
    if (!place->job)
        return is_ordinary(a) && is_ordinary(b) && is_ordinary(c);
    return a->is_beside_job && b->is_beside_job && c->job == place->job;
}

const Operation *operation_find(const char *name)
{
    for (unsigned i = 0; i < n_operations; i++)
        if (g_str_equal(operations[i].name, name))
            return &operations[i];
    return NULL;
}

// --- a run ---------------------------------------------------------------------------------------

void work_init(Work *work, const World *world, const Place *place)
{
    *work = (Work){.world = world,
                   .place = place,
                   .model = shadow_model_copy(world->model),
                   .old = {.model = world->model,
                           .name = "old",
                           .layer = world->n_layers - 1,
                           .state = world->n_layers == 2 ? KEPT_MADE : KEPT_GONE}};
    shadow_model_read_begin(work->model); // what points in time show stays in it
}

void work_done(Work *work)
{
    shadow_model_free(work->model);
    shadow_model_free(work->found);
}

int work_begin(Fiber *self, Work *work, GError **error)
{
    int r = chain_begin(self, work->world, work->world->n_layers - 1, true, &work->chain, error);
    if (r < 0)
        return r;
    DirtyBitmapSpec spec = {.name = "t", .node_name = "head", .granularity_bits = 9};
    g_assert(dirty_bitmap_add(work->chain.head, &spec, &work->transient, NULL) == 0);
    work->stored = dirty_bitmap_find(work->chain.head, "p");
    return 0;
}

static void expect_dirty(Work *work)
{
    for (unsigned i = 0; work->transient && i < work->n_changes; i++) {
        const Change *c = &work->changes[i];
        const Bitmap *bits = dirty_bitmap_bits(work->transient);
        if (c->ended > work->transient_cleared && !c->is_cut_off &&
            c->off < bitmap_size_bytes(bits) && !bitmap_is_dirty(bits, c->off))
            work_fail(work, "the bitmap calls what was changed at %" PRIu64 " clean", c->off);
    }
}

void work_expect(Fiber *self, Work *work)
{
    expect_dirty(work);
    run_read(self, work, operation_find("read"));
    run_write(self, work, operation_find("write")); // dirty whatever came before
    expect_dirty(work);
    run_flush(self, work, operation_find("flush"));
}

void work_end(Fiber *self, Work *work)
{
    chain_end(self, &work->chain);
}

unsigned work_top(const Work *work)
{
    bool is_switched = work->next_head && work->chain.port.node == work->next_head;
    return is_switched ? work->next_top : work->chain.top;
}

uint64_t work_hash(const Work *work)
{
    bool keeps_layer = work->layers[work->chain.top - 1] != NULL;
    uint64_t hash = work->chain.n_taken | work_top(work) << 24 | keeps_layer << 28 |
                    work->is_stored_leaving << 4 | (work->copy != NULL) << 5 |
                    (uint64_t)work->old.state << 8 | (uint64_t)work->n_snapshots << 16;
    for (unsigned i = 0; i < work->n_snapshots; i++)
        hash = hash * 64 + work->snapshots[i].state * 16 + work->snapshots[i].layer * 2 +
               (work->snapshots[i].model != NULL);
    for (unsigned i = 0; i < work->n_changes; i++)
        hash = hash * 2 + (work->changes[i].ended > work->stored_cleared);
    return hash;
}
