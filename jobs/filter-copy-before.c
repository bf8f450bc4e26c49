// SPDX-License-Identifier: LGPL-2.1-or-later
// Each save is a fiber of its own, for a guest that has waited long enough goes on while it is in
// flight: its buffers and its range are its own until it ends. It counts as a request at the
// owner's port, which it enters as a part of the guest's that is inside already, drained or not.
// Guests that come to the same granules wait for the same save. On the node's loop.
//
// Write order (docs/ordering.md §20): old data is in the target before the source is changed.
#include "filter-copy-before.h"

#include <errno.h>

#include "chain-core/component.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/mutant.h"

typedef struct Save Save;
typedef struct Discard Discard;

typedef struct CopyBefore {
    Node node;
    CopyBeforeConfig config;
    CopyNodes nodes;   // with the range held already; the source is what lies below now
    Save *saves;       // under way
    Discard *discards; // of the source, under way
    FiberQueue changed;
    int error; // the backup is broken
} CopyBefore;

struct Save {
    CopyBefore *owner;
    uint64_t off, len; // whole granules
    int *result;       // of the request that began it; NULL: it waits no longer
    Save *previous, *next;
};

// On its fiber's stack.
struct Discard {
    uint64_t off, len;
    Discard *next;
};

static CopyBefore *copy_before_of(Node *node)
{
    return (CopyBefore *)node;
}

static void break_backup(CopyBefore *f, int error)
{
    if (f->error)
        return;
    f->error = error;
    fiber_queue_wake_all(&f->changed);
    f->config.ops->broken(f->config.arg, error);
}

// -- one save -------------------------------------------------------------------------------------

static int save_piece(Fiber *self, const CopyBefore *f, uint64_t off, uint64_t len,
                      uint64_t *ret_len)
{
    CopyExtent extent;
    int r = f->config.ops->find(self, f->config.arg, off, len, &extent);
    if (r < 0)
        return r;
    CopyChunk chunk = {.off = off, .len = extent.len, .kind = extent.kind};
    CopyNodes nodes = f->nodes;
    nodes.source = f->node.backing;
    *ret_len = extent.len;
    r = extent.is_work ? copy_nodes_move(self, &nodes, &chunk) : 0;
    return r == COPY_AGAIN ? f->error : r;
}

// With the range held. Somebody else may have saved some of it while it was waited for.
static int save_range(Fiber *self, const CopyBefore *f, uint64_t off, uint64_t len)
{
    BitmapRun run;
    int r = 0;
    for (uint64_t end = off + len;
         r == 0 && bitmap_next_dirty(f->config.unsaved, off, end - off, &run);)
        for (off = run.off; r == 0 && off < run.off + run.len;) {
            uint64_t done = 0;
            r = save_piece(self, f, off, run.off + run.len - off, &done);
            off += done;
        }
    return r;
}

static int set_saved(const CopyBefore *f, uint64_t off, uint64_t len)
{
    int r = bitmap_clear(f->config.unsaved, off, len);
    if (r == 0 && f->config.ops->saved && !MUTANT("copy-before-stale"))
        f->config.ops->saved(f->config.arg, off, len);
    return r;
}

static void end_save(Save *save, int result)
{
    CopyBefore *f = save->owner;
    *(save->previous ? &save->previous->next : &f->saves) = save->next;
    if (save->next)
        save->next->previous = save->previous;
    if (save->result)
        *save->result = result;
    if (result < 0 && !f->config.breaks_guests)
        break_backup(f, result);
    fiber_queue_wake_all(&f->changed);
    port_leave(f->config.nodes->port, REQUEST_WRITE);
    g_free(save);
}

static void run_save(Fiber *self, void *arg)
{
    Save *save = arg;
    CopyBefore *f = save->owner;
    RangeHold hold;
    range_lock_take(self, f->config.nodes->lock, &hold, save->off, save->len);
    int r = save_range(self, f, save->off, save->len);
    if (r == 0)
        r = set_saved(f, save->off, save->len);
    range_lock_release(f->config.nodes->lock, &hold);
    end_save(save, r);
}

