// SPDX-License-Identifier: LGPL-2.1-or-later
// Writing to the head. A cluster (or, with extended L2, a subcluster) that the image owns alone is
// written in place; everything else is an allocating write:
//
//     begin the change of the L2 entries → plan (pure, from the entries) → take host clusters →
//     read the edges that the write does not cover → one host write of edges and data → set the
//     entries → end
//
// Write order (docs/ordering.md §1): an L2 entry is set only after the host write has completed, so
// every write-back that carries the entry syncs the data first. If a step fails the clusters taken
// are given back and the guest sees the old content.
//
// With an external data file no host clusters are taken: data lies in that file where the guest has
// it, as QEMU places it, and nothing counts it. In fibers on the image's loop.

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "chain-core/mutant.h"
#include "qcow2/allocator.h"
#include "qcow2/open.h"
#include "qcow2/view.h"

// What is left of a request.
typedef struct GuestWrite {
    Qcow2View *view;
    GuestOff off;
    size_t len;
    const uint8_t *buf;     // the bytes; or NULL, and they lie at
    const NodeExtent *from; // `len` bytes of it
} GuestWrite;

// What an allocating write does.
typedef struct WritePlan {
    ClusterSpan span;            // the head of the request's; no clusters: nothing is left to do
    bool needs_clusters;         // else `host` is the cluster already owned, and the span has one
    bool is_zeroed;              // the host reads as zeros there
    HostOff host;                // of the span's first cluster
    uint64_t cow_start, cow_end; // guest bytes that the host write must make valid, ⊇ the data
} WritePlan;

static bool has_host(const Qcow2L2Entry *e)
{
    return e->kind == QCOW2_CLUSTER_DATA || e->kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
}

static bool has_own_host(const Qcow2L2Entry *e)
{
    return has_host(e) && e->copied;
}

// Where the bytes to be made valid begin or end, for the cluster with entry `e` in which `at` lies.
// A cluster that is copied whole (shared, compressed) extends to its border; otherwise the border
// of the subcluster, or `at` itself if that subcluster has valid data in place.
static uint64_t cow_border(const Qcow2Geometry *g, const Qcow2L2Entry *e, uint64_t at, bool is_end)
{
    bool whole = (has_host(e) && !e->copied) || e->kind == QCOW2_CLUSTER_COMPRESSED;
    uint64_t unit = whole ? g->cluster_bytes : UINT64_C(1) << g->subcluster_bits;
    if (at % unit == 0)
        return at;
    if (g->extended_l2 && has_own_host(e)) {
        uint32_t s = (at & (g->cluster_bytes - 1)) >> g->subcluster_bits;
        if (e->alloc_bitmap & UINT32_C(1) << s)
            return at;
    }
    return is_end ? at - at % unit + unit : at - at % unit;
}

// Plans for `span` from its entries in `slice`. Pure.
static int plan_write(const Qcow2Geometry *g, const void *slice, const ClusterSpan *span,
                      WritePlan *plan)
{
    Qcow2L2Entry first = qcow2_l2_entry_decode(g, slice, span->index), last = first;
    *plan = (WritePlan){.span = *span, .host = first.host};
    if (first.kind == QCOW2_CLUSTER_BAD)
        return -EIO;
    // Allocated meanwhile by another request: to be written in place, never copied over itself.
    if (first.kind == QCOW2_CLUSTER_DATA && first.copied && !g->extended_l2) {
        plan->span.n = 0;
        return 0;
    }
    plan->needs_clusters = !has_own_host(&first);
    uint32_t n = 1;
    for (; plan->needs_clusters && n < span->n; n++) {
        Qcow2L2Entry next = qcow2_l2_entry_decode(g, slice, span->index + n);
        if (next.kind == QCOW2_CLUSTER_BAD || has_own_host(&next))
            break;
        last = next;
    }
    plan->span = cluster_span_head(g, *span, n);
    uint64_t end = span->off.v + plan->span.len;
    plan->cow_start = cow_border(g, &first, span->off.v, false);
    plan->cow_end = cow_border(g, &last, end, true);
    return 0;
}

