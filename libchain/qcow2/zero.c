// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-zeroes and discard on the head: whole clusters (subclusters) become zero entries, so that
// old backing data never shows through; partial ones are written. And the reverse: whole clusters
// are uncovered, so that what lies below shows. Version 2 has no zero entries:
// zeroes are written, and a discard without a backing child makes clusters unallocated, with one it
// does nothing.
//
// Write order (docs/ordering.md §4): the entry changes in memory and reaches the disk with the next
// write-back; the clusters it named are freed only after that. A data file of its own is punched at
// once: its bytes are where the guest has them, and zeros there are right with the old entry, too.
// One that must stay raw is zeroed, whatever the entries say. In fibers on the image's loop.

#include <errno.h>
#include <string.h>

#include "qcow2/open.h"
#include "qcow2/view.h"

// What becomes of guest bytes.
typedef enum ZeroGoal {
    ZEROS_ALLOCATED, // zeros, which keep their host clusters
    ZEROS_UNMAPPED,  // zeros, host clusters are given back
    UNCOVERED,       // what lies below, host clusters are given back
} ZeroGoal;

typedef struct ZeroRange {
    GuestOff off;
    uint64_t len;
    ZeroGoal goal;
} ZeroRange;

enum { ZEROS_BYTES = 256 << 10 };
static const uint8_t zeros[ZEROS_BYTES];

static int write_zeros(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    int r = 0;
    while (len && r == 0) {
        uint64_t n = MIN(len, ZEROS_BYTES);
        r = view_write(self, &view->node, off, zeros, n, 0);
        off.v += n;
        len -= n;
    }
    return r;
}

// With a pin for the look. None is left when this returns: view_write() may have to wait for all.
static int reads_as_zeros(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, bool *ret_zeros)
{
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
    return view_reads_as_zeros(self, view, off, len, ret_zeros);
}

// A piece too small for an entry of its own: nothing to do if it reads as zeros, else zeros are
// written.
static int zero_edge(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    bool is_zero = false;
    int r = len ? reads_as_zeros(self, view, off, len, &is_zero) : 0;
    return r < 0 || !len || is_zero ? r : write_zeros(self, view, off, len);
}

static bool shows_below(const Qcow2View *view, GuestOff off)
{
    return off.v < view_shown_below(view);
}

// What becomes of the entry of a whole cluster.
typedef struct EntryPlan {
    bool changes, frees; // frees: what the old one named
    Qcow2L2Entry entry;
} EntryPlan;

static EntryPlan plan_entry(const Qcow2View *view, GuestOff off, const Qcow2L2Entry *old,
                            ZeroGoal goal)
{
    static const EntryPlan nothing;
    const Qcow2Geometry *g = &view->image->geometry;
    bool host = old->kind == QCOW2_CLUSTER_DATA || old->kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
    bool frees = old->kind == QCOW2_CLUSTER_COMPRESSED ||
                 (host && (goal != ZEROS_ALLOCATED || !old->copied));
    if (goal == UNCOVERED)
        return (EntryPlan){
            .changes = old->kind != QCOW2_CLUSTER_UNALLOCATED || old->zero_bitmap,
            .frees = frees,
            .entry.kind = QCOW2_CLUSTER_UNALLOCATED,
        };
    bool is_kept = host && !frees;
    EntryPlan plan = {.changes = true, .frees = frees};
    Qcow2L2Entry *e = &plan.entry;
    if (is_kept)
        *e = *old;
    if (!g->extended_l2) {
        if (old->kind == QCOW2_CLUSTER_ZERO ||
            (old->kind == QCOW2_CLUSTER_ZERO_ALLOCATED && is_kept) ||
            (old->kind == QCOW2_CLUSTER_UNALLOCATED && !shows_below(view, off)))
            return nothing;
        e->kind = is_kept                           ? QCOW2_CLUSTER_ZERO_ALLOCATED
                  : view->image->header.version < 3 ? QCOW2_CLUSTER_UNALLOCATED
                                                    : QCOW2_CLUSTER_ZERO;
        return plan;
    }
    if (!host && old->kind != QCOW2_CLUSTER_COMPRESSED &&
        (old->zero_bitmap == UINT32_MAX || (!old->zero_bitmap && !shows_below(view, off))))
        return nothing;
    e->kind = is_kept ? QCOW2_CLUSTER_DATA : QCOW2_CLUSTER_UNALLOCATED;
    e->alloc_bitmap = 0;
    e->zero_bitmap = UINT32_MAX;
    return plan;
}

