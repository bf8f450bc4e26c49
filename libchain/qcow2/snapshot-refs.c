// SPDX-License-Identifier: LGPL-2.1-or-later
// One table after the other, a slice at a time; between two slices other fibers go on.
//
// Raising: table, then its entries, then COPIED goes from the slice, as one step, and last from the
// L1 entry of the head, if that names the table still (a write may have given the head a copy, in
// which no entry is COPIED). Refcounts reach the disk before the flags (docs/ordering.md §2, §13).
//
// Lowering: entries, then the table, whose cluster may go with its last reference. Then the head's
// flags: its L1 entry, and each entry of its table there whose cluster has one reference left. That
// takes the lock of the guest's clusters: whoever is about to copy a cluster must not find it
// written in place. A flag that is missing costs a copy, no more.
//
// Clusters that lose their last reference are released in batches, in the order of the host file:
// neighbours are coalesced into one hole, for which guests' writes wait once, not cluster by
// cluster.

#include "qcow2/snapshot-refs.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain-core/mutant.h"
#include "qcow2/allocator.h"

enum {
    MAX_DIRTY_BYTES = 4 << 20,   // before a write-back: guests have the rest of what may be dirty
    MAX_FETCH_BYTES = 128 << 10, // what one table adds to the cache at a time
    ENTRIES_PER_TURN = 32 << 10, // of an L1 table without anything
    MAX_LAST_RANGES = 64 << 10,  // of one batch: 1 MiB
    RELEASED_BYTES_PER_TURN = 1 << 20,
};

typedef struct Place {
    uint64_t i1;
    HostOff table;
    uint32_t first; // entry
} Place;

// Lets others go on, and what this has made dirty to the disk. An error comes again at the end.
static void end_step(Fiber *self, SnapshotRefs *refs)
{
    Qcow2Image *image = refs->head->image;
    uint64_t share = table_cache_dirty_share(image->cache) / 4;
    if (refs->dirty_bytes >= MIN(MAX_DIRTY_BYTES, share)) {
        refs->dirty_bytes = 0;
        writeback_run(self, &image->writeback);
    }
    fiber_yield(self);
}

static void note_dirty(SnapshotRefs *refs, const TableSlice *slice)
{
    refs->dirty_bytes += slice->dirty ? 0 : slice->bytes;
}

// Loads the beginning of a table at once, instead of one slice after the other.
static void fetch_table(Fiber *self, Qcow2Image *image, const Place *p)
{
    uint32_t slice_bytes = image->geometry.slice_bytes;
    TableFetch fetch;
    table_fetch_begin(self, &fetch, image->cache, image, image->file, slice_bytes);
    for (uint32_t o = 0; o < MIN(image->geometry.cluster_bytes, MAX_FETCH_BYTES); o += slice_bytes)
        table_fetch_add(&fetch, host_off(p->table.v + o), TABLE_SLICE_L2);
    table_fetch_end(self, &fetch);
}

static int get_slice(Fiber *self, Qcow2Image *image, const Place *p, TableSlice **ret_slice)
{
    HostOff place = host_off(p->table.v + (uint64_t)p->first * image->geometry.l2_entry_bytes);
    int r = image_get_slice(self, image, place, TABLE_SLICE_L2, ret_slice);
    if (r == -EUCLEAN)
        return image_mark_corrupt(
            image, "L2 table at offset %#" PRIx64 " overlaps a refcount block", p->table.v);
    return r;
}

// How many entries from `i` on name one range, or name nothing (an empty range).
static uint32_t find_run(const Qcow2Geometry *g, const TableSlice *slice, uint32_t i, uint32_t end,
                         ClusterRange *ret_range)
{
    Qcow2L2Entry e = qcow2_l2_entry_decode(g, slice->data, i);
    uint32_t n = 1;
    if (!cluster_range_of_entry(g, &e, ret_range))
        ret_range->n = 0;
    else if (e.kind != QCOW2_CLUSTER_COMPRESSED)
        for (; i + n < end; n++) {
            ClusterRange next;
            e = qcow2_l2_entry_decode(g, slice->data, i + n);
            if (e.kind == QCOW2_CLUSTER_COMPRESSED || !cluster_range_of_entry(g, &e, &next) ||
                next.first != ret_range->first + ret_range->n)
                break;
            ret_range->n++;
        }
    return n;
}

