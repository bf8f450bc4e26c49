// SPDX-License-Identifier: LGPL-2.1-or-later
// The allocator takes from three places, in this order: ranges known to be free, refcounts not yet
// scanned (what was free when the image was opened, found a slice at a time), and the tail, past
// everything in use. Clusters of the tail were never written, so the host reads zeros there and
// copy-on-write of zeros costs nothing.
//
// Choosing a range and counting it is one step without a suspend point: the refcount slice is
// loaded first, then the range is chosen again if need be. A range therefore never crosses a
// refcount slice. Where the tail has no room (a block device's end, the format's), the image is
// full only when all refcounts have been looked through and no fragment is left.
//
// Order on disk: refcounts before L2 (docs/ordering.md §2) is writeback.c's work; here they change
// in memory. A freed cluster reaches allocator_release() only when its L2 change is durable and no
// pin is left (docs/ordering.md §4), and its refcount stays above 0 until then, so no scan can find
// it early.

#include "qcow2/allocator.h"

#include <assert.h>
#include <errno.h>

enum {
    // Bound on remembered free ranges (16 bytes each); what does not fit is found again by
    // scanning.
    MAX_FREE_RANGES = 65536,
    // A fragment shorter than wanted is still taken for requests below this; longer ones want one
    // piece.
    FRAGMENT_CLUSTERS = 16,
};

void allocator_init(Qcow2Image *image)
{
    Allocator *a = &image->allocator;
    uint64_t cb = image->geometry.cluster_bytes;
    a->free = g_array_new(false, false, sizeof(ClusterRange));
    image->packed_next = host_off(0);
    a->tail = file_size(image->file) / cb + (file_size(image->file) % cb != 0);
    a->scan_next = 0;
    a->scan_end = a->tail;
    // A block device holds whatever was there before.
    a->fresh_from = a->tail;
    if (!file_is_block_device(image->file))
        return;
    // A block device ends where it ends, and holds whatever was there before: what no refcount
    // block covers is unused, and never fresh.
    uint64_t n_blocks = image->refcount_table.n;
    while (n_blocks && !image->refcount_table.entries[n_blocks - 1].raw)
        n_blocks--;
    a->fresh_from = UINT64_MAX;
    if (image->writable)
        a->tail = a->scan_end =
            MIN(n_blocks << image->geometry.refcounts_per_block_bits, image_host_clusters(image));
}

void allocator_done(Qcow2Image *image)
{
    g_clear_pointer(&image->allocator.free, g_array_unref);
}

static uint64_t max_cluster(const Qcow2Image *image)
{
    return MIN(QCOW2_ENTRY_OFFSET_MASK >> image->geometry.cluster_bits, image_host_clusters(image));
}

// Remembers a free range, or leaves it to a later scan when there are too many.
static void add_free(Qcow2Image *image, uint64_t first, uint64_t n)
{
    Allocator *a = &image->allocator;
    if (!n)
        return;
    if (a->free->len) {
        ClusterRange *last = &g_array_index(a->free, ClusterRange, a->free->len - 1);
        if (last->first + last->n == first) {
            last->n += n;
            return;
        }
        if (first + n == last->first) {
            last->first = first;
            last->n += n;
            return;
        }
    }
    if (a->free->len >= MAX_FREE_RANGES) {
        a->rescan = true;
        return;
    }
    ClusterRange range = {first, n};
    g_array_append_val(a->free, range);
}

// Descending, so that takes from the end of the list use what lies low in the file.
static int compare_free(const void *a, const void *b)
{
    const ClusterRange *x = a, *y = b;
    return (x->first < y->first) - (x->first > y->first);
}

static void merge_free(GArray *free)
{
    g_array_sort(free, compare_free);
    guint n = 0;
    for (guint i = 0; i < free->len; i++) {
        ClusterRange next = g_array_index(free, ClusterRange, i);
        ClusterRange *last = n ? &g_array_index(free, ClusterRange, n - 1) : NULL;
        if (last && next.first + next.n >= last->first) {
            last->n = MAX(last->first + last->n, next.first + next.n) - next.first;
            last->first = next.first;
        } else {
            g_array_index(free, ClusterRange, n++) = next;
        }
    }
    g_array_set_size(free, n);
}

