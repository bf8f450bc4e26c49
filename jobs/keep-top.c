// SPDX-License-Identifier: LGPL-2.1-or-later
// The top is gone through in pieces of about one slice of its tables. A cluster of it that guests
// have changed since it was copied, in any byte, stays whole: with its range held nobody is
// changing it, and who has is in the set.
//
// Write order (docs/ordering.md §18 (d)): what is looked at here is durable in the base, and the
// top's header names the base. On the nodes' loop.
#include "keep-top.h"

#include <errno.h>

#include "chain-core/mutant.h"
#include "chain-core/node-fill.h"
#include "chain-core/switch.h"
#include "copy-rate.h"

enum { PIECE_CLUSTERS = 512 };

// -- the filter -----------------------------------------------------------------------------------

typedef struct NoteNode {
    Node node;
    KeepTop *keep; // NULL: it is about to be closed
} NoteNode;

// A guest's request.
typedef struct Change {
    KeepTop *keep;
    uint64_t off, len;
    RangeHold hold;
    bool holds;
} Change;

static void begin_change(Fiber *self, Node *node, Change *change)
{
    KeepTop *keep = ((NoteNode *)node)->keep;
    change->keep = keep;
    change->holds = keep && keep->holds && !MUTANT("keep-top-holds");
    if (change->holds)
        range_lock_take(self, &keep->lock, &change->hold, change->off, change->len);
}

// Also of what has failed.
static int end_change(Change *change, int result)
{
    if (change->keep && !MUTANT("keep-top-notes"))
        work_set_add(change->keep->changed, WORK_DATA, change->off, change->len);
    if (change->holds)
        range_lock_release(&change->keep->lock, &change->hold);
    return result;
}

static int note_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    Change change = {.off = off.v, .len = len};
    begin_change(self, node, &change);
    return end_change(&change, node_write(self, node->backing, off, buf, len, flags));
}

static int note_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Change change = {.off = off.v, .len = len};
    begin_change(self, node, &change);
    return end_change(&change, node_zero(self, node->backing, off, len, flags));
}

static int note_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Change change = {.off = off.v, .len = len};
    if (node_ignores_discards(node->backing))
        return node_discard(self, node->backing, off, len, flags);
    begin_change(self, node, &change);
    return end_change(&change, node_discard(self, node->backing, off, len, flags));
}

static void note_close(Fiber *self, Node *node)
{
}

static const NodeOps note_ops = {
    .driver = "note-changes",
    .is_filter = true,
    .write = note_write,
    .zero = note_zero,
    .discard = note_discard,
    .close = note_close,
};

void keep_top_begin(KeepTop *keep, Node *top, uint32_t granularity_bits)
{
    keep->top = top;
    keep->changed = work_set_new(top->size_bytes, granularity_bits);
}

static void insert_filter(Fiber *self, KeepTop *keep, const char *name)
{
    NoteNode *note = g_new0(NoteNode, 1);
    node_init(&note->node, &note_ops, keep->top->loop, name, keep->top->size_bytes);
    note->keep = keep;
    keep->filter = &note->node;
    node_insert_filter(self, keep->top, keep->filter);
}

void keep_top_hold(void *keep)
{
    ((KeepTop *)keep)->holds = true;
}

void keep_top_done(Fiber *self, KeepTop *keep)
{
    if (keep->filter) {
        node_remove_filter(self, keep->filter);
        ((NoteNode *)keep->filter)->keep = NULL;
        node_unref_close(self, g_steal_pointer(&keep->filter));
    }
    work_set_free(g_steal_pointer(&keep->changed));
}

// -- the copy -------------------------------------------------------------------------------------

// What was taken out of the set before it is read, and is changed meanwhile, is in it again.
static int copy_changes(Fiber *self, KeepTop *keep, LiveCopy *copy)
{
    WorkSet *work = copy_engine_work(copy->copy.engine);
    uint64_t left = UINT64_MAX, bytes;
    int r = 0;
    while (r == 0 && (bytes = work_set_data_bytes(keep->changed)) && bytes <= left / 2) {
        left = bytes;
        work_set_move(keep->changed, work);
        r = job_copy_run(self, &copy->copy);
    }
    work_set_move(work, keep->changed);
    return r;
}

static int wait_for_users(Fiber *self, LiveCopy *copy)
{
    int r = 0;
    live_copy_set_ready(copy);
    while (r == 0 && !live_copy_is_to_complete(copy)) {
        copy_engine_wait(self, copy->copy.engine);
        r = job_copy_run(self, &copy->copy); // has nothing to do, but users may want a pause
    }
    return r;
}

int keep_top_copy(Fiber *self, KeepTop *keep, LiveCopy *copy)
{
    insert_filter(self, keep, copy->spec.name);
    int r = job_copy_run(self, &copy->copy);
    if (r == 0)
        r = copy_changes(self, keep, copy);
    if (r == 0)
        r = wait_for_users(self, copy);
    if (r == 0)
        r = copy_changes(self, keep, copy);
    live_copy_set_over(copy);
    return r == -EINTR ? 0 : r;
}

// -- giving back ----------------------------------------------------------------------------------

typedef struct GivingBack {
    KeepTop *keep;
    JobControl *control;
    CopyRate rate;
    uint64_t left; // of the top's own, as far as the job's progress knows
} GivingBack;