// --- raising -------------------------------------------------------------------------------------

static int raise_some(Fiber *self, SnapshotRefs *refs, ClusterRange range, uint64_t *ret_n)
{
    Qcow2Image *image = refs->head->image;
    RefcountPlace place;
    int r;
    do
        r = refcounts_find(self, image, range.first, &place);
    while (r == 1);
    if (r == -ENOENT)
        return image_mark_corrupt(
            image, "cluster %" PRIu64 " is in use, but no refcount block counts it", range.first);
    if (r < 0)
        return r;
    uint64_t n = MIN(range.n, refcounts_per_slice(image) - place.index);
    for (uint64_t i = 0; i < n; i++)
        if (!qcow2_refcount_get(&image->geometry, place.slice->data, place.index + i))
            return image_mark_corrupt(image, "cluster %" PRIu64 " is in use but has refcount 0",
                                      range.first + i);
    *ret_n = n;
    note_dirty(refs, place.slice);
    return refcounts_raise(image, place, n);
}

// All of the range, or nothing.
static int raise_range(Fiber *self, SnapshotRefs *refs, ClusterRange range)
{
    ClusterRange done = {range.first, 0};
    int r = 0;
    while (done.n < range.n && r == 0) {
        uint64_t n = 0;
        r = raise_some(self, refs, (ClusterRange){done.first + done.n, range.n - done.n}, &n);
        done.n += r == 0 ? n : 0;
    }
    if (r < 0 && done.n)
        allocator_release(self, refs->head->image, done);
    return r;
}

// COPIED is no longer right anywhere in the slice. Nothing suspends.
static void clear_copied(SnapshotRefs *refs, TableSlice *slice)
{
    Qcow2Image *image = refs->head->image;
    const Qcow2Geometry *g = &image->geometry;
    for (uint32_t i = 0; i < g->slice_entries; i++) {
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, slice->data, i);
        if (!e.copied)
            continue;
        note_dirty(refs, slice);
        e.copied = false;
        qcow2_l2_entry_encode(g, slice->data, i, &e);
        table_slice_set_dirty(slice, &image->writeback.parts.dirty);
    }
}

static int check_entries(Qcow2Image *image, const Place *p, const TableSlice *slice)
{
    for (uint32_t i = 0; i < image->geometry.slice_entries; i++)
        if (qcow2_l2_entry_decode(&image->geometry, slice->data, i).kind == QCOW2_CLUSTER_BAD)
            return image_mark_corrupt(
                image, "entry %" PRIu32 " of the L2 table at offset %#" PRIx64 " is damaged",
                p->first + i, p->table.v);
    return 0;
}

static int raise_entries(Fiber *self, SnapshotRefs *refs, const Place *p, const TableSlice *slice)
{
    Qcow2Image *image = refs->head->image;
    const Qcow2Geometry *g = &image->geometry;
    int r = check_entries(image, p, slice);
    while (r == 0 && refs->n_entries < p->first + g->slice_entries) {
        ClusterRange range;
        uint32_t n = find_run(g, slice, refs->n_entries - p->first, g->slice_entries, &range);
        if (range.n && !image_range_is_sane(image, range))
            return image_mark_corrupt(image,
                                      "entry %" PRIu32 " of the L2 table at offset %#" PRIx64
                                      " names no data cluster",
                                      refs->n_entries, p->table.v);
        if (range.n)
            r = raise_range(self, refs, range);
        refs->n_entries += r == 0 ? n : 0;
    }
    return r;
}

static int raise_slice(Fiber *self, SnapshotRefs *refs, const Place *p)
{
    Qcow2Image *image = refs->head->image;
    TableSlice *slice;
    int r = get_slice(self, image, p, &slice);
    if (r < 0)
        return r;
    r = metadata_set_reserve_slice(self, &image->metadata, slice);
    if (r == 0)
        r = raise_entries(self, refs, p, slice);
    if (r == 0)
        clear_copied(refs, slice);
    table_slice_release(slice);
    end_step(self, refs);
    return r;
}