// With the clusters locked: zeros in a data file that must stay raw.
static int zero_raw_data(Fiber *self, Qcow2Image *image, const ZeroRange *range)
{
    if (!image_has_raw_data(image))
        return 0;
    return file_zero(self, image->data_file, host_off(range->off.v), range->len,
                     range->goal == ZEROS_ALLOCATED ? 0 : FILE_ZERO_UNMAP);
}

// The same, for clusters without an entry.
static int zero_raw_hole(Fiber *self, Qcow2Image *image, const ZeroRange *range)
{
    const Qcow2Geometry *g = &image->geometry;
    if (!image_has_raw_data(image))
        return 0;
    ClusterLock lock;
    cluster_lock(self, &image->locks, &lock, range->off.v >> g->cluster_bits,
                 (range->off.v + range->len - 1) >> g->cluster_bits);
    int r = zero_raw_data(self, image, range);
    cluster_unlock(&image->locks, &lock);
    return r;
}

// With the clusters locked: gives back what entry `old` named in a data file.
static void punch_data(Fiber *self, Qcow2Image *image, const Qcow2L2Entry *old)
{
    if (image->data_file && !image_has_raw_data(image))
        file_discard(self, image->data_file, old->host, image->geometry.cluster_bytes);
}

// What the entry of cluster `i` of the change is for is done.
static int zero_entry(Fiber *self, MappingChange *change, uint32_t i, ZeroGoal goal)
{
    Qcow2Image *image = change->view->image;
    GuestOff at = cluster_span_cluster(&image->geometry, &change->span, i);
    Qcow2L2Entry old = mapping_get(change, i);
    if (old.kind == QCOW2_CLUSTER_BAD)
        return image_mark_corrupt(
            image, "L2 entry for guest offset %#" G_GINT64_MODIFIER "x is damaged", at.v);
    EntryPlan plan = plan_entry(change->view, at, &old, goal);
    if (!plan.changes)
        return 0;
    int r = plan.frees ? mapping_check(change, i) : 0;
    if (r == 0)
        mapping_set(change, i, &plan.entry);
    if (r == 0 && plan.frees)
        punch_data(self, image, &old);
    return r;
}

// Changes the entries of whole clusters, from the start of `range` as far as the L2 slice reaches.
// *ret_len: bytes done.
static int zero_in_slice(Fiber *self, Qcow2View *view, const ZeroRange *range, uint64_t *ret_len)
{
    const Qcow2Geometry *g = &view->image->geometry;
    MappingPlace place;
    ZeroRange done = *range;
    int r = mapping_find_place(self, view, range->off, &place);
    if (r < 0)
        return r;
    if (!place.slice && (range->goal == UNCOVERED || !shows_below(view, range->off))) {
        done.len = *ret_len = MIN(range->len, (uint64_t)place.n_left << g->cluster_bits);
        return zero_raw_hole(self, view->image, &done);
    }
    ClusterSpan span = cluster_span_make(g, range->off, range->len);
    MappingChange change;
    done.len = *ret_len = span.len;
    r = mapping_begin(self, view, &span, &change);
    if (r < 0)
        return r;
    r = zero_raw_data(self, view->image, &done);
    for (uint32_t i = 0; i < span.n && r == 0; i++)
        r = zero_entry(self, &change, i, range->goal);
    mapping_end(&change);
    return r;
}