// Guest bytes around the data that go into the same host write. Less than a cluster each. Past the
// view's end the host cluster's rest reads as zeros.
typedef struct Edge {
    uint64_t off, len;
    bool is_zero;   // its present content
    bool is_needed; // must be written: not zeros that the host has already
} Edge;

static int edge_init(Fiber *self, Qcow2View *view, Edge *edge, bool host_zeroed)
{
    uint64_t size = view->node.size_bytes;
    edge->is_zero = true;
    int r = 0;
    if (edge->len && edge->off < size)
        r = view_reads_as_zeros(self, view, guest_off(edge->off), MIN(edge->len, size - edge->off),
                                &edge->is_zero);
    edge->is_needed = edge->len && !(edge->is_zero && host_zeroed);
    return r;
}

// Its present content, which may reach past the view's end.
static int edge_read(Fiber *self, Qcow2View *view, const Edge *edge, uint8_t *buf, IoBatch *batch)
{
    uint64_t size = view->node.size_bytes;
    uint64_t inside = edge->off < size && !edge->is_zero ? MIN(edge->len, size - edge->off) : 0;
    if (inside < edge->len)
        memset(buf + inside, 0, edge->len - inside);
    if (!inside)
        return 0;
    file_debug_event(view->image->file, DEBUG_COW_READ);
    return view_read_start(self, &view->node, guest_off(edge->off), buf, inside, batch);
}

enum {
    // Data shorter than this is read over, so that both edges come with one read.
    READ_OVER_BYTES = 16 << 10,
};

// Edges and data as one host write.
typedef struct HostWrite {
    Qcow2View *view;
    Edge head, tail;
    HostOff host; // of the span's first cluster
    uint64_t off, len;
    const uint8_t *buf;
} HostWrite;

static uint64_t host_write_start(const HostWrite *w)
{
    return w->head.is_needed ? w->head.off : w->off;
}

static int host_write_send(Fiber *self, const HostWrite *w, const struct iovec *iov, unsigned n)
{
    IoBatch batch;
    uint64_t in_cluster = host_write_start(w) & (w->view->image->geometry.cluster_bytes - 1);
    io_batch_init(&batch, self);
    if (w->head.is_needed || w->tail.is_needed)
        file_debug_event(image_data_file(w->view->image), DEBUG_COW_WRITE);
    file_write_data_start(image_data_file(w->view->image), host_off(w->host.v + in_cluster), iov, n,
                          &batch);
    return io_batch_wait(self, &batch);
}

// One cluster: edges and data are put together in one buffer, aligned for direct I/O.
static int write_one_cluster(Fiber *self, const HostWrite *w)
{
    const Edge *head = &w->head, *tail = &w->tail;
    uint8_t *whole = image_take_cow_buffer(w->view->image);
    if (!whole)
        return -ENOMEM;
    uint64_t from = host_write_start(w), end = w->off + w->len;
    uint64_t to = end + (tail->is_needed ? tail->len : 0);
    IoBatch batch;
    io_batch_init(&batch, self);
    int r = 0;
    if (head->is_needed && tail->is_needed && !head->is_zero && !tail->is_zero &&
        w->len < READ_OVER_BYTES) {
        Edge all = {.off = from, .len = to - from};
        r = edge_read(self, w->view, &all, whole, &batch);
    } else {
        if (head->is_needed)
            r = edge_read(self, w->view, head, whole, &batch);
        if (r == 0 && tail->is_needed)
            r = edge_read(self, w->view, tail, whole + (end - from), &batch);
    }
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0) {
        memcpy(whole + (w->off - from), w->buf, w->len);
        struct iovec iov = {whole, to - from};
        r = host_write_send(self, w, &iov, 1);
    }
    image_put_cow_buffer(w->view->image, whole);
    return r;
}

