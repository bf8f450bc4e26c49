// SPDX-License-Identifier: LGPL-2.1-or-later
// Streams are put one behind the other, over borders of clusters where the next host cluster can be
// had. What is left of the cluster that was begun last is used first:
//
//       begun before          │ taken now                          │
//     ┌────────────────┬──────┴──────────┬───────┬────────────────┬┴─────────
//     │ other streams  │  stream         │stream │ stream         │ next
//     └────────────────┴─────────────────┴───────┴────────────────┴──────────
//
// A cluster's refcount is the number of streams that touch it; nothing else holds a cluster that
// was begun. So it can become free while it still has room: who frees it says so before
// (image_leave_packed()), in one step with the look at its refcount, and nothing goes there any
// more. Bytes within a cluster are never used again before the cluster was free.
//
// Order on disk: refcounts before entries (docs/ordering.md §2), as for other clusters. Space is
// chosen, counted and begun in one step.

#include "qcow2/packed.h"

#include <assert.h>

#include "chain-core/mutant.h"
#include "qcow2/allocator.h"

// How many of the streams `room` bytes hold, and what they take of them.
static uint32_t count_fitting(const uint32_t *lens, uint32_t n, uint64_t room, uint64_t *ret_bytes)
{
    uint32_t i = 0;
    *ret_bytes = 0;
    for (; i < n && *ret_bytes + lens[i] <= room; i++)
        *ret_bytes += lens[i];
    return i;
}

// What is left of the cluster that was begun last.
static uint64_t room_left(const Qcow2Image *image)
{
    uint64_t cluster = image->geometry.cluster_bytes, next = image->packed_next.v;
    return next ? cluster - next % cluster : 0;
}

static uint64_t references_left(const Qcow2Image *image, const RefcountPlace *place)
{
    const Qcow2Geometry *g = &image->geometry;
    return qcow2_refcount_max(g) - qcow2_refcount_get(g, place->slice->data, place->index);
}

static void set_next(Qcow2Image *image, uint64_t end)
{
    image->packed_next = host_off(end % image->geometry.cluster_bytes ? end : 0);
}

// For the first ones, in the cluster that was begun last: how many; 0: it has no room, or there is
// none. In one step from where its refcount was found.
static uint32_t take_rest(Fiber *self, Qcow2Image *image, const uint32_t *lens, uint32_t n,
                          PackedPlace *ret_place)
{
    RefcountPlace place;
    uint64_t cluster;
    int r;
    do {
        if (room_left(image) < lens[0])
            return 0;
        cluster = image_cluster_of(image, image->packed_next);
        r = refcounts_find(self, image, cluster, &place);
    } while (r > 0);
    if (r < 0 || place.slice->is_unwritable || !references_left(image, &place)) {
        image_leave_packed(image, image_cluster_off(image, cluster), image->geometry.cluster_bytes);
        return 0;
    }
    uint64_t bytes;
    n = count_fitting(lens, MIN(n, references_left(image, &place)), room_left(image), &bytes);
    for (uint32_t i = 0; i < n; i++)
        refcounts_raise(image, place, 1);
    *ret_place = (PackedPlace){image->packed_next, n, bytes};
    set_next(image, image->packed_next.v + bytes);
    return n;
}

// Do the streams begin in the cluster that was begun last, the one before `range`? `place`: of the
// refcount of the range's first cluster. Its own lies in the same slice, or it is left.
static bool goes_on(const Qcow2Image *image, ClusterRange range, const RefcountPlace *place,
                    const uint32_t *lens, uint32_t n)
{
    uint64_t bytes;
    if (!room_left(image) || !place->index ||
        image_cluster_of(image, image->packed_next) + 1 != range.first)
        return false;
    RefcountPlace before = {place->slice, place->index - 1};
    return count_fitting(lens, n, room_left(image), &bytes) < references_left(image, &before);
}

// Each cluster of `range` has the reference of its allocation, which is that of the first stream
// that touches it. Returns the first cluster that none touches.
static uint64_t count_references(Qcow2Image *image, ClusterRange range, RefcountPlace place,
                                 const uint32_t *lens, const PackedPlace *streams)
{
    uint64_t fresh = range.first, host = streams->host.v;
    for (uint32_t i = 0; i < streams->n; host += lens[i++]) {
        uint64_t first = image_cluster_of(image, host_off(host));
        uint64_t last = image_cluster_of(image, host_off(host + lens[i] - 1));
        RefcountPlace shared = {place.slice, place.index + first - range.first};
        if (first < fresh && !MUTANT("packed-counts-each-stream"))
            refcounts_raise(image, shared, 1);
        fresh = MAX(fresh, last + 1);
    }
    return fresh;
}

// The refcount of `range`, which was taken, may be changed: nothing suspends any more.
static void place_streams(Qcow2Image *image, ClusterRange *range, RefcountPlace place,
                          const uint32_t *lens, uint32_t n, PackedPlace *ret_place)
{
    HostOff start = image_cluster_off(image, range->first);
    uint64_t end = start.v + (range->n << image->geometry.cluster_bits);
    n = MIN(n, qcow2_refcount_max(&image->geometry));
    if (goes_on(image, *range, &place, lens, n))
        start = image->packed_next;
    ret_place->host = start;
    ret_place->n = count_fitting(lens, n, end - start.v, &ret_place->bytes);
    assert(ret_place->n);
    uint64_t fresh = count_references(image, *range, place, lens, ret_place);
    set_next(image, start.v + ret_place->bytes);
    range->n -= fresh - range->first;
    range->first = fresh;
}

// In clusters of their own, from the one on that was begun last if they follow it.
static int take_new(Fiber *self, Qcow2Image *image, const uint32_t *lens, uint32_t n,
                    PackedPlace *ret_place)
{
    uint64_t bytes;
    count_fitting(lens, MIN(n, qcow2_refcount_max(&image->geometry)), UINT64_MAX, &bytes);
    uint64_t n_wanted = image_clusters_for(image, bytes - MIN(bytes - 1, room_left(image)));
    Allocation taken;
    RefcountPlace place;
    int r = allocator_take(self, image, n_wanted, &taken);
    if (r < 0)
        return r;
    do
        r = refcounts_find(self, image, taken.range.first, &place);
    while (r > 0);
    if (r == 0)
        place_streams(image, &taken.range, place, lens, n, ret_place);
    if (taken.range.n)
        allocator_release(self, image, taken.range);
    return r;
}

int packed_take(Fiber *self, Qcow2Image *image, const uint32_t *lens, uint32_t n,
                PackedPlace *ret_place)
{
    assert(n && lens[0] && lens[0] <= image->geometry.cluster_bytes);
    file_debug_event(image->file, DEBUG_CLUSTER_ALLOC_BYTES);
    return take_rest(self, image, lens, n, ret_place) ? 0
                                                      : take_new(self, image, lens, n, ret_place);
}

void packed_release(Fiber *self, Qcow2Image *image, HostOff host, uint32_t len)
{
    uint64_t first = image_cluster_of(image, host);
    uint64_t last = image_cluster_of(image, host_off(host.v + len - 1));
    allocator_release(self, image, (ClusterRange){first, last - first + 1});
}