// Extended L2: whole subclusters of one cluster get their zero bits. A compressed cluster has none:
// *ret_is_compressed, and nothing is changed.
static int mark_subclusters(Fiber *self, Qcow2View *view, const ZeroRange *range,
                            bool *ret_is_compressed)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(image);
    ClusterSpan span = cluster_span_make(g, range->off, range->len);
    MappingChange change;
    int r = mapping_begin(self, view, &span, &change);
    if (r < 0)
        return r;
    r = zero_raw_data(self, image, range);
    Qcow2L2Entry e = mapping_get(&change, 0);
    *ret_is_compressed = e.kind == QCOW2_CLUSTER_COMPRESSED;
    if (e.kind == QCOW2_CLUSTER_BAD) {
        r = image_mark_corrupt(
            image, "L2 entry for guest offset %#" G_GINT64_MODIFIER "x is damaged", range->off.v);
    } else if (r == 0 && !*ret_is_compressed) {
        uint32_t first = qcow2_in_cluster(g, range->off) >> g->subcluster_bits;
        uint32_t n = range->len >> g->subcluster_bits;
        uint32_t mask = (uint32_t)(((UINT64_C(1) << n) - 1) << first);
        e.alloc_bitmap &= ~mask;
        e.zero_bitmap |= mask;
        mapping_set(&change, 0, &e);
    }
    mapping_end(&change);
    return r;
}

static int zero_subclusters(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    bool is_zero, is_compressed = false;
    int r = reads_as_zeros(self, view, off, len, &is_zero);
    if (r < 0 || is_zero)
        return r;
    uint64_t n_released;
    ZeroRange range = {off, len, ZEROS_UNMAPPED};
    do {
        n_released = view->image->freed.n_released;
        r = mark_subclusters(self, view, &range, &is_compressed);
    } while (r == -ENOSPC && writeback_reclaim(self, &view->image->writeback, n_released));
    return r == 0 && is_compressed ? write_zeros(self, view, off, len) : r;
}

// A range that does not fill a cluster.
static int zero_part(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint64_t sub = UINT64_C(1) << g->subcluster_bits, end = off.v + len;
    uint64_t from = (off.v + sub - 1) & ~(sub - 1), to = end & ~(sub - 1);
    if (!g->extended_l2 || from >= to)
        return zero_edge(self, view, off, len);
    int r = zero_edge(self, view, off, from - off.v);
    if (r == 0)
        r = zero_subclusters(self, view, guest_off(from), to - from);
    if (r == 0)
        r = zero_edge(self, view, guest_off(to), end - to);
    return r;
}

// Splits [off, off+len) at cluster borders; the view's end counts as one. Returns where the whole
// clusters lie.
static void whole_clusters(const Qcow2View *view, GuestOff off, uint64_t len, uint64_t *ret_from,
                           uint64_t *ret_to)
{
    uint64_t cb = view->image->geometry.cluster_bytes, end = off.v + len;
    *ret_from = (off.v + cb - 1) & ~(cb - 1);
    *ret_to = end == view->node.size_bytes ? end : end & ~(cb - 1);
}

static int zero_whole(Fiber *self, Qcow2View *view, uint64_t from, uint64_t to, ZeroGoal goal)
{
    Qcow2Image *image = view->image;
    int r = 0;
    while (from < to && r == 0) {
        uint64_t n = 0, n_released = image->freed.n_released;
        {
            G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(image);
            ZeroRange range = {guest_off(from), to - from, goal};
            r = zero_in_slice(self, view, &range, &n);
        }
        if (r == -ENOSPC && writeback_reclaim(self, &image->writeback, n_released)) {
            n = 0; // a table of its own found no room: again
            r = 0;
        }
        from += n;
        if (from < to)
            fiber_yield(self);
    }
    return r;
}

int view_zero_clusters(Fiber *self, Qcow2View *view, uint64_t from, uint64_t to)
{
    return zero_whole(self, view, from, to, ZEROS_UNMAPPED);
}

