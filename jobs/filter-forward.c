// SPDX-License-Identifier: LGPL-2.1-or-later
// A request's order: source, target, the engine is told, the range given up, and only then the
// guest hears of it. On the node's loop.
//
// Chunks of the copy and guests meet in two places. In the range lock: old data does not land on
// new, for a chunk that waited for a guest finds itself stale. In the work set: a bit is set after
// the guest's write to the source, so whoever takes it after that reads what was written. A request
// that goes to both takes work out of the set; not while another one changes the source without
// holding the range, whose bit it might take out.
#include "filter-forward.h"

#include <errno.h>
#include <string.h>

#include "chain-core/io-buffers.h"
#include "chain-core/mutant.h"
#include "chain-core/node-fill.h"

typedef struct ForwardNode {
    Node node;
    Node *target; // NULL: stopped
    CopyEngine *engine;
    RangeLock *lock;
    ForwardMode mode;
    uint64_t whole_bytes;
    bool is_durable; // what a guest's flush or FUA promises holds in the target, too
    bool has_failed; // to make it so
    // Requests in the background: under way, and begun so far.
    uint64_t n_background, n_background_begun;
} ForwardNode;

// The guest bytes of one request.
typedef struct Span {
    uint64_t off, len;
} Span;

static ForwardNode *forward_of(Node *node)
{
    return (ForwardNode *)node;
}

static Span whole(const ForwardNode *f, Span span)
{
    uint64_t unit = f->whole_bytes, end = span.off + span.len;
    if (!unit)
        return span;
    uint64_t start = span.off - span.off % unit;
    return (Span){start, MIN((end + unit - 1) / unit * unit, f->target->size_bytes) - start};
}

// With the granules at both ends, where those are work: the request then does all that is.
static Span widen(const ForwardNode *f, Span span)
{
    WorkSet *work = copy_engine_work(f->engine);
    uint64_t g = work_set_granularity(work), end = span.off + span.len;
    uint64_t start = span.off - span.off % g;
    uint64_t stop = MIN((end + g - 1) / g * g, f->target->size_bytes);
    Span wide = span;
    if (start < span.off && work_set_has(work, start)) {
        wide.off = start;
        wide.len = end - start;
    }
    if (stop > end && work_set_has(work, end - end % g))
        wide.len = stop - wide.off;
    return whole(f, wide);
}

// What is in the range is, or may be, not in the target.
static void leave_to_copy(ForwardNode *f, Span span)
{
    if (f->target)
        copy_engine_add(f->engine, WORK_DATA, span.off, span.len);
}

// The whole units of it; the disk's end counts as a border.
static Span units_in(const ForwardNode *f, Span span)
{
    uint64_t unit = f->whole_bytes, end = span.off + span.len;
    if (!unit)
        return span;
    uint64_t start = (span.off + unit - 1) / unit * unit;
    uint64_t stop = end == f->target->size_bytes ? end : end - end % unit;
    return (Span){start, stop > start ? stop - start : 0};
}

// -- write-blocking -------------------------------------------------------------------------------

// The bytes around the guest's come from the source; where it ends before the target they are
// zeros.
static int write_wide(Fiber *self, const ForwardNode *f, Span wide)
{
    Loop *loop = f->node.loop;
    uint64_t shown = MIN(wide.len, f->node.backing->size_bytes - wide.off);
    uint8_t *buf = io_buffer_take(loop, wide.len);
    if (!buf)
        return -ENOMEM;
    int r = shown ? node_read(self, f->node.backing, guest_off(wide.off), buf, shown) : 0;
    memset(buf + shown, 0, wide.len - shown);
    if (r == 0)
        r = node_write(self, f->target, guest_off(wide.off), buf, wide.len, 0);
    io_buffer_put(loop, buf, wide.len);
    return r;
}

static int forward_data(Fiber *self, const ForwardNode *f, Span span, Span wide, const void *buf)
{
    if (wide.len > span.len)
        return write_wide(self, f, wide);
    return node_write(self, f->target, guest_off(span.off), buf, span.len, 0);
}

// A request to both.
typedef struct Both {
    Span span, held; // the guest's; that and what is done with it
    RangeHold hold;
    bool is_alone; // nobody changes the source in the background
    uint64_t n_background_begun;
} Both;