// Reads an edge into a buffer of its own.
static int edge_read_new(Fiber *self, Qcow2View *view, const Edge *edge, uint8_t **ret_buf,
                         IoBatch *batch)
{
    *ret_buf = image_take_cow_buffer(view->image);
    return *ret_buf ? edge_read(self, view, edge, *ret_buf, batch) : -ENOMEM;
}

// Several clusters: the data goes from where it is, between the edges.
static int write_clusters(Fiber *self, const HostWrite *w)
{
    uint8_t *edges[2] = {NULL, NULL};
    struct iovec iov[3];
    unsigned n = 0;
    IoBatch batch;
    io_batch_init(&batch, self);
    int r = 0;
    if (w->head.is_needed) {
        r = edge_read_new(self, w->view, &w->head, &edges[0], &batch);
        iov[n++] = (struct iovec){edges[0], w->head.len};
    }
    iov[n++] = (struct iovec){(void *)w->buf, w->len};
    if (r == 0 && w->tail.is_needed) {
        r = edge_read_new(self, w->view, &w->tail, &edges[1], &batch);
        iov[n++] = (struct iovec){edges[1], w->tail.len};
    }
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0)
        r = host_write_send(self, w, iov, n);
    image_put_cow_buffer(w->view->image, edges[0]);
    image_put_cow_buffer(w->view->image, edges[1]);
    return r;
}

static int write_host(Fiber *self, Qcow2View *view, const WritePlan *plan, const uint8_t *buf)
{
    uint64_t off = plan->span.off.v, end = off + plan->span.len;
    HostWrite w = {
        .view = view,
        .head = {.off = plan->cow_start, .len = off - plan->cow_start},
        .tail = {.off = end, .len = plan->cow_end - end},
        .host = plan->host,
        .off = off,
        .len = plan->span.len,
        .buf = buf,
    };
    int r = edge_init(self, view, &w.head, plan->is_zeroed);
    if (r == 0)
        r = edge_init(self, view, &w.tail, plan->is_zeroed);
    if (r < 0)
        return r;
    bool is_one = plan->span.n == 1 && (w.head.is_needed || w.tail.is_needed);
    return is_one ? write_one_cluster(self, &w) : write_clusters(self, &w);
}

// The same from a file. There are no edges. 1: the image shares the bytes now.
static int copy_to_host(Fiber *self, Qcow2View *view, const WritePlan *plan, const NodeExtent *from)
{
    uint64_t in_cluster = qcow2_in_cluster(&view->image->geometry, plan->span.off);
    return file_copy(self, from->file, from->host, image_data_file(view->image),
                     host_off(plan->host.v + in_cluster), plan->span.len);
}

// Makes the entries name what was written. Nothing suspends.
static void link_clusters(MappingChange *change, const WritePlan *plan)
{
    const Qcow2Geometry *g = &change->view->image->geometry;
    for (uint32_t i = 0; i < plan->span.n; i++) {
        Qcow2L2Entry old = mapping_get(change, i), e = old;
        e.kind = QCOW2_CLUSTER_DATA;
        e.copied = true;
        e.compressed_bytes = 0;
        e.host = host_off(plan->host.v + ((uint64_t)i << g->cluster_bits));
        if (g->extended_l2) {
            uint32_t valid = cluster_subclusters(g, cluster_span_cluster(g, &plan->span, i).v,
                                                 plan->cow_start, plan->cow_end);
            e.alloc_bitmap = plan->needs_clusters ? valid : old.alloc_bitmap | valid;
            e.zero_bitmap =
                (old.kind == QCOW2_CLUSTER_COMPRESSED ? 0 : old.zero_bitmap) & ~e.alloc_bitmap;
        }
        mapping_set(change, i, &e);
    }
}