static bool ends_at_tail(const Allocator *a, const ClusterRange *f)
{
    return f->first < a->tail && f->first + f->n >= a->tail;
}

// `n` clusters from `first` are free from now on. At the end of what is in use they belong to the
// tail, and so does what is free before them: writes that fail do not push it on.
static void make_free(Qcow2Image *image, uint64_t first, uint64_t n)
{
    Allocator *a = &image->allocator;
    if (first + n != a->tail) {
        add_free(image, first, n);
        return;
    }
    a->tail = first;
    bool is_more = false;
    for (guint i = 0; i < a->free->len && !is_more; i++)
        is_more = ends_at_tail(a, &g_array_index(a->free, ClusterRange, i));
    if (is_more)
        merge_free(a->free);
    while (is_more && a->free->len && ends_at_tail(a, (ClusterRange *)a->free->data)) {
        a->tail = ((ClusterRange *)a->free->data)->first;
        g_array_remove_index(a->free, 0);
    }
    a->scan_end = MIN(a->scan_end, a->tail);
    a->scan_next = MIN(a->scan_next, a->scan_end);
}

// The first cluster of the next refcount block after one that is missing.
static uint64_t next_covered(const Qcow2Image *image, uint64_t cluster)
{
    uint64_t i = cluster >> image->geometry.refcounts_per_block_bits;
    while (i < image->refcount_table.n && !image->refcount_table.entries[i].raw)
        i++;
    return i < image->refcount_table.n ? i << image->geometry.refcounts_per_block_bits : UINT64_MAX;
}

// Could not be read, which says nothing about the rest of the image.
static bool is_unreadable(const Qcow2Image *image, int r)
{
    return r == -EIO && !image->corrupt;
}

// Looks through the next refcount slice below scan_end for free clusters. What cannot be read
// counts as used. Returns 1 when it looked through one, 0 at the end.
static int scan_some(Fiber *self, Qcow2Image *image)
{
    Allocator *a = &image->allocator;
    while (a->scan_next < a->scan_end) {
        uint64_t start = a->scan_next, per_slice = refcounts_per_slice(image);
        uint64_t n = MIN(per_slice - start % per_slice, a->scan_end - start);
        RefcountPlace place;
        int r = refcounts_get(self, image, start, &place);
        if (r < 0 && r != -ENOENT && !is_unreadable(image, r))
            return r;
        if (a->scan_next != start) { // another fiber scanned it while this one waited
            if (r == 0)
                table_slice_release(place.slice);
            continue;
        }
        // Where no block is, one is not worth its cluster: beyond the last block lies the tail.
        a->scan_next = r == -ENOENT ? MIN(next_covered(image, start), a->scan_end) : start + n;
        if (r < 0)
            continue;
        uint64_t run = 0;
        for (uint64_t i = 0; i < n; i++) {
            if (qcow2_refcount_get(&image->geometry, place.slice->data, place.index + i) == 0) {
                run++;
            } else if (run) {
                add_free(image, start + i - run, run);
                run = 0;
            }
        }
        add_free(image, start + n - run, run);
        table_slice_release(place.slice);
        return 1;
    }
    return 0;
}

// Brings free range `i` to the end, where takes happen. *ret_range: what of it may be taken at
// once, which lies inside one refcount slice.
static void put_last(Qcow2Image *image, guint i, uint64_t n_wanted, ClusterRange *ret_range)
{
    GArray *free = image->allocator.free;
    uint64_t per_slice = refcounts_per_slice(image);
    ClusterRange f = g_array_index(free, ClusterRange, i);
    ClusterRange *last = &g_array_index(free, ClusterRange, free->len - 1);
    g_array_index(free, ClusterRange, i) = *last;
    *last = f;
    *ret_range = (ClusterRange){f.first, MIN(MIN(f.n, n_wanted), per_slice - f.first % per_slice)};
}