static void begin_both(Fiber *self, ForwardNode *f, Both *both)
{
    both->is_alone = !f->n_background || MUTANT("forward-work-of-others");
    both->n_background_begun = f->n_background_begun;
    range_lock_take(self, f->lock, &both->hold, both->held.off, both->held.len);
}

// What was held of the target is as the source is, or (negative) perhaps not.
static void end_both(ForwardNode *f, Both *both, int result)
{
    copy_engine_guest_wrote(f->engine, both->span.off, both->span.len);
    if (result < 0)
        leave_to_copy(f, both->span);
    else if (both->is_alone && both->n_background_begun == f->n_background_begun)
        copy_engine_remove(f->engine, both->held.off, both->held.len);
    range_lock_release(f->lock, &both->hold);
}

// What has ended is durable in the target then, or the copy has to be flushed once more.
static void make_target_durable(Fiber *self, ForwardNode *f)
{
    Node *target = f->is_durable ? f->target : NULL;
    if (target && node_flush(self, target) < 0)
        f->has_failed = true;
}

// The guest is about to hear of it. Looked at only now: the copy may have come close meanwhile.
static int answer(Fiber *self, ForwardNode *f, int result, NodeIoFlags flags)
{
    if (result == 0 && flags & NODE_IO_FUA && !MUTANT("forward-fua"))
        make_target_durable(self, f);
    return result;
}

static int write_both(Fiber *self, ForwardNode *f, GuestOff off, const void *buf, size_t len,
                      NodeIoFlags flags)
{
    Both both = {.span = {off.v, len}};
    both.held = widen(f, both.span);
    begin_both(self, f, &both);
    int r = node_write(self, f->node.backing, off, buf, len, flags);
    end_both(f, &both, r < 0 ? r : forward_data(self, f, both.span, both.held, buf));
    return answer(self, f, r, flags);
}

static int zero_units(Fiber *self, const ForwardNode *f, Span units, NodeIoFlags flags)
{
    NodeFillResult result = {0};
    int r = node_zero(self, f->target, guest_off(units.off), units.len, flags);
    return r < 0 || !f->whole_bytes
               ? r
               : node_fill(self, f->target, guest_off(units.off), units.len, 0, &result);
}

// Also where it is slow there: what the guest asked for was fast in the source.
static int forward_zero_units(Fiber *self, const ForwardNode *f, const Both *both,
                              NodeIoFlags flags)
{
    Span wide = both->held, units = units_in(f, both->span);
    if (!units.len)
        return write_wide(self, f, wide);
    Span before = {wide.off, units.off - wide.off};
    Span after = {units.off + units.len, wide.off + wide.len - units.off - units.len};
    int r = before.len ? write_wide(self, f, before) : 0;
    if (r == 0)
        r = zero_units(self, f, units, flags & ~(NODE_IO_FUA | NODE_IO_FAST_ZERO));
    return r == 0 && after.len ? write_wide(self, f, after) : r;
}

static int zero_both(Fiber *self, ForwardNode *f, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Both both = {.span = {off.v, len}};
    both.held = widen(f, both.span);
    begin_both(self, f, &both);
    int r = node_zero(self, f->node.backing, off, len, flags);
    if (r == -ENOTSUP && flags & NODE_IO_FAST_ZERO) { // nothing was changed
        range_lock_release(f->lock, &both.hold);
        return r;
    }
    end_both(f, &both, r < 0 ? r : forward_zero_units(self, f, &both, flags));
    return answer(self, f, r, flags);
}

// What the source shows after a discard depends on its format: zeros, which need not be moved, or
// what was there.
static int forward_zeros(Fiber *self, ForwardNode *f, Span span)
{
    for (uint64_t off = span.off, end = off + span.len; off < end;) {
        NodeExtent extent;
        int r = node_status(self, f->node.backing, guest_off(off), end - off, &extent);
        bool is_zero = extent.kind == NODE_EXTENT_ZERO ||
                       extent.kind == NODE_EXTENT_ZERO_ALLOCATED ||
                       extent.kind == NODE_EXTENT_BELOW;
        if (r == 0 && is_zero)
            r = node_zero(self, f->target, guest_off(off), extent.len, 0);
        if (r < 0 || !is_zero)
            return r < 0 ? r : -EAGAIN;
        off += extent.len;
    }
    return 0;
}