// Takes clusters for the plan. Fewer at one place than wanted: it becomes one for those, and the
// caller comes again for the rest.
static int take_clusters(Fiber *self, const MappingChange *change, WritePlan *plan,
                         ClusterRange *ret_range)
{
    Qcow2Image *image = change->view->image;
    Allocation taken;
    int r = allocator_take(self, image, plan->span.n, &taken);
    if (r < 0)
        return r;
    if (taken.range.n < plan->span.n) {
        ClusterSpan fewer = cluster_span_head(&image->geometry, plan->span, taken.range.n);
        r = plan_write(&image->geometry, change->slice->data, &fewer, plan);
        assert(r == 0 && plan->span.n == taken.range.n);
    }
    plan->host = image_cluster_off(image, taken.range.first);
    plan->is_zeroed = taken.is_zeroed;
    *ret_range = taken.range;
    return 0;
}

static bool has_edges(const WritePlan *plan)
{
    return plan->cow_start < plan->span.off.v || plan->cow_end > plan->span.off.v + plan->span.len;
}

// With the change begun: plan, take, write, link. *ret_len: bytes done.
static int allocate_and_write(Fiber *self, const GuestWrite *w, MappingChange *change,
                              size_t *ret_len)
{
    Qcow2Image *image = w->view->image;
    WritePlan plan;
    ClusterRange taken = {0};
    int r = plan_write(&image->geometry, change->slice->data, &change->span, &plan);
    if (r < 0)
        return image_mark_corrupt(
            image, "L2 entry for guest offset %#" G_GINT64_MODIFIER "x is damaged", w->off.v);
    for (uint32_t i = 0; i < plan.span.n && r == 0; i++)
        r = mapping_check(change, i);
    if (r < 0 || !plan.span.n)
        return r;
    if (w->from && has_edges(&plan))
        return -ENOTSUP;
    if (plan.needs_clusters && image->geometry.external_data)
        plan.host = host_off(plan.span.first << image->geometry.cluster_bits);
    else if (plan.needs_clusters)
        r = take_clusters(self, change, &plan, &taken);
    if (r < 0)
        return r;
    if (MUTANT("data-before-entry"))
        link_clusters(change, &plan);
    r = w->from ? copy_to_host(self, w->view, &plan, w->from)
                : write_host(self, w->view, &plan, w->buf);
    if (r < 0) {
        if (taken.n)
            allocator_release(self, image, taken);
        return r;
    }
    link_clusters(change, &plan);
    *ret_len = plan.span.len;
    return r;
}

// An allocating write of the request's first part, at most up to the end of its L2 slice. *ret_len:
// bytes done; 0 when the clusters turned out to be writable in place after all (another request
// allocated them).
static int write_allocating(Fiber *self, const GuestWrite *w, size_t *ret_len)
{
    *ret_len = 0;
    MappingChange change;
    ClusterSpan span = cluster_span_make(&w->view->image->geometry, w->off, w->len);
    int r = mapping_begin(self, w->view, &span, &change);
    if (r < 0)
        return r;
    r = allocate_and_write(self, w, &change, ret_len);
    mapping_end(&change);
    return r;
}

// No room: 0 when it is worth another try. Our own pin would keep what was freed from being
// released.
static int reclaim(Fiber *self, Qcow2Image *image, uint64_t n_released, IoBatch *batch)
{
    int r = io_batch_wait(self, batch);
    if (r == 0 && !writeback_reclaim(self, &image->writeback, n_released))
        r = -ENOSPC;
    image_pin(self, image, batch);
    return r;
}

// The first part of a request: *ret_len bytes of it are written, or `batch` does it. 1: the image
// shares them now.
static inline int write_some(Fiber *self, const GuestWrite *w, IoBatch *batch, size_t *ret_len)
{
    Qcow2Image *image = w->view->image;
    MappingRun run;
    int r = mapping_find(self, w->view, w->off, w->len, &run);
    if (r < 0)
        return r;
    if (G_LIKELY(run.kind == QCOW2_CLUSTER_DATA && run.copied)) {
        File *file = image_data_file(image);
        struct iovec iov = {(void *)w->buf, run.len};
        *ret_len = run.len;
        if (w->from)
            return file_copy(self, w->from->file, w->from->host, file, run.host, run.len);
        file_write_data_start(file, run.host, &iov, 1, batch);
        return 0;
    }
    uint64_t n_released = image->freed.n_released;
    r = write_allocating(self, w, ret_len);
    return r == -ENOSPC ? reclaim(self, image, n_released, batch) : r;
}

