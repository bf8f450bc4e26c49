// SPDX-License-Identifier: LGPL-2.1-or-later
// Writing to the head. A cluster (or, with extended L2, a subcluster) that the image owns alone is
// written in place; everything else is an allocating write:
//
//     lock the guest clusters → plan (pure, from the L2 entries) → take host clusters → read the
//     edges that the write does not cover → one host write of edges and data → L2 entries in memory
//     → unlock
//
// Write order (docs/ordering.md §1): the L2 entry is made only after the host write has completed,
// so every write-back that carries the entry syncs the data first. What the entry named before is
// freed through freed_add(). If a step fails the clusters taken are given back and the guest
// sees the old content. In fibers on the image's loop.

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "qcow2/allocator.h"
#include "qcow2/view.h"
#include "qcow2/writeback.h"

// What an allocating write does to a run of clusters of one L2 slice.
typedef struct WritePlan {
    uint32_t n_clusters;
    bool needs_clusters; // else `host` is the cluster already owned (n_clusters is 1)
    HostOff host;
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

// Bits of the subclusters that [from, to) touches in the cluster at `cluster_start` (guest bytes).
static uint32_t subcluster_mask(const Qcow2Geometry *g, uint64_t cluster_start, uint64_t from,
                                uint64_t to)
{
    from = MAX(from, cluster_start);
    to = MIN(to, cluster_start + g->cluster_bytes);
    if (from >= to)
        return 0;
    uint32_t first = (from - cluster_start) >> g->subcluster_bits;
    uint32_t last = (to - 1 - cluster_start) >> g->subcluster_bits;
    return (uint32_t)((UINT64_C(2) << last) - (UINT64_C(1) << first));
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

// Plans for [off, off+len) from the entries at `index` of `slice`; the range lies inside the slice.
// Pure.
static int plan_write(const Qcow2Geometry *g, const void *slice, uint32_t index, GuestOff off,
                      uint64_t len, WritePlan *plan)
{
    uint64_t end = off.v + len, start = off.v - qcow2_in_cluster(g, off);
    uint32_t n_max = (end - start + g->cluster_bytes - 1) >> g->cluster_bits;
    Qcow2L2Entry first = qcow2_l2_entry_decode(g, slice, index), last = first;
    if (first.kind == QCOW2_CLUSTER_BAD)
        return -EIO;
    // Allocated meanwhile by another request: to be written in place, never copied over itself.
    plan->n_clusters = 0;
    if (first.kind == QCOW2_CLUSTER_DATA && first.copied && !g->extended_l2)
        return 0;
    plan->needs_clusters = !has_own_host(&first);
    plan->host = first.host;
    plan->n_clusters = 1;
    while (plan->needs_clusters && plan->n_clusters < n_max) {
        Qcow2L2Entry next = qcow2_l2_entry_decode(g, slice, index + plan->n_clusters);
        if (next.kind == QCOW2_CLUSTER_BAD || has_own_host(&next))
            break;
        last = next;
        plan->n_clusters++;
    }
    end = MIN(end, start + ((uint64_t)plan->n_clusters << g->cluster_bits));
    plan->cow_start = cow_border(g, &first, off.v, false);
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

// Present content of [from, to), which may reach past the view's end; `known_zero`: no need to
// look.
static int read_old(Fiber *self, Qcow2View *view, uint64_t from, uint64_t to, bool known_zero,
                    uint8_t *buf, IoBatch *batch)
{
    uint64_t inside = from < view->node.size_bytes ? MIN(to, view->node.size_bytes) - from : 0;
    if (known_zero)
        inside = 0;
    if (inside < to - from)
        memset(buf + inside, 0, to - from - inside);
    return inside ? view_read_start(self, &view->node, guest_off(from), buf, inside, batch) : 0;
}

enum {
    // Data shorter than this is read over, so that both edges come with one read.
    READ_OVER_BYTES = 16 << 10,
};

// One cluster: edges and data are put together in one buffer, aligned for direct I/O.
static int write_one_cluster(Fiber *self, Qcow2View *view, const Edge *head, const Edge *tail,
                             HostOff host, GuestOff off, const void *buf, size_t len)
{
    uint8_t *whole = image_get_cow_buffer(view->image);
    if (!whole)
        return -ENOMEM;
    uint64_t from = head->is_needed ? head->off : off.v;
    uint64_t to = off.v + len + (tail->is_needed ? tail->len : 0);
    IoBatch batch;
    io_batch_init(&batch, self);
    int r = 0;
    if (head->is_needed && tail->is_needed && !head->is_zero && !tail->is_zero &&
        len < READ_OVER_BYTES) {
        r = read_old(self, view, from, to, false, whole, &batch);
    } else {
        if (head->is_needed)
            r = read_old(self, view, from, off.v, head->is_zero, whole, &batch);
        if (r == 0 && tail->is_needed)
            r = read_old(self, view, off.v + len, to, tail->is_zero, whole + (off.v + len - from),
                         &batch);
    }
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0) {
        memcpy(whole + (off.v - from), buf, len);
        struct iovec iov = {whole, to - from};
        uint64_t in_cluster = from & (view->image->geometry.cluster_bytes - 1);
        file_write_start(view->image->file, host_off(host.v + in_cluster), &iov, 1, &batch);
        r = io_batch_wait(self, &batch);
    }
    image_put_cow_buffer(view->image, whole);
    return r;
}

// Several clusters: the data goes from where it is, between the edges.
static int write_clusters(Fiber *self, Qcow2View *view, const Edge *head, const Edge *tail,
                          HostOff host, GuestOff off, const void *buf, size_t len)
{
    uint8_t *edges[2] = {NULL, NULL};
    struct iovec iov[3];
    unsigned n = 0;
    uint64_t from = head->is_needed ? head->off : off.v;
    IoBatch batch;
    io_batch_init(&batch, self);
    int r = 0;
    if (head->is_needed) {
        edges[0] = image_get_cow_buffer(view->image);
        r = edges[0] ? read_old(self, view, head->off, off.v, head->is_zero, edges[0], &batch)
                     : -ENOMEM;
        iov[n++] = (struct iovec){edges[0], head->len};
    }
    iov[n++] = (struct iovec){(void *)buf, len};
    if (r == 0 && tail->is_needed) {
        edges[1] = image_get_cow_buffer(view->image);
        r = edges[1] ? read_old(self, view, tail->off, tail->off + tail->len, tail->is_zero,
                                edges[1], &batch)
                     : -ENOMEM;
        iov[n++] = (struct iovec){edges[1], tail->len};
    }
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0) {
        uint64_t in_cluster = from & (view->image->geometry.cluster_bytes - 1);
        file_write_start(view->image->file, host_off(host.v + in_cluster), iov, n, &batch);
        r = io_batch_wait(self, &batch);
    }
    image_put_cow_buffer(view->image, edges[0]);
    image_put_cow_buffer(view->image, edges[1]);
    return r;
}

// Edges and data as one host write.
static int write_host(Fiber *self, Qcow2View *view, const WritePlan *plan, bool host_zeroed,
                      GuestOff off, const void *buf, size_t len)
{
    Edge head = {.off = plan->cow_start, .len = off.v - plan->cow_start};
    Edge tail = {.off = off.v + len, .len = plan->cow_end - (off.v + len)};
    int r = edge_init(self, view, &head, host_zeroed);
    if (r == 0)
        r = edge_init(self, view, &tail, host_zeroed);
    if (r < 0)
        return r;
    if (plan->n_clusters == 1 && (head.is_needed || tail.is_needed))
        return write_one_cluster(self, view, &head, &tail, plan->host, off, buf, len);
    return write_clusters(self, view, &head, &tail, plan->host, off, buf, len);
}

bool view_old_is_sane(const Qcow2Image *image, const Qcow2L2Entry *old)
{
    ClusterRange range;
    return !cluster_range_of_entry(&image->geometry, old, &range) ||
           image_range_is_sane(image, range);
}

int view_mark_bad_target(Qcow2Image *image, GuestOff off, const Qcow2L2Entry *old)
{
    return image_mark_corrupt(image,
                              "guest offset %#" G_GINT64_MODIFIER
                              "x maps to host offset %#" G_GINT64_MODIFIER
                              "x, which is no data cluster",
                              off.v, old->host.v);
}

void view_free_old(Qcow2Image *image, const TableSlice *slice, const Qcow2L2Entry *old)
{
    ClusterRange range;
    if (cluster_range_of_entry(&image->geometry, old, &range))
        freed_add(&image->freed, range, slice->host);
}

// Makes the entries name what was written. Nothing suspends.
static void link_clusters(Qcow2Image *image, TableSlice *slice, uint32_t index, GuestOff off,
                          const WritePlan *plan, HostOff host)
{
    const Qcow2Geometry *g = &image->geometry;
    uint64_t start = off.v - qcow2_in_cluster(g, off);
    for (uint32_t i = 0; i < plan->n_clusters; i++) {
        Qcow2L2Entry old = qcow2_l2_entry_decode(g, slice->data, index + i), e = old;
        e.kind = QCOW2_CLUSTER_DATA;
        e.copied = true;
        e.compressed_bytes = 0;
        e.host = host_off(host.v + ((uint64_t)i << g->cluster_bits));
        if (g->extended_l2) {
            uint64_t cluster_start = start + ((uint64_t)i << g->cluster_bits);
            uint32_t valid = subcluster_mask(g, cluster_start, plan->cow_start, plan->cow_end);
            e.alloc_bitmap = plan->needs_clusters ? valid : old.alloc_bitmap | valid;
            e.zero_bitmap =
                (old.kind == QCOW2_CLUSTER_COMPRESSED ? 0 : old.zero_bitmap) & ~e.alloc_bitmap;
        }
        qcow2_l2_entry_encode(g, slice->data, index + i, &e);
        table_slice_set_dirty(slice, &image->writeback.parts.dirty);
        if (plan->needs_clusters)
            view_free_old(image, slice, &old);
    }
}

// With the clusters locked and the slice held: plan, take, write, link. *ret_len: bytes done (≤
// len).
static int allocate_and_write(Fiber *self, Qcow2View *view, TableSlice *slice, uint32_t index,
                              GuestOff off, const void *buf, size_t len, size_t *ret_len)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    WritePlan plan;
    int r = plan_write(g, slice->data, index, off, len, &plan);
    if (r < 0)
        return image_mark_corrupt(
            image, "L2 entry for guest offset %#" G_GINT64_MODIFIER "x is damaged", off.v);
    if (!plan.n_clusters)
        return 0;
    Allocation taken = {0};
    for (uint32_t i = 0; i < plan.n_clusters; i++) {
        Qcow2L2Entry old = qcow2_l2_entry_decode(g, slice->data, index + i);
        if (!view_old_is_sane(image, &old))
            return view_mark_bad_target(image, guest_off(off.v + ((uint64_t)i << g->cluster_bits)),
                                        &old);
    }
    if (plan.needs_clusters) {
        r = allocator_take(self, image, plan.n_clusters, &taken);
        if (r < 0)
            return r;
        if (taken.range.n < plan.n_clusters) {
            // Fewer at one place than wanted: do those, the caller comes again for the rest.
            uint64_t start = off.v - qcow2_in_cluster(g, off);
            len = MIN(len, start + (taken.range.n << g->cluster_bits) - off.v);
            r = plan_write(g, slice->data, index, off, len, &plan);
            assert(r == 0 && plan.n_clusters == taken.range.n);
        }
        plan.host = image_cluster_off(image, taken.range.first);
    }
    uint64_t start = off.v - qcow2_in_cluster(g, off);
    len = MIN(len, start + ((uint64_t)plan.n_clusters << g->cluster_bits) - off.v);
    r = write_host(self, view, &plan, taken.is_zeroed, off, buf, len);
    if (r < 0) {
        if (plan.needs_clusters)
            allocator_release(self, image, taken.range);
        return r;
    }
    link_clusters(image, slice, index, off, &plan, plan.host);
    *ret_len = len;
    return 0;
}