// The table is counted: the head's L1 entry says so, and needs no mark any more.
static int end_table(Fiber *self, SnapshotRefs *refs, const Place *p)
{
    Qcow2View *head = refs->head;
    MetadataSet *metadata = &head->image->metadata;
    uint64_t l1_cluster = image_cluster_of(head->image, entry_table_place(&head->l1, p->i1));
    int r = metadata_set_reserve(self, metadata, l1_cluster);
    if (r < 0)
        return r;
    Qcow2L1Entry e = qcow2_l1_entry_decode(head->l1.entries[p->i1]);
    if (e.l2.v == p->table.v && e.copied)
        entry_table_set(&head->l1, p->i1, qcow2_l1_entry_encode(e.l2, false));
    mapping_end_shared(head, p->i1);
    return 0;
}

static int raise_table(Fiber *self, SnapshotRefs *refs, Place p)
{
    Qcow2Image *image = refs->head->image;
    uint64_t cluster = image_cluster_of(image, p.table);
    if (p.table.v & (image->geometry.cluster_bytes - 1) || cluster >= image->allocator.tail)
        return image_mark_corrupt(image, "L1 entry %" PRIu64 " is damaged", p.i1);
    int r = refs->has_table ? 0 : raise_range(self, refs, (ClusterRange){cluster, 1});
    refs->has_table |= r == 0;
    if (r == 0)
        fetch_table(self, image, &p);
    while (r == 0 && refs->n_entries < image->geometry.l2_entries) {
        p.first = refs->n_entries;
        r = raise_slice(self, refs, &p);
    }
    return r < 0 ? r : end_table(self, refs, &p);
}

int snapshot_refs_raise(Fiber *self, SnapshotRefs *refs)
{
    while (refs->i1 < refs->n_l1) {
        Qcow2L1Entry e = qcow2_l1_entry_decode(refs->l1[refs->i1]);
        int r = e.l2.v ? raise_table(self, refs, (Place){refs->i1, e.l2, 0}) : 0;
        if (r < 0)
            return r;
        refs->i1++;
        refs->has_table = false;
        refs->n_entries = 0;
        if (refs->i1 % ENTRIES_PER_TURN == 0)
            fiber_yield(self);
    }
    return 0;
}

// --- lowering ------------------------------------------------------------------------------------

// In empty_slices, of the slice at `p`.
static uint64_t *slice_word(SnapshotRefs *refs, const Place *p)
{
    return &refs->empty_slices[p->first / refs->head->image->geometry.slice_entries / 64];
}

static uint64_t slice_bit(const SnapshotRefs *refs, const Place *p)
{
    return UINT64_C(1) << p->first / refs->head->image->geometry.slice_entries % 64;
}

static void release_now(Fiber *self, SnapshotRefs *refs, ClusterRange range)
{
    Qcow2Image *image = refs->head->image;
    RefcountPlace place;
    if (refcounts_find(self, image, range.first, &place) == 0)
        note_dirty(refs, place.slice);
    allocator_release(self, image, range);
}

// Nothing names these clusters any more, nor did anything else: what is there twice was counted too
// low, and may be in use elsewhere by now.
static void release_last(Fiber *self, SnapshotRefs *refs)
{
    uint64_t end = 0, n_in_turn = 0, cluster_bytes = refs->head->image->geometry.cluster_bytes;
    cluster_ranges_merge(refs->last);
    for (guint i = 0; i < refs->last->len; i++) {
        ClusterRange range = g_array_index(refs->last, ClusterRange, i);
        uint64_t n_again = range.first < end ? MIN(end - range.first, range.n) : 0;
        refs->is_incomplete |= n_again > 0;
        range.first += n_again;
        range.n -= n_again;
        end = MAX(end, range.first + range.n);
        if (range.n)
            release_now(self, refs, range);
        n_in_turn += range.n;
        if (n_in_turn * cluster_bytes < RELEASED_BYTES_PER_TURN)
            continue;
        end_step(self, refs);
        n_in_turn = 0;
    }
    end_step(self, refs);
    g_array_set_size(refs->last, 0);
}

static void gather(SnapshotRefs *refs, ClusterRange range)
{
    guint n = refs->last->len;
    ClusterRange *before = n ? &g_array_index(refs->last, ClusterRange, n - 1) : NULL;
    if (before && before->first + before->n == range.first)
        before->n += range.n;
    else
        g_array_append_val(refs->last, range);
}

