// SPDX-License-Identifier: LGPL-2.1-or-later
// Filling the head: NodeFillOps. What is written to clusters that nothing names yet needs no lock;
// only when entries change are their clusters locked, and then those are linked that are still
// unallocated. The rest is given back: nothing ever named it, and its I/O has ended. Where a guest
// was faster with some subclusters of a cluster, the others are still missing then: again.
//
//     take                     │ caller: write │ link
//     look up → take clusters  │               │ begin the change → set entries → end → give back
//
// Where a range has one place only (a data file of its own; subclusters of a cluster that is there)
// what a guest wrote meanwhile would be lost: there the write goes under the lock, too, the same
// way as a guest's (view_write_unallocated()).
//
// Write order (docs/ordering.md §16): as for guests' writes (§1, §2). In fibers on the image's
// loop.

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "chain-core/mutant.h"
#include "qcow2/allocator.h"
#include "qcow2/open.h"
#include "qcow2/view.h"

static uint64_t fill_granularity(Node *node)
{
    return UINT64_C(1) << view_of(node)->image->geometry.subcluster_bits;
}

static bool has_host(const Qcow2Geometry *g, const MappingPlace *place, uint32_t i)
{
    Qcow2L2Entry e = qcow2_l2_entry_decode(g, place->slice, place->index + i);
    return e.kind == QCOW2_CLUSTER_DATA;
}

// Extended L2, nothing allocated in `range`, looked up just now: clusters that are there, of which
// other subclusters are in use, are written in place; what comes before the next such cluster is
// taken.
static void split_at_hosts(Qcow2View *view, NodeFillPlace *range)
{
    const Qcow2Geometry *g = &view->image->geometry;
    MappingPlace place;
    int r = mapping_try_find_place(view, range->off, &place);
    assert(r == 0);
    if (!place.slice)
        return;
    ClusterSpan span = cluster_span_make(g, range->off, range->len);
    uint32_t n = 0;
    if (has_host(g, &place, 0)) {
        range->kind = NODE_FILL_IN_PLACE;
        n = 1;
    }
    while (!n || (range->kind == NODE_FILL_TAKEN && n < span.n && !has_host(g, &place, n)))
        n++;
    range->len = cluster_span_head(g, span, n).len;
}

// What is at `off`: owned, to be written in place, or (nothing taken yet) to be taken.
static int look(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, NodeFillPlace *ret_place)
{
    const Qcow2Geometry *g = &view->image->geometry;
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
    MappingRun run;
    int r = mapping_find(self, view, off, len, &run);
    if (r < 0)
        return r;
    *ret_place = (NodeFillPlace){.off = off, .len = run.len, .kind = NODE_FILL_OWNED};
    if (run.kind != QCOW2_CLUSTER_UNALLOCATED)
        return 0;
    ret_place->kind = g->external_data ? NODE_FILL_IN_PLACE : NODE_FILL_TAKEN;
    if (g->extended_l2 && !g->external_data)
        split_at_hosts(view, ret_place);
    return 0;
}

// The rest of the last cluster, past the view's end, reads as zeros.
static int zero_rest(Fiber *self, Qcow2View *view, const NodeFillPlace *place)
{
    uint64_t mask = view->image->geometry.cluster_bytes - 1;
    uint64_t end = place->host.v + place->len;
    if (place->off.v + place->len != view->node.size_bytes || !(end & mask))
        return 0;
    return file_zero(self, place->file, host_off(end), (end | mask) + 1 - end, 0);
}

static int take_clusters(Fiber *self, Qcow2View *view, NodeFillPlace *place)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    Allocation taken;
    uint64_t first = place->off.v >> g->cluster_bits;
    uint64_t n = ((place->off.v + place->len - 1) >> g->cluster_bits) - first + 1;
    int r = allocator_take(self, image, n, &taken);
    if (r < 0)
        return r;
    if (taken.range.n < n)
        place->len = ((first + taken.range.n) << g->cluster_bits) - place->off.v;
    place->file = image->file;
    place->host =
        host_off(image_cluster_off(image, taken.range.first).v + qcow2_in_cluster(g, place->off));
    if (!taken.is_zeroed)
        r = zero_rest(self, view, place);
    if (r < 0)
        allocator_release(self, image, taken.range);
    return r;
}