// A free range that suits, among the last few. Nothing is taken.
static bool peek_free(Qcow2Image *image, uint64_t n_wanted, ClusterRange *ret_range)
{
    GArray *free = image->allocator.free;
    for (guint back = 1; back <= free->len && back <= 8; back++) {
        guint i = free->len - back;
        if (n_wanted >= FRAGMENT_CLUSTERS && g_array_index(free, ClusterRange, i).n < n_wanted)
            continue;
        put_last(image, i, n_wanted, ret_range);
        return true;
    }
    return false;
}

// The largest of all free ranges.
static bool peek_largest(Qcow2Image *image, uint64_t n_wanted, ClusterRange *ret_range)
{
    GArray *free = image->allocator.free;
    guint best = 0;
    for (guint i = 1; i < free->len; i++)
        if (g_array_index(free, ClusterRange, i).n > g_array_index(free, ClusterRange, best).n)
            best = i;
    if (free->len)
        put_last(image, best, n_wanted, ret_range);
    return free->len;
}

static void take_free(Qcow2Image *image, uint64_t n)
{
    GArray *free = image->allocator.free;
    ClusterRange *last = &g_array_index(free, ClusterRange, free->len - 1);
    last->first += n;
    last->n -= n;
    if (!last->n)
        g_array_set_size(free, free->len - 1);
}

// What lies below the new tail may have been written.
static void move_tail(Allocator *a, uint64_t tail)
{
    a->tail = tail;
    a->fresh_from = MAX(a->fresh_from, tail);
}

// Where the next take comes from: 1 a free range, 0 the tail; -ENOSPC. As long as the tail has room
// a take looks through one slice at most and leaves fragments alone; at its end the rest is
// searched, and anything will do. Suspends.
static int choose(Fiber *self, Qcow2Image *image, uint64_t n_wanted, bool tail_is_full,
                  ClusterRange *ret_range)
{
    Allocator *a = &image->allocator;
    bool has_scanned = false;
    while (!peek_free(image, n_wanted, ret_range)) {
        bool has_tail = !tail_is_full && a->tail < max_cluster(image);
        if (a->rescan && !a->free->len && a->scan_next >= a->scan_end) {
            a->rescan = false;
            a->scan_next = 0;
            a->scan_end = a->tail;
        }
        if (a->scan_next < a->scan_end && !(has_tail && has_scanned)) {
            int r = scan_some(self, image);
            if (r < 0)
                return r;
            if (has_scanned)
                fiber_yield(self); // slices may all be in the cache
            has_scanned = true;
        } else if (has_tail) {
            uint64_t per_slice = refcounts_per_slice(image);
            uint64_t n = MIN(n_wanted, per_slice - a->tail % per_slice);
            *ret_range = (ClusterRange){a->tail, MIN(n, max_cluster(image) - a->tail)};
            return 0;
        } else {
            return peek_largest(image, n_wanted, ret_range) ? 1 : -ENOSPC;
        }
    }
    return 1;
}

// The refcounts around `cluster` cannot be read, or written: nothing is taken there any more.
static void avoid_slice(Qcow2Image *image, uint64_t cluster)
{
    Allocator *a = &image->allocator;
    uint64_t per_slice = refcounts_per_slice(image), start = cluster - cluster % per_slice;
    for (guint i = a->free->len; i-- > 0;) {
        ClusterRange *f = &g_array_index(a->free, ClusterRange, i);
        if (f->first - start >= per_slice)
            continue;
        uint64_t n = MIN(f->n, start + per_slice - f->first);
        f->first += n;
        f->n -= n;
        if (!f->n)
            g_array_remove_index_fast(a->free, i);
    }
    if (a->tail - start < per_slice)
        move_tail(a, MIN(start + per_slice, max_cluster(image)));
}