// From the first cluster on, those that have one reference, or those that have others; at most to
// the end of a slice. 0: their refcounts cannot be read.
static uint64_t find_alike(Fiber *self, Qcow2Image *image, ClusterRange range, bool *ret_are_last)
{
    const Qcow2Geometry *g = &image->geometry;
    RefcountPlace place;
    if (refcounts_get(self, image, range.first, &place) < 0)
        return 0;
    uint64_t max = MIN(refcounts_per_slice(image) - place.index, range.n), n = 1;
    const uint8_t *data = place.slice->data;
    *ret_are_last = qcow2_refcount_get(g, data, place.index) == 1;
    while (n < max && (qcow2_refcount_get(g, data, place.index + n) == 1) == *ret_are_last)
        n++;
    table_slice_release(place.slice);
    return n;
}

static void lower_range(Fiber *self, SnapshotRefs *refs, ClusterRange range)
{
    while (range.n) {
        bool are_last;
        uint64_t n = find_alike(self, refs->head->image, range, &are_last);
        if (!n) { // they leak
            refs->is_incomplete = true;
            return;
        }
        if (are_last)
            gather(refs, (ClusterRange){range.first, n});
        else
            release_now(self, refs, (ClusterRange){range.first, n});
        range.first += n;
        range.n -= n;
    }
}

// The first `n` entries of a slice.
static void lower_slice(Fiber *self, SnapshotRefs *refs, const Place *p, uint32_t n)
{
    Qcow2Image *image = refs->head->image;
    TableSlice *slice;
    if (image->corrupt || get_slice(self, image, p, &slice) < 0) {
        refs->is_incomplete = true;
        return;
    }
    bool is_empty = n == image->geometry.slice_entries;
    for (uint32_t i = 0; i < n;) {
        ClusterRange range;
        i += find_run(&image->geometry, slice, i, n, &range);
        is_empty &= range.n == 0;
        if (range.n && image_range_is_sane(image, range))
            lower_range(self, refs, range);
        else
            refs->is_incomplete |= range.n != 0;
    }
    table_slice_release(slice);
    if (is_empty)
        *slice_word(refs, p) |= slice_bit(refs, p);
    end_step(self, refs);
    if (refs->last->len >= MAX_LAST_RANGES)
        release_last(self, refs);
}

static int count_of(Fiber *self, Qcow2Image *image, HostOff off, uint64_t *ret_count)
{
    RefcountPlace place;
    int r = refcounts_get(self, image, image_cluster_of(image, off), &place);
    if (r < 0)
        return r;
    *ret_count = qcow2_refcount_get(&image->geometry, place.slice->data, place.index);
    table_slice_release(place.slice);
    return 0;
}

// COPIED of the head's L1 entry, which needs no mark any more either. Has the head a table there of
// its own?
static bool restore_l1_entry(Fiber *self, SnapshotRefs *refs, uint64_t i1)
{
    Qcow2View *head = refs->head;
    Qcow2Image *image = head->image;
    if (i1 >= head->l1.n)
        return false;
    fiber_mutex_lock(self, &image->l2_mutex);
    Qcow2L1Entry e = qcow2_l1_entry_decode(head->l1.entries[i1]);
    uint64_t count = 0, l1_cluster = image_cluster_of(image, entry_table_place(&head->l1, i1));
    int r = e.l2.v && !e.copied ? count_of(self, image, e.l2, &count) : 0;
    if (r == 0 && count == 1)
        r = metadata_set_reserve(self, &image->metadata, l1_cluster);
    if (r == 0 && count == 1) {
        entry_table_set(&head->l1, i1, qcow2_l1_entry_encode(e.l2, true));
        e.copied = true;
    }
    refs->is_incomplete |= r < 0;
    mapping_end_shared(head, i1);
    fiber_mutex_unlock(self, &image->l2_mutex);
    return e.l2.v && e.copied;
}