static int fill_take(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeFillPlace *ret_place)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    int r = image_begin_change(self, image);
    while (r == 0) {
        uint64_t n_released = image->freed.n_released;
        NodeFillPlace place;
        r = look(self, view, off, len, &place);
        if (r == 0 && place.kind == NODE_FILL_TAKEN)
            r = take_clusters(self, view, &place);
        if (r == 0) {
            *ret_place = place;
            return 0;
        }
        if (r == -ENOSPC && writeback_reclaim(self, &image->writeback, n_released))
            r = 0;
    }
    return r;
}

// --- linking -------------------------------------------------------------------------------------

enum { MAX_SPAN = 512 }; // entries of a slice

// What entry `i` of the change becomes when the cluster at `host` is its own; false: it is not any
// more what it was when the cluster was taken.
static bool plan_link(const MappingChange *change, uint32_t i, HostOff host,
                      Qcow2L2Entry *ret_entry)
{
    const Qcow2Geometry *g = &change->view->image->geometry;
    const ClusterSpan *span = &change->span;
    Qcow2L2Entry e = mapping_get(change, i);
    if (e.kind != QCOW2_CLUSTER_UNALLOCATED && !MUTANT("fill-links-only-unallocated"))
        return false;
    if (g->extended_l2) {
        uint64_t start = cluster_span_cluster(g, span, i).v;
        e.alloc_bitmap =
            ~e.zero_bitmap & cluster_subclusters(g, start, span->off.v, span->off.v + span->len);
        if (!e.alloc_bitmap)
            return false;
    }
    e.kind = QCOW2_CLUSTER_DATA;
    e.copied = true;
    e.host = host;
    *ret_entry = e;
    return true;
}

// Subclusters: a guest was faster with some of those of entry `i`, and others are still missing.
static bool lacks_more(const MappingChange *change, uint32_t i)
{
    const Qcow2Geometry *g = &change->view->image->geometry;
    const ClusterSpan *span = &change->span;
    Qcow2L2Entry e = mapping_get(change, i);
    if (!g->extended_l2 || e.kind != QCOW2_CLUSTER_DATA || MUTANT("fill-goes-on-at-subclusters"))
        return false;
    uint64_t start = cluster_span_cluster(g, span, i).v;
    return cluster_subclusters(g, start, span->off.v, span->off.v + span->len) &
           ~(e.alloc_bitmap | e.zero_bitmap);
}

// Gives back those of the `n` clusters from `first` on whose bit in `linked` is 0.
static void release_others(Fiber *self, Qcow2Image *image, uint64_t first, uint32_t n,
                           const bool *linked)
{
    for (uint32_t i = 0, end; i < n; i = end + 1) {
        for (end = i; end < n && !linked[end];)
            end++;
        if (end > i)
            allocator_release(self, image, (ClusterRange){first + i, end - i});
    }
}

// The clusters from `first` on hold what `span` shows. 1: part of it is still missing.
static int link_span(Fiber *self, Qcow2View *view, const ClusterSpan *span, uint64_t first)
{
    Qcow2Image *image = view->image;
    bool linked[MAX_SPAN] = {false};
    MappingChange change;
    bool is_missing = false;
    assert(span->n <= MAX_SPAN);
    {
        G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(image);
        int r = mapping_begin(self, view, span, &change);
        if (r < 0)
            return r;
        for (uint32_t i = 0; i < span->n; i++) {
            Qcow2L2Entry e;
            linked[i] = plan_link(&change, i, image_cluster_off(image, first + i), &e);
            if (linked[i])
                mapping_set(&change, i, &e);
            else
                is_missing |= lacks_more(&change, i);
        }
        mapping_end(&change);
    }
    release_others(self, image, first, span->n, linked);
    return is_missing;
}