static void begin_save(CopyBefore *f, BitmapRun run, int *result)
{
    Save *save = g_new(Save, 1);
    *save = (Save){.owner = f, .off = run.off, .len = run.len, .result = result, .next = f->saves};
    if (f->saves)
        f->saves->previous = save;
    f->saves = save;
    port_enter_within(f->config.nodes->port, REQUEST_WRITE);
    *result = 1;
    int r = fiber_spawn_reserve(f->node.loop, "copy-before", run_save, save);
    if (r < 0)
        end_save(save, r);
}

// -- guests' requests -----------------------------------------------------------------------------

static Save *find_save(const CopyBefore *f, uint64_t off, uint64_t len)
{
    for (Save *save = f->saves; save; save = save->next)
        if (save->off < off + len && off < save->off + save->len)
            return save;
    return NULL;
}

// What is to be saved first of what lies in the request, as whole granules; false: nothing.
static bool next_unsaved(const CopyBefore *f, uint64_t off, uint64_t len, BitmapRun *ret_run)
{
    const Bitmap *unsaved = f->config.unsaved;
    uint64_t granule = UINT64_C(1) << bitmap_granularity_bits(unsaved);
    BitmapRun run;
    if (f->error || !bitmap_next_dirty(unsaved, off, len, &run))
        return false;
    uint64_t start = run.off - run.off % granule;
    uint64_t end = MIN((run.off + run.len + granule - 1) / granule * granule, f->node.size_bytes);
    *ret_run = (BitmapRun){start, MIN(end - start, f->config.max_save_bytes)};
    return true;
}

static int wait_changed(Fiber *self, CopyBefore *f, uint64_t deadline_ns)
{
    return fiber_queue_wait_until(self, &f->changed, deadline_ns, "a save before a write");
}

static void forget_result(const CopyBefore *f, const int *result)
{
    for (Save *save = f->saves; save; save = save->next)
        if (save->result == result)
            save->result = NULL;
}

static int save_now(Fiber *self, CopyBefore *f, BitmapRun run, uint64_t deadline_ns)
{
    int result, r = 0;
    begin_save(f, run, &result);
    while (result > 0 && !f->error && r == 0)
        r = wait_changed(self, f, deadline_ns);
    if (result > 0)
        forget_result(f, &result);
    return result > 0 ? r : result;
}

static int save_next(Fiber *self, CopyBefore *f, BitmapRun run, uint64_t deadline_ns)
{
    const Save *other = find_save(f, run.off, run.len);
    if (!other)
        return save_now(self, f, run, deadline_ns);
    if (other->off <= run.off)
        return wait_changed(self, f, deadline_ns);
    return save_now(self, f, (BitmapRun){run.off, other->off - run.off}, deadline_ns);
}

static int save_all(Fiber *self, CopyBefore *f, GuestOff off, uint64_t len)
{
    BitmapRun run;
    if (!next_unsaved(f, off.v, len, &run))
        return 0;
    uint64_t timeout_ns = f->config.timeout_ns;
    uint64_t deadline_ns = timeout_ns ? loop_now_ns(f->node.loop) + timeout_ns : UINT64_MAX;
    int r;
    do {
        r = save_next(self, f, run, deadline_ns);
    } while (r == 0 && next_unsaved(f, off.v, len, &run));
    if (r == -ETIMEDOUT && !f->config.breaks_guests)
        break_backup(f, r);
    return f->error ? 0 : r;
}

static bool is_being_discarded(const CopyBefore *f, uint64_t off, uint64_t len)
{
    for (const Discard *d = f->discards; d; d = d->next)
        if (d->off < off + len && off < d->off + d->len)
            return true;
    return false;
}

// 0: the source may be changed there. Negative: the guest's request is to fail with that. Also when
// the backup is broken a discard under way would take away what the guest writes (docs/ordering.md
// §20).
static int save_before(Fiber *self, CopyBefore *f, GuestOff off, uint64_t len)
{
    int r = save_all(self, f, off, len);
    while (r == 0 && is_being_discarded(f, off.v, len) && !MUTANT("copy-before-discards"))
        fiber_queue_wait(self, &f->changed, false, "a discard before a write");
    return r;
}