// COPIED of one slice's entries, whose clusters are locked, and whose table is the head's own.
static int restore_entries(Fiber *self, SnapshotRefs *refs, TableSlice *slice)
{
    Qcow2Image *image = refs->head->image;
    const Qcow2Geometry *g = &image->geometry;
    int r = metadata_set_reserve_slice(self, &image->metadata, slice);
    for (uint32_t i = 0; r == 0 && i < g->slice_entries; i++) {
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, slice->data, i);
        bool has_host = e.kind == QCOW2_CLUSTER_DATA || e.kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
        uint64_t count = 0;
        if (!has_host || e.copied)
            continue;
        r = count_of(self, image, e.host, &count);
        if (r < 0 || count != 1)
            continue;
        note_dirty(refs, slice);
        e.copied = true;
        qcow2_l2_entry_encode(g, slice->data, i, &e);
        table_slice_set_dirty(slice, &image->writeback.parts.dirty);
    }
    return r;
}

static void restore_slice(Fiber *self, SnapshotRefs *refs, const Place *p)
{
    Qcow2Image *image = refs->head->image;
    uint64_t first = p->i1 * image->geometry.l2_entries + p->first;
    ClusterLock lock;
    TableSlice *slice;
    bool is_locked = !MUTANT("copied-returns-under-lock");
    if (is_locked)
        cluster_lock(self, &image->locks, &lock, first, first + image->geometry.slice_entries - 1);
    int r = get_slice(self, image, p, &slice);
    if (r == 0) {
        r = restore_entries(self, refs, slice);
        table_slice_release(slice);
    }
    refs->is_incomplete |= r < 0;
    if (is_locked)
        cluster_unlock(&image->locks, &lock);
    end_step(self, refs);
}

// `table` is the snapshot's there.
static void restore_table(Fiber *self, SnapshotRefs *refs, uint64_t i1, HostOff table)
{
    const Qcow2Geometry *g = &refs->head->image->geometry;
    bool is_counted = i1 < refs->i1 || (i1 == refs->i1 && refs->has_table);
    if (!restore_l1_entry(self, refs, i1))
        return;
    // The head's own, so it stays.
    Place p = {i1, qcow2_l1_entry_decode(refs->head->l1.entries[i1]).l2, 0};
    if (!is_counted && p.table.v == table.v)
        return; // as it was
    for (; p.first < g->l2_entries && !refs->head->image->corrupt; p.first += g->slice_entries)
        if (!(*slice_word(refs, &p) & slice_bit(refs, &p)))
            restore_slice(self, refs, &p);
}

static void lower_table(Fiber *self, SnapshotRefs *refs, Place p)
{
    Qcow2Image *image = refs->head->image;
    const Qcow2Geometry *g = &image->geometry;
    bool is_whole = p.i1 < refs->i1, is_last = p.i1 == refs->i1;
    uint32_t n = is_whole ? g->l2_entries : is_last ? refs->n_entries : 0;
    ClusterRange table = {image_cluster_of(image, p.table), 1};
    if (p.table.v & (g->cluster_bytes - 1) || table.first >= image->allocator.tail ||
        (refs->no_tables && cluster_set_contains(refs->no_tables, table.first))) {
        refs->is_incomplete = true;
        return;
    }
    fetch_table(self, image, &p);
    for (; p.first < n; p.first += g->slice_entries)
        lower_slice(self, refs, &p, MIN(n - p.first, g->slice_entries));
    if ((is_whole || (is_last && refs->has_table)) && !image->corrupt)
        allocator_release(self, image, table);
}

void snapshot_refs_lower(Fiber *self, SnapshotRefs *refs)
{
    refs->last = g_array_new(false, false, sizeof(ClusterRange));
    for (uint64_t i1 = 0; i1 < refs->n_l1; i1++) {
        Qcow2L1Entry e = qcow2_l1_entry_decode(refs->l1[i1]);
        if (e.l2.v) {
            memset(refs->empty_slices, 0, sizeof(refs->empty_slices));
            lower_table(self, refs, (Place){i1, e.l2, 0});
            restore_table(self, refs, i1, e.l2);
        }
        if (i1 % ENTRIES_PER_TURN == 0)
            fiber_yield(self);
    }
    if (!refs->head->image->corrupt)
        release_last(self, refs);
    g_clear_pointer(&refs->last, g_array_unref);
    refs->i1 = 0;
    refs->has_table = false;
    refs->n_entries = 0;
}
