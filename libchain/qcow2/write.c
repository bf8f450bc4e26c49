// SPDX-License-Identifier: LGPL-2.1-or-later
// Writing to the head. A cluster (or, with extended L2, a subcluster) that the image owns alone is
// written in place; everything else is an allocating write:
//
//     lock the guest clusters → plan (pure, from the L2 entries) → take host clusters → read the
//     edges that the write does not cover → one host write of edges and data → L2 entries in memory
//     → unlock
//
// Write order (docs/ordering.md §1): the L2 entry is made only after the host write has completed,
// so every commit that carries the entry syncs the data first. What the entry named before is freed
// through commit_free(). If a step fails the clusters taken are given back and the guest sees the
// old content. In fibers on the image's loop.

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "qcow2/allocator.h"
#include "qcow2/commit.h"
#include "qcow2/view.h"

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

// Guest bytes around the data that go into the same host write. Past the view's end the host
// cluster's rest stays as it is: nobody reads it.
typedef struct Edge {
    uint64_t off, len;
    uint8_t *data; // NULL: nothing to write
} Edge;

// Reads an edge's present content, unless it is zeros and the host has zeros there already. Starts
// the read in `batch`.
static int edge_start(Fiber *self, Qcow2View *view, Edge *edge, bool host_zeroed, IoBatch *batch)
{
    if (!edge->len)
        return 0;
    uint64_t size = view->node.size_bytes;
    uint64_t inside = edge->off < size ? MIN(edge->len, size - edge->off) : 0;
    bool zeros = true;
    int r = inside ? view_reads_as_zeros(self, view, guest_off(edge->off), inside, &zeros) : 0;
    if (r < 0)
        return r;
    if (zeros && host_zeroed)
        return 0;
    edge->data = g_try_malloc(edge->len);
    if (!edge->data)
        return -ENOMEM;
    if (zeros || inside < edge->len)
        memset(edge->data + (zeros ? 0 : inside), 0, edge->len - (zeros ? 0 : inside));
    return zeros ? 0
                 : view_read_start(self, &view->node, guest_off(edge->off), edge->data, inside,
                                   batch);
}

// Edges and data as one host write.
static int write_host(Fiber *self, Qcow2View *view, const WritePlan *plan, HostOff host,
                      bool host_zeroed, GuestOff off, const void *buf, size_t len)
{
    const Qcow2Geometry *g = &view->image->geometry;
    Edge head = {plan->cow_start, off.v - plan->cow_start, NULL};
    Edge tail = {off.v + len, plan->cow_end - (off.v + len), NULL};
    IoBatch batch;
    io_batch_init(&batch, self);
    int r = edge_start(self, view, &head, host_zeroed, &batch);
    if (r == 0)
        r = edge_start(self, view, &tail, host_zeroed, &batch);
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0) {
        struct iovec iov[3];
        unsigned n = 0;
        uint64_t at = off.v;
        if (head.data) {
            iov[n++] = (struct iovec){head.data, head.len};
            at = head.off;
        }
        iov[n++] = (struct iovec){(void *)buf, len};
        if (tail.data)
            iov[n++] = (struct iovec){tail.data, tail.len};
        uint64_t start = off.v - qcow2_in_cluster(g, off);
        file_write_start(view->image->file, host_off(host.v + (at - start)), iov, n, &batch);
        r = io_batch_wait(self, &batch);
    }
    g_free(head.data);
    g_free(tail.data);
    return r;
}

void view_free_old(Qcow2Image *image, const Qcow2L2Entry *old)
{
    if (old->kind == QCOW2_CLUSTER_COMPRESSED) {
        uint64_t first = image_cluster_of(image, old->host);
        uint64_t last = image_cluster_of(image, host_off(old->host.v + old->compressed_bytes - 1));
        commit_free(image, (ClusterRange){first, last - first + 1});
    } else if (has_host(old)) {
        commit_free(image, (ClusterRange){image_cluster_of(image, old->host), 1});
    }
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
        if (plan->needs_clusters)
            view_free_old(image, &old);
        qcow2_l2_entry_encode(g, slice->data, index + i, &e);
    }
    table_slice_set_dirty(slice, &image->commit.dirty);
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
    ClusterRange range = {0};
    bool zeroed = false;
    if (plan.needs_clusters) {
        r = allocator_take(self, image, plan.n_clusters, &range, &zeroed);
        if (r < 0)
            return r;
        if (range.n < plan.n_clusters) {
            // Fewer at one place than wanted: do those, the caller comes again for the rest.
            uint64_t start = off.v - qcow2_in_cluster(g, off);
            len = MIN(len, start + (range.n << g->cluster_bits) - off.v);
            r = plan_write(g, slice->data, index, off, len, &plan);
            assert(r == 0 && plan.n_clusters == range.n);
        }
        plan.host = image_cluster_off(image, range.first);
    } else if (!image_host_is_sane(image, plan.host)) {
        return image_mark_corrupt(image,
                                  "guest offset %#" G_GINT64_MODIFIER
                                  "x maps to host offset %#" G_GINT64_MODIFIER
                                  "x, which is no data cluster",
                                  off.v, plan.host.v);
    }
    uint64_t start = off.v - qcow2_in_cluster(g, off);
    len = MIN(len, start + ((uint64_t)plan.n_clusters << g->cluster_bits) - off.v);
    r = write_host(self, view, &plan, plan.host, zeroed, off, buf, len);
    if (r < 0) {
        if (plan.needs_clusters)
            allocator_give_back(self, image, range);
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
    int r = commit_throttle(self, image);
    if (r < 0)
        return r;
    ClusterLock lock;
    cluster_lock(self, &image->locks, &lock, first, last);
    TableSlice *slice;
    uint32_t index;
    r = view_prepare_l2(self, view, off);
    if (r == 0)
        r = view_get_entry_for_change(self, view, off, &slice, &index);
    if (r == 0) {
        r = allocate_and_write(self, view, slice, index, off, buf, len, ret_len);
        table_slice_release(slice);
    }
    cluster_unlock(&image->locks, &lock);
    return r;
}

int view_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
               NodeIoFlags flags)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    IoBatch batch;
    int r = image->corrupt ? -EIO : 0;
    io_batch_init(&batch, self);
    image_pin(self, image, &batch);
    while (len && r == 0) {
        ViewRun run;
        size_t n;
        r = view_find_run(self, view, off, len, &run);
        if (r < 0)
            break;
        if (G_LIKELY(run.kind == QCOW2_CLUSTER_DATA && run.copied)) {
            struct iovec iov = {(void *)buf, run.len};
            file_write_start(image->file, run.host, &iov, 1, &batch);
            n = run.len;
        } else {
            r = write_allocating(self, view, off, buf, len, &n);
        }
        off.v += n;
        buf = (const uint8_t *)buf + n;
        len -= n;
    }
    int r2 = io_batch_wait(self, &batch);
    r = r < 0 ? r : r2;
    if (r == 0 && (flags & NODE_IO_FUA))
        r = view_flush(self, node);
    return r;
}

int view_flush(Fiber *self, Node *node)
{
    Qcow2Image *image = view_of(node)->image;
    return image->writable ? commit_run(self, image) : 0;
}