static int copy_before_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                             NodeIoFlags flags)
{
    CopyBefore *f = copy_before_of(node);
    int r = MUTANT("copy-before-write") ? 0 : save_before(self, f, off, len);
    return r < 0 ? r : node_write(self, node->backing, off, buf, len, flags);
}

static int copy_before_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    CopyBefore *f = copy_before_of(node);
    int r = MUTANT("copy-before-zero") ? 0 : save_before(self, f, off, len);
    return r < 0 ? r : node_zero(self, node->backing, off, len, flags);
}

static int copy_before_discard(Fiber *self, Node *node, GuestOff off, uint64_t len,
                               NodeIoFlags flags)
{
    CopyBefore *f = copy_before_of(node);
    bool is_change = !node_ignores_discards(node->backing) && !MUTANT("copy-before-discard");
    int r = is_change ? save_before(self, f, off, len) : 0;
    return r < 0 ? r : node_discard(self, node->backing, off, len, flags);
}

// What is not to be had as it was is not to grow either.
static bool copy_before_can_grow(Node *node)
{
    return false;
}

static void copy_before_close(Fiber *self, Node *node)
{
    const CopyBefore *f = copy_before_of(node);
    filter_copy_before_stop(self, node);
    if (f->config.ops->closed)
        f->config.ops->closed(self, f->config.arg);
}

static const NodeOps copy_before_ops = {
    .driver = "copy-before-write",
    .is_filter = true,
    .write = copy_before_write,
    .zero = copy_before_zero,
    .discard = copy_before_discard,
    .can_grow = copy_before_can_grow,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
    .close = copy_before_close,
};

// -- what it showed at the begin ------------------------------------------------------------------

static int check_readable(const CopyBefore *f, uint64_t off, uint64_t len)
{
    bool is_readable = true;
    if (f->config.readable && bitmap_run_at(f->config.readable, off, len, &is_readable) < len)
        return -EACCES;
    return is_readable && !f->error ? 0 : -EACCES;
}

// From the first granule on that is not saved. Guests do not wait for it: what they have changed
// before its end is saved by then.
static int read_unsaved(Fiber *self, const CopyBefore *f, uint64_t off, uint8_t *buf, size_t len)
{
    BitmapRun run;
    if (!bitmap_next_dirty(f->config.unsaved, off, len, &run))
        return 0;
    size_t skipped = run.off - off;
    return node_read(self, f->node.backing, guest_off(run.off), buf + skipped, len - skipped);
}

// Instead of what was read there, and may be newer.
static int read_saved(Fiber *self, const CopyBefore *f, uint64_t off, uint8_t *buf, size_t len)
{
    IoBatch batch;
    int r = 0;
    io_batch_init(&batch, self);
    for (size_t at = 0, n; r == 0 && at < len; at += n) {
        bool is_unsaved;
        if (f->error) // what the owner lent is gone, perhaps
            break;
        n = bitmap_run_at(f->config.unsaved, off + at, len - at, &is_unsaved);
        if (!is_unsaved && !MUTANT("copy-before-read"))
            r = node_read_start(self, f->nodes.target, guest_off(off + at), buf + at, n, &batch);
    }
    int waited = io_batch_wait(self, &batch);
    return r < 0 ? r : waited;
}

int filter_copy_before_read(Fiber *self, Node *filter, GuestOff off, void *buf, size_t len)
{
    const CopyBefore *f = copy_before_of(filter);
    int r = check_readable(f, off.v, len);
    if (r == 0)
        r = read_unsaved(self, f, off.v, buf, len);
    if (r == 0)
        r = read_saved(self, f, off.v, buf, len);
    return r == 0 ? check_readable(f, off.v, len) : r;
}