// What the top has itself in [off, end).
static int count_own(Fiber *self, const KeepTop *keep, uint64_t off, uint64_t end,
                     uint64_t *ret_bytes)
{
    NodeExtentKind kind;
    uint64_t len, bytes = 0;
    for (; off < end; off += len) {
        int r = node_find_kind(self, keep->top, guest_off(off), end - off, &kind, &len);
        if (r < 0)
            return r;
        bytes += kind == NODE_EXTENT_BELOW ? 0 : len;
    }
    *ret_bytes = bytes;
    return 0;
}

// One look at metadata at a time, so that a drain waits for no more.
static int begin_progress(Fiber *self, GivingBack *g, Port *port)
{
    enum { LOOKS_AT_ONCE = 64 }; // then others get their turn
    Node *top = g->keep->top;
    uint64_t off = 0, len;
    for (unsigned i = 1; off < top->size_bytes; off += len, i++) {
        NodeExtentKind kind;
        port_enter(self, port, REQUEST_READ);
        int r = node_find_kind(self, top, guest_off(off), top->size_bytes - off, &kind, &len);
        port_leave(port, REQUEST_READ);
        if (r == 0 && job_is_cancelled(g->control))
            r = -ECANCELED;
        if (r < 0)
            return r;
        g->left += kind == NODE_EXTENT_BELOW ? 0 : len;
        if (i % LOOKS_AT_ONCE == 0)
            fiber_sleep(self, 0);
    }
    job_add_total(g->control, (int64_t)g->left);
    return 0;
}

// Guests may have come to own more since, or less.
static void tell_progress(GivingBack *g, uint64_t bytes)
{
    if (bytes > g->left)
        job_add_total(g->control, (int64_t)(bytes - g->left));
    g->left -= MIN(bytes, g->left);
    job_count(g->control, JOB_BYTES_SKIPPED, bytes);
    copy_rate_take(&g->rate, (int64_t)bytes);
}

// [off, end) of the top, with the range held.
static int unlink_unchanged(Fiber *self, const KeepTop *keep, uint64_t off, uint64_t end)
{
    int r = 0;
    while (off < end && r == 0) {
        bool is_changed;
        uint64_t len = work_set_run(keep->changed, off, end - off, &is_changed);
        if (!is_changed)
            r = node_unfill(self, keep->top, guest_off(off), len);
        off += len;
    }
    return r;
}

// Whole clusters; where there is a limit, about as much as it allows at a time.
static uint64_t piece_bytes(const GivingBack *g)
{
    enum { PIECES_PER_S = 10 };
    uint64_t cluster = g->keep->top->preferred_bytes, most = cluster * PIECE_CLUSTERS;
    uint64_t wanted = g->rate.bytes_per_s ? g->rate.bytes_per_s / PIECES_PER_S : most;
    return CLAMP(wanted - wanted % cluster, cluster, most);
}

// From `off` on; *ret_len: how far it has come. Pieces begin and end at borders of clusters.
static int give_back_piece(Fiber *self, GivingBack *g, uint64_t off, uint64_t *ret_len)
{
    KeepTop *keep = g->keep;
    Node *top = keep->top;
    uint64_t piece = piece_bytes(g), own;
    NodeExtentKind kind;
    int r = node_find_kind(self, top, guest_off(off), top->size_bytes - off, &kind, ret_len);
    if (r < 0 || kind == NODE_EXTENT_BELOW)
        return r;
    RangeHold hold;
    uint64_t start = off - off % top->preferred_bytes;
    uint64_t end = MIN(off - off % piece + piece, top->size_bytes);
    *ret_len = end - off;
    r = count_own(self, keep, off, end, &own);
    if (r < 0)
        return r;
    range_lock_take(self, &keep->lock, &hold, start, end - start);
    r = unlink_unchanged(self, keep, start, end);
    range_lock_release(&keep->lock, &hold);
    if (r == 0)
        tell_progress(g, own);
    return r;
}

static int make_durable(Fiber *self, const KeepTop *keep, Port *port)
{
    port_enter(self, port, REQUEST_FLUSH);
    int r = node_flush(self, keep->top);
    port_leave(port, REQUEST_FLUSH);
    return r;
}

static uint64_t rate_wait_ns(GivingBack *g, uint64_t now_ns)
{
    copy_rate_set(&g->rate, job_speed(g->control), now_ns);
    return copy_rate_wait_ns(&g->rate, now_ns);
}

// The run is over, so nobody who cancels the job, or sets its speed, wakes it: it looks now and
// then.
static int wait_for_rate(Fiber *self, GivingBack *g)
{
    static const uint64_t look_ns = 100000000;
    Loop *loop = fiber_loop(self);
    uint64_t wait_ns;
    while (!job_is_cancelled(g->control) && (wait_ns = rate_wait_ns(g, loop_now_ns(loop))))
        fiber_sleep(self, MIN(wait_ns, look_ns));
    return job_is_cancelled(g->control) ? -ECANCELED : 0;
}

int keep_top_give_back(Fiber *self, KeepTop *keep, Port *port, JobControl *control)
{
    GivingBack g = {.keep = keep, .control = control};
    int r = begin_progress(self, &g, port);
    for (uint64_t off = 0, len; r == 0 && off < keep->top->size_bytes; off += len) {
        r = wait_for_rate(self, &g);
        if (r < 0)
            return r;
        port_enter(self, port, REQUEST_WRITE);
        r = give_back_piece(self, &g, off, &len);
        port_leave(port, REQUEST_WRITE);
        fiber_sleep(self, 0);
    }
    if (r < 0)
        return r;
    job_add_total(control, -(int64_t)g.left);
    return make_durable(self, keep, port);
}