// An allocating write at `off`, at most up to the end of its L2 slice. *ret_len: bytes done; 0 when
// the clusters turned out to be writable in place after all (another request allocated them).
static int write_allocating(Fiber *self, Qcow2View *view, GuestOff off, const void *buf, size_t len,
                            size_t *ret_len)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint64_t first = off.v >> g->cluster_bits;
    uint64_t slice_last = first | (g->slice_entries - 1);
    uint64_t last = MIN((off.v + len - 1) >> g->cluster_bits, slice_last);
    len = MIN(len, ((last + 1) << g->cluster_bits) - off.v);
    *ret_len = 0;
    EntryChange change;
    int r = view_begin_change(self, view, first, last, &change);
    if (r < 0)
        return r;
    r = allocate_and_write(self, view, change.slice, change.index, off, buf, len, ret_len);
    view_end_change(view, &change);
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

int view_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
               NodeIoFlags flags)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    IoBatch batch;
    GuestOff start = off;
    int r = image_begin_change(self, image);
    io_batch_init(&batch, self);
    image_pin(self, image, &batch);
    while (len && r == 0) {
        ViewRun run;
        size_t n = 0;
        r = view_find_run(self, view, off, len, &run);
        if (r < 0)
            break;
        if (G_LIKELY(run.kind == QCOW2_CLUSTER_DATA && run.copied)) {
            struct iovec iov = {(void *)buf, run.len};
            file_write_start(image->file, run.host, &iov, 1, &batch);
            n = run.len;
        } else {
            uint64_t n_released = image->freed.n_released;
            r = write_allocating(self, view, off, buf, len, &n);
            if (r == -ENOSPC)
                r = reclaim(self, image, n_released, &batch);
        }
        off.v += n;
        buf = (const uint8_t *)buf + n;
        len -= n;
    }
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0 && (flags & NODE_IO_FUA))
        r = view_make_durable(self, view, start, off.v - start.v);
    return r;
}

int view_flush(Fiber *self, Node *node)
{
    Qcow2Image *image = view_of(node)->image;
    return image->writable ? writeback_run(self, &image->writeback) : 0;
}