int view_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
               NodeIoFlags flags)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    GuestWrite w = {view, off, len, buf, NULL};
    IoBatch batch;
    int r = image_begin_change(self, image);
    io_batch_init(&batch, self);
    if (!MUTANT("writes-pin"))
        image_pin(self, image, &batch);
    while (w.len && r == 0) {
        size_t n = 0;
        r = write_some(self, &w, &batch, &n);
        w.off.v += n;
        w.buf += n;
        w.len -= n;
    }
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0 && (flags & NODE_IO_FUA))
        r = mapping_make_durable(self, view, off, w.off.v - off.v);
    return r;
}

int view_write_extent(Fiber *self, Node *node, GuestOff off, const NodeExtent *from,
                      uint64_t *ret_len)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    GuestWrite w = {view, off, from->len, NULL, from};
    IoBatch batch;
    size_t n = 0;
    if (!file_may_copy(from->file, from->host, image_data_file(image), from->len))
        return -ENOTSUP;
    int r = image_begin_change(self, image);
    io_batch_init(&batch, self);
    if (!MUTANT("writes-pin"))
        image_pin(self, image, &batch);
    while (r == 0 && n == 0)
        r = write_some(self, &w, &batch, &n);
    int r2 = io_batch_wait(self, &batch);
    *ret_len = n;
    return r2 < 0 ? r2 : r;
}

// [off, off+len) lies in one slice and had nothing allocated when that was looked up last.
static int write_if_unallocated(Fiber *self, const GuestWrite *w, size_t *ret_len)
{
    MappingChange change;
    MappingPlace place;
    MappingRun run;
    *ret_len = 0;
    ClusterSpan span = cluster_span_make(&w->view->image->geometry, w->off, w->len);
    int r = mapping_begin(self, w->view, &span, &change);
    if (r < 0)
        return r;
    r = mapping_try_find_place(w->view, span.off, &place);
    assert(r == 0 && place.slice);
    r = mapping_decode(w->view, &place, span.off, span.len, &run);
    bool is_free = run.kind == QCOW2_CLUSTER_UNALLOCATED && run.len == span.len;
    if (r == 0 && (is_free || MUTANT("fill-looks-again-in-place")))
        r = allocate_and_write(self, w, &change, ret_len);
    mapping_end(&change);
    return r;
}

int view_write_unallocated(Fiber *self, Qcow2View *view, GuestOff off, const void *buf, size_t len)
{
    Qcow2Image *image = view->image;
    IoBatch batch;
    int r = image_begin_change(self, image);
    io_batch_init(&batch, self);
    image_pin(self, image, &batch);
    while (len && r == 0) {
        MappingRun run;
        size_t n = 0;
        r = mapping_find(self, view, off, len, &run);
        if (r == 0 && run.kind != QCOW2_CLUSTER_UNALLOCATED) {
            n = run.len;
        } else if (r == 0) {
            uint64_t n_released = image->freed.n_released;
            GuestWrite w = {view, off, run.len, buf, NULL};
            r = write_if_unallocated(self, &w, &n);
            if (r == -ENOSPC)
                r = reclaim(self, image, n_released, &batch);
        }
        off.v += n;
        buf = (const uint8_t *)buf + n;
        len -= n;
    }
    int r2 = io_batch_wait(self, &batch);
    return r < 0 ? r : r2;
}

int view_flush(Fiber *self, Node *node)
{
    Qcow2Image *image = view_of(node)->image;
    file_debug_event(image->file, DEBUG_FLUSH_TO_OS);
    return image->writable ? writeback_run(self, &image->writeback) : 0;
}