static int fill_link(Fiber *self, Node *node, const NodeFillPlace *place, bool is_written)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint64_t first = image_cluster_of(image, place->host);
    uint64_t end = image_cluster_of(image, host_off(place->host.v + place->len - 1)) + 1;
    GuestOff off = place->off;
    uint64_t left = place->len;
    bool is_missing = false;
    int r = is_written ? 0 : -ECANCELED;
    while (left && r >= 0) {
        uint64_t n_released = image->freed.n_released;
        ClusterSpan span = cluster_span_make(g, off, left);
        r = link_span(self, view, &span, first);
        if (r >= 0) {
            is_missing |= r;
            first += span.n;
            off.v += span.len;
            left -= span.len;
        } else if (r == -ENOSPC && writeback_reclaim(self, &image->writeback, n_released)) {
            r = 0; // a table found no room: again
        }
    }
    if (first < end)
        allocator_release(self, image, (ClusterRange){first, end - first});
    if (!is_written)
        return 0;
    return r < 0 ? r : is_missing;
}

// --- writing in place, zeros ---------------------------------------------------------------------

static int fill_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len)
{
    return view_write_unallocated(self, view_of(node), off, buf, len);
}

// Zeros where nothing is.
static bool plan_zero(const MappingChange *change, uint32_t i, Qcow2L2Entry *ret_entry)
{
    const Qcow2Geometry *g = &change->view->image->geometry;
    const ClusterSpan *span = &change->span;
    Qcow2L2Entry e = mapping_get(change, i);
    if (g->extended_l2 && (e.kind == QCOW2_CLUSTER_UNALLOCATED || e.kind == QCOW2_CLUSTER_DATA)) {
        uint64_t start = cluster_span_cluster(g, span, i).v;
        uint32_t old = e.zero_bitmap;
        e.zero_bitmap |=
            ~e.alloc_bitmap & cluster_subclusters(g, start, span->off.v, span->off.v + span->len);
        *ret_entry = e;
        return e.zero_bitmap != old;
    }
    if (e.kind != QCOW2_CLUSTER_UNALLOCATED && !MUTANT("fill-zeroes-only-unallocated"))
        return false;
    *ret_entry = (Qcow2L2Entry){.kind = QCOW2_CLUSTER_ZERO};
    return true;
}

// From `off` on, as far as one look-up and one slice go.
static int zero_some(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, uint64_t *ret_len)
{
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
    MappingRun run;
    MappingChange change;
    int r = mapping_find(self, view, off, len, &run);
    if (r < 0)
        return r;
    *ret_len = run.len;
    if (run.kind != QCOW2_CLUSTER_UNALLOCATED)
        return 0;
    ClusterSpan span = cluster_span_make(&view->image->geometry, off, run.len);
    *ret_len = span.len;
    r = mapping_begin(self, view, &span, &change);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < span.n; i++) {
        Qcow2L2Entry e;
        if (plan_zero(&change, i, &e))
            mapping_set(&change, i, &e);
    }
    mapping_end(&change);
    return 0;
}

static int fill_zero(Fiber *self, Node *node, GuestOff off, uint64_t len)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    if (image->header.version < 3 || image_has_raw_data(image))
        return -ENOTSUP;
    int r = image_begin_change(self, image);
    while (len && r == 0) {
        uint64_t n = 0, n_released = image->freed.n_released;
        r = zero_some(self, view, off, len, &n);
        if (r == -ENOSPC && writeback_reclaim(self, &image->writeback, n_released)) {
            n = 0;
            r = 0;
        }
        off.v += n;
        len -= n;
        if (len)
            fiber_yield(self);
    }
    return r;
}

const NodeFillOps view_fill_ops = {
    .granularity = fill_granularity,
    .take = fill_take,
    .link = fill_link,
    .write = fill_write,
    .zero = fill_zero,
};