// Takes from `c`, which was chosen. Clusters that are in use all the same (leaks past the end, left
// by a crash; a free range that a scan found a second time) are stepped over: 1 when that left
// nothing. Nothing suspends.
static int take_chosen(Qcow2Image *image, ClusterRange c, bool from_free, RefcountPlace place,
                       Allocation *ret_allocation)
{
    Allocator *a = &image->allocator;
    const Qcow2Geometry *g = &image->geometry;
    uint64_t skip = 0, n = 0;
    if (from_free && c.first + c.n > a->tail) { // found twice; the tail took it
        take_free(image, c.n);
        return 1;
    }
    while (skip < c.n && qcow2_refcount_get(g, place.slice->data, place.index + skip))
        skip++;
    place.index += skip;
    while (skip + n < c.n && !qcow2_refcount_get(g, place.slice->data, place.index + n))
        n++;
    ClusterRange range = {c.first + skip, n};
    *ret_allocation = (Allocation){range, range.first >= a->fresh_from};
    if (from_free)
        take_free(image, skip + n);
    else
        move_tail(a, range.first + n);
    if (!n)
        return 1;
    for (uint64_t i = 0; i < n; i++)
        if (metadata_set_contains(&image->metadata, range.first + i))
            return image_mark_corrupt(
                image, "cluster %" G_GUINT64_FORMAT " holds metadata but has refcount 0",
                range.first + i);
    return refcounts_raise(image, place, n);
}

// Somebody may have made the device larger, as its user's answer to a full one.
static bool has_device_grown(Fiber *self, Qcow2Image *image)
{
    uint64_t old = file_size(image->file);
    return file_is_block_device(image->file) && file_refresh_size(self, image->file) == 0 &&
           file_size(image->file) > old;
}

int allocator_take(Fiber *self, Qcow2Image *image, uint64_t n_wanted, Allocation *ret_allocation)
{
    bool tail_is_full = false;
    int r;
    assert(n_wanted > 0);
    file_debug_event(image->file, DEBUG_CLUSTER_ALLOC);
    do {
        ClusterRange c;
        RefcountPlace place;
        int from = choose(self, image, n_wanted, tail_is_full, &c);
        if (from == -ENOSPC && has_device_grown(self, image)) {
            tail_is_full = false;
            r = 1;
            continue;
        }
        if (from < 0)
            return from;
        r = refcounts_find(self, image, c.first, &place);
        if (r == 0 && !place.slice->is_unwritable) {
            r = take_chosen(image, c, from, place, ret_allocation);
        } else if (r == 0 || is_unreadable(image, r)) {
            avoid_slice(image, c.first);
            r = 1;
        } else if (r == -ENOENT) {
            assert(!from); // where a free range was found there is a block
            r = refcounts_grow(self, image, c.first);
            if (r == -ENOSPC && !tail_is_full) {
                tail_is_full = true;
                r = 1;
            } else if (r == 0) {
                r = 1;
            }
        }
    } while (r == 1);
    return r;
}

// What one take gives may end at a refcount slice's border, with the rest of the piece behind it,
// or where somebody else has taken meanwhile. Pieces that end too early are kept until the end, so
// that they do not come again.
int allocator_take_piece(Fiber *self, Qcow2Image *image, uint64_t n, Allocation *ret_allocation)
{
    enum { MAX_TRIES = 64 };
    g_autoptr(GArray) short_pieces = g_array_new(false, false, sizeof(ClusterRange));
    Allocation piece = {0};
    int r = 0;
    while (r == 0 && piece.range.n < n && short_pieces->len < MAX_TRIES) {
        Allocation next;
        r = allocator_take(self, image, n - piece.range.n, &next);
        if (r < 0)
            break;
        if (piece.range.n && piece.range.first + piece.range.n == next.range.first) {
            piece.range.n += next.range.n;
            piece.is_zeroed &= next.is_zeroed;
            continue;
        }
        if (piece.range.n)
            g_array_append_val(short_pieces, piece.range);
        piece = next;
    }
    if (r == 0 && piece.range.n < n)
        r = -EFBIG;
    if (r < 0 && piece.range.n)
        g_array_append_val(short_pieces, piece.range);
    for (guint i = 0; i < short_pieces->len; i++)
        allocator_release(self, image, g_array_index(short_pieces, ClusterRange, i));
    if (r == 0)
        *ret_allocation = piece;
    return r;
}

void allocator_release(Fiber *self, Qcow2Image *image, ClusterRange range)
{
    while (range.n) {
        ClusterRange free;
        refcounts_lower(self, image, &range, &free);
        if (free.n)
            make_free(image, free.first, free.n);
        if (range.n) // on memory holes are made at once, on the loop
            fiber_yield(self);
    }
}