// Can a range that does not fill a cluster be zeroed without allocating and copying? What reads as
// zeros stays as it is, clusters of our own are written in place, whole subclusters of one that is
// not compressed get their zero bits.
static int part_is_fast(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, bool *ret_is_fast)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint64_t sub = UINT64_C(1) << g->subcluster_bits;
    while (len) {
        MappingRun run;
        bool is_fast;
        uint64_t n = MIN(len, sub - off.v % sub);
        int r = mapping_find(self, view, off, n, &run);
        if (r < 0)
            return r;
        n = run.len;
        is_fast = (run.kind == QCOW2_CLUSTER_DATA && run.copied) ||
                  (n == sub && run.kind != QCOW2_CLUSTER_COMPRESSED);
        if (!is_fast)
            r = view_reads_as_zeros(self, view, off, n, &is_fast);
        if (r < 0 || !is_fast) {
            *ret_is_fast = false;
            return r;
        }
        off.v += n;
        len -= n;
    }
    return 0;
}

// A request: the part before the first whole cluster, whole clusters, the part after the last. The
// two parts are all there is when no cluster is whole.
typedef struct ZeroParts {
    GuestOff head, tail;
    uint64_t head_len, tail_len;
    uint64_t whole_from, whole_to; // equal: none
} ZeroParts;

static ZeroParts parts_of(const Qcow2View *view, GuestOff off, uint64_t len)
{
    uint64_t from, to, end = off.v + len;
    whole_clusters(view, off, len, &from, &to);
    uint64_t head_end = MIN(from, end), tail = from < to ? to : head_end;
    return (ZeroParts){
        .head = off,
        .head_len = head_end - off.v,
        .whole_from = head_end,
        .whole_to = tail,
        .tail = guest_off(tail),
        .tail_len = end - tail,
    };
}

// Whole clusters need no look.
static int refuse_unless_fast(Fiber *self, Qcow2View *view, const ZeroParts *parts)
{
    bool is_fast = true;
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
    int r = part_is_fast(self, view, parts->head, parts->head_len, &is_fast);
    if (r == 0 && is_fast)
        r = part_is_fast(self, view, parts->tail, parts->tail_len, &is_fast);
    return r < 0 || is_fast ? r : -ENOTSUP;
}

// Version 3.
static int zero_parts(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    ZeroParts parts = parts_of(view, off, len);
    int r = 0;
    if (flags & NODE_IO_FAST_ZERO)
        r = refuse_unless_fast(self, view, &parts);
    if (r == 0)
        r = zero_part(self, view, parts.head, parts.head_len);
    if (r == 0)
        r = zero_whole(self, view, parts.whole_from, parts.whole_to,
                       flags & NODE_IO_NO_UNMAP ? ZEROS_ALLOCATED : ZEROS_UNMAPPED);
    if (r == 0)
        r = zero_part(self, view, parts.tail, parts.tail_len);
    return r;
}

int view_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Qcow2View *view = view_of(node);
    int r = image_begin_change(self, view->image);
    if (r < 0)
        return r;
    if (image_has_raw_data(view->image) && (flags & NODE_IO_FAST_ZERO))
        r = -ENOTSUP; // the file system may have to write them out
    else if (view->image->header.version >= 3)
        r = zero_parts(self, view, off, len, flags);
    else
        r = flags & NODE_IO_FAST_ZERO ? -ENOTSUP : write_zeros(self, view, off, len);
    return r == 0 && (flags & NODE_IO_FUA) ? mapping_make_durable(self, view, off, len) : r;
}

int view_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags)
{
    Qcow2View *view = view_of(node);
    int r = image_begin_change(self, view->image);
    if (r < 0)
        return r;
    uint64_t from, to;
    whole_clusters(view, off, len, &from, &to);
    if (from < to && !(view->image->header.version < 3 && node->backing))
        r = zero_whole(self, view, from, to, ZEROS_UNMAPPED);
    return r == 0 && (flags & NODE_IO_FUA) ? mapping_make_durable(self, view, off, len) : r;
}

int view_uncover(Fiber *self, Node *node, GuestOff off, uint64_t len)
{
    Qcow2View *view = view_of(node);
    if (view->image->data_file)
        return -ENOTSUP; // data would go before the entry does
    int r = image_begin_change(self, view->image);
    if (r < 0)
        return r;
    uint64_t from, to;
    whole_clusters(view, off, len, &from, &to);
    return zero_whole(self, view, from, to, UNCOVERED);
}