// A hint that is not taken. What was discarded before may be, and is to become durable.
static int leave_undone(Fiber *self, ForwardNode *f, NodeIoFlags flags)
{
    int r = flags & NODE_IO_FUA ? node_flush(self, f->node.backing) : 0;
    return answer(self, f, r, flags);
}

static int discard_both(Fiber *self, ForwardNode *f, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Both both = {.span = {off.v, len}, .held = {off.v, len}};
    begin_both(self, f, &both);
    int r = node_discard(self, f->node.backing, off, len, flags);
    end_both(f, &both, r < 0 ? r : forward_zeros(self, f, both.span));
    return answer(self, f, r, flags);
}

// -- requests -------------------------------------------------------------------------------------

static bool is_blocking(const ForwardNode *f)
{
    return f->target && f->mode != FORWARD_BACKGROUND;
}

static void begin_background(ForwardNode *f)
{
    f->n_background++;
    f->n_background_begun++;
}

// After the source was changed, also where that failed, and before the guest hears of it.
static int end_background(ForwardNode *f, GuestOff off, uint64_t len, int result)
{
    f->n_background--;
    if (f->target) {
        copy_engine_guest_wrote(f->engine, off.v, len);
        leave_to_copy(f, (Span){off.v, len});
    }
    return result;
}

static int forward_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                         NodeIoFlags flags)
{
    ForwardNode *f = forward_of(node);
    if (is_blocking(f))
        return write_both(self, f, off, buf, len, flags);
    begin_background(f);
    if (MUTANT("forward-dirty-after-write")) {
        end_background(f, off, len, 0);
        return node_write(self, node->backing, off, buf, len, flags);
    }
    return end_background(f, off, len, node_write(self, node->backing, off, buf, len, flags));
}

static int forward_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    ForwardNode *f = forward_of(node);
    if (is_blocking(f))
        return zero_both(self, f, off, len, flags);
    begin_background(f);
    return end_background(f, off, len, node_zero(self, node->backing, off, len, flags));
}

static int forward_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    ForwardNode *f = forward_of(node);
    if ((is_blocking(f) && f->mode == FORWARD_ENDING) || node_ignores_discards(node->backing))
        return leave_undone(self, f, flags);
    if (is_blocking(f) && !f->whole_bytes)
        return discard_both(self, f, off, len, flags);
    begin_background(f);
    return end_background(f, off, len, node_discard(self, node->backing, off, len, flags));
}

static int forward_flush(Fiber *self, Node *node)
{
    ForwardNode *f = forward_of(node);
    int r = node_flush(self, node->backing);
    if (r == 0 && !MUTANT("forward-flush"))
        make_target_durable(self, f);
    return r;
}

static void forward_close(Fiber *self, Node *node)
{
}

static const NodeOps forward_ops = {
    .driver = "forward",
    .is_filter = true,
    .write = forward_write,
    .zero = forward_zero,
    .discard = forward_discard,
    .flush = forward_flush,
    .close = forward_close,
};

Node *filter_forward_new(const ForwardConfig *config)
{
    ForwardNode *f = g_new0(ForwardNode, 1);
    node_init(&f->node, &forward_ops, config->source->loop, config->name,
              config->source->size_bytes);
    f->target = config->target;
    f->engine = config->engine;
    f->lock = config->lock;
    f->mode = config->mode;
    f->whole_bytes = config->whole_bytes;
    node_add_child(&f->node, config->target);
    return &f->node;
}

void filter_forward_stop(Node *filter)
{
    forward_of(filter)->target = NULL;
}

ForwardMode filter_forward_mode(const Node *filter)
{
    return forward_of((Node *)filter)->mode;
}

void filter_forward_set_mode(Node *filter, ForwardMode mode)
{
    forward_of(filter)->mode = mode;
}

void filter_forward_set_durable(Node *filter, bool is_durable)
{
    forward_of(filter)->is_durable = is_durable;
    forward_of(filter)->has_failed = false;
}

bool filter_forward_is_durable(const Node *filter)
{
    const ForwardNode *f = forward_of((Node *)filter);
    return f->is_durable && !f->has_failed;
}