int filter_copy_before_map(Fiber *self, Node *filter, Node *view, GuestOff off, uint64_t len,
                           NodeExtent *ret_extent)
{
    const CopyBefore *f = copy_before_of(filter);
    bool is_readable, was_unsaved, is_unsaved;
    NodeExtent extent;
    int r;
    if (f->config.readable)
        len = bitmap_run_at(f->config.readable, off.v, len, &is_readable);
    do {
        r = check_readable(f, off.v, len);
        uint64_t n = bitmap_run_at(f->config.unsaved, off.v, len, &was_unsaved);
        if (r == 0)
            r = node_status(self, was_unsaved ? f->node.backing : f->nodes.target, off, n, &extent);
        if (r == 0)
            r = check_readable(f, off.v, extent.len); // still
        if (r < 0)
            return r;
        n = bitmap_run_at(f->config.unsaved, off.v, len, &is_unsaved);
        len = MIN(extent.len, n);
    } while (is_unsaved != was_unsaved);
    bool is_zero = extent.kind != NODE_EXTENT_DATA && extent.kind != NODE_EXTENT_OPAQUE;
    *ret_extent = (NodeExtent){
        .len = len,
        .kind = is_zero ? NODE_EXTENT_ZERO : NODE_EXTENT_OPAQUE,
        .node = is_zero ? NULL : view,
    };
    return 0;
}

int filter_copy_before_forget(Fiber *self, Node *filter, GuestOff off, uint64_t len)
{
    CopyBefore *f = copy_before_of(filter);
    uint64_t granule = UINT64_C(1) << bitmap_granularity_bits(f->config.unsaved);
    uint64_t start = (off.v + granule - 1) / granule * granule, end = off.v + len;
    end = end == filter->size_bytes ? end : end / granule * granule;
    if (start >= end || !f->config.readable)
        return 0;
    int r = bitmap_clear(f->config.readable, start, end - start);
    if (r == 0)
        r = bitmap_clear(f->config.unsaved, start, end - start);
    return r == 0 ? node_discard(self, f->nodes.target, guest_off(start), end - start, 0) : r;
}

// -- for the owner --------------------------------------------------------------------------------

Node *filter_copy_before_new(const CopyBeforeConfig *config)
{
    CopyBefore *f = g_new0(CopyBefore, 1);
    Node *source = config->nodes->source;
    node_init(&f->node, &copy_before_ops, source->loop, config->name, source->size_bytes);
    f->config = *config;
    f->nodes = *config->nodes;
    f->nodes.lock = NULL;
    f->nodes.broken = &f->error; // guests have gone on then
    node_add_child(&f->node, config->nodes->target);
    return &f->node;
}

bool filter_copy_before_is(const Node *node)
{
    return node->ops == &copy_before_ops;
}

int filter_copy_before_saved(Node *filter, const CopyChunk *chunk)
{
    CopyBefore *f = copy_before_of(filter);
    uint64_t granule = UINT64_C(1) << bitmap_granularity_bits(f->config.unsaved);
    uint64_t start = chunk->off - chunk->off % granule;
    int r = bitmap_clear(f->config.unsaved, start, chunk->off + chunk->len - start);
    if (r < 0)
        break_backup(f, r);
    return r;
}

static void discard_source(Fiber *self, CopyBefore *f, const CopyChunk *chunk)
{
    Discard discard = {chunk->off, chunk->len, f->discards}, **at = &f->discards;
    f->discards = &discard;
    node_discard(self, f->node.backing, guest_off(chunk->off), chunk->len, 0);
    while (*at != &discard)
        at = &(*at)->next;
    *at = discard.next;
    fiber_queue_wake_all(&f->changed);
}

int filter_copy_before_discard_saved(Fiber *self, Node *filter, const CopyChunk *chunk)
{
    CopyBefore *f = copy_before_of(filter);
    const CopyNodes *nodes = f->config.nodes;
    RangeHold hold;
    port_enter(self, nodes->port, REQUEST_DISCARD);
    range_lock_take(self, nodes->lock, &hold, chunk->off, chunk->len);
    if (!copy_chunk_is_stale(chunk) && !f->error)
        discard_source(self, f, chunk);
    int r = filter_copy_before_saved(filter, chunk);
    range_lock_release(nodes->lock, &hold);
    port_leave(nodes->port, REQUEST_DISCARD);
    return r;
}

void filter_copy_before_stop(Fiber *self, Node *filter)
{
    CopyBefore *f = copy_before_of(filter);
    f->error = f->error ?: -ECANCELED;
    fiber_queue_wake_all(&f->changed);
    while (f->saves)
        fiber_queue_wait(self, &f->changed, false, "the end of saves");
}

int filter_copy_before_error(const Node *filter)
{
    return copy_before_of((Node *)filter)->error;
}
