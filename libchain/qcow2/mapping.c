// SPDX-License-Identifier: LGPL-2.1-or-later
// Looking up guest offsets. A look-up that finds its slice cached takes an L1 entry, one hash probe
// and one decode; nothing is locked or allocated. Changing entries is the second chapter,
// mapping-change.c.

#include "qcow2/mapping.h"

#include <errno.h>
#include <inttypes.h>

// Entries from `index` that lie in the same slice and below the view's end.
static uint32_t entries_left(const Qcow2View *view, GuestOff off, uint32_t index_in_slice)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint64_t to_end =
        (view->node.size_bytes - off.v + qcow2_in_cluster(g, off) + g->cluster_bytes - 1) >>
        g->cluster_bits;
    return MIN(g->slice_entries - index_in_slice, to_end);
}

// Where the slice is: 0 and *ret_slice; 1 when there is no L2 table; -EIO for a bad L1 entry,
// -ESTALE for one that names a place past the end of a shared image.
static inline int slice_place(Qcow2View *view, GuestOff off, HostOff *ret_slice,
                              MappingPlace *ret_place)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint64_t i1 = qcow2_l1_index(g, off);
    ClusterSpan span = cluster_span_make(g, off, 1);
    Qcow2L1Entry l1 = qcow2_l1_entry_decode(view->l1.entries[i1]);
    if (!l1.l2.v && !l1.reserved_set) {
        // Nothing here, up to the next L1 entry; callers skip at most that far.
        uint32_t i2 = qcow2_l2_index(g, off);
        *ret_place = (MappingPlace){NULL, i2, g->l2_entries - i2, false};
        return 1;
    }
    bool is_outside = image_cluster_of(image, l1.l2) >= image->allocator.tail;
    bool is_broken = l1.reserved_set || l1.l2.v & (g->cluster_bytes - 1);
    if (G_UNLIKELY(is_outside && !is_broken && image->is_shared))
        return -ESTALE;
    if (G_UNLIKELY(is_outside && !is_broken))
        return image_mark_cut_off(image, l1.l2, 1, "the L2 table of guest offset %#" PRIx64 " lies",
                                  off.v);
    if (G_UNLIKELY(is_broken))
        return image_mark_corrupt(
            image, "L1 entry %" G_GUINT64_FORMAT " (%#" G_GINT64_MODIFIER "x) is damaged", i1,
            be64_get(view->l1.entries[i1]));
    *ret_slice = cluster_span_slice(g, &span, l1.l2);
    *ret_place = (MappingPlace){NULL, span.index, entries_left(view, off, span.index),
                                l1.copied && !mapping_is_shared(view, i1)};
    return 0;
}

int mapping_find_slice(Qcow2View *view, GuestOff off, HostOff *ret_host, MappingPlace *ret_place)
{
    return slice_place(view, off, ret_host, ret_place);
}

int mapping_try_find_place(Qcow2View *view, GuestOff off, MappingPlace *ret_place)
{
    HostOff place = {0};
    int r = slice_place(view, off, &place, ret_place);
    if (r)
        return r < 0 ? r : 0;
    TableSlice *slice = table_cache_find(view->image->cache, view->image, place);
    if (!slice || slice->kind != TABLE_SLICE_L2)
        return -EAGAIN;
    ret_place->slice = slice->data;
    return 0;
}

static int load_slice(Fiber *self, Qcow2View *view, HostOff place, TableSlice **ret_slice)
{
    Qcow2Image *image = view->image;
    int r = image_see_end(self, image, image->file, place.v + image->geometry.slice_bytes);
    if (r == 0)
        r = image_get_slice(self, image, place, TABLE_SLICE_L2, ret_slice);
    if (r == -EUCLEAN)
        return image_mark_corrupt(
            image, "L2 table at offset %#" G_GINT64_MODIFIER "x overlaps a refcount block",
            place.v);
    return r;
}

int mapping_find_place(Fiber *self, Qcow2View *view, GuestOff off, MappingPlace *ret_place)
{
    int r;
    while ((r = mapping_try_find_place(view, off, ret_place)) == -EAGAIN) {
        HostOff place = {0};
        TableSlice *slice;
        r = slice_place(view, off, &place, ret_place);
        if (r == 0)
            r = load_slice(self, view, place, &slice);
        if (r < 0)
            return r;
        table_slice_release(slice);
        // Loaded and, since nothing suspends before the next look, still there.
    }
    return r;
}

static int bad_entry(Qcow2View *view, GuestOff off)
{
    return image_mark_corrupt(
        view->image, "L2 entry for guest offset %#" G_GINT64_MODIFIER "x is damaged", off.v);
}

static bool data_is_sane(Qcow2Image *image, GuestOff off, HostOff cluster)
{
    const Qcow2Geometry *g = &image->geometry;
    if (!g->external_data)
        return image_host_is_sane(image, cluster);
    // Elsewhere it could be in the way of a cluster that is allocated later (QEMU refuses it, too).
    return image->data_file && cluster.v == off.v - qcow2_in_cluster(g, off);
}

// The entry names a place where no data can be.
static int mark_bad_place(Qcow2Image *image, GuestOff off, const Qcow2L2Entry *e)
{
    bool is_aligned = !(e->host.v & (image->geometry.cluster_bytes - 1));
    if (!image->geometry.external_data && is_aligned &&
        image_cluster_of(image, e->host) >= image->allocator.tail)
        return image_mark_cut_off(image, e->host, 1, "the data of guest offset %#" PRIx64 " lies",
                                  off.v);
    return image_mark_corrupt(
        image, "guest offset %#" PRIx64 " maps to host offset %#" PRIx64 ", %s", off.v, e->host.v,
        image->geometry.external_data ? "where its data cannot be"
        : is_aligned                  ? "which holds metadata"
                                      : "inside a cluster");
}

// The general decoder: any entry kind, extended L2, external data file.
static int decode_run_slow(Qcow2View *view, const MappingPlace *place, GuestOff off, uint64_t len,
                           MappingRun *run)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint32_t sub_bytes = 1u << g->subcluster_bits;
    *run = (MappingRun){0};
    uint64_t done = 0;
    for (uint32_t i = 0; i < place->n_left && done < len; i++) {
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, place->slice, place->index + i);
        if (e.kind == QCOW2_CLUSTER_BAD)
            return done ? 0 : bad_entry(view, off);
        bool has_host = e.kind == QCOW2_CLUSTER_DATA || e.kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
        bool is_sane = !has_host || data_is_sane(image, guest_off(off.v + done), e.host);
        if (!is_sane && !done && image->is_shared && !g->external_data)
            return -ESTALE;
        if (!is_sane)
            return done ? 0 : mark_bad_place(image, guest_off(off.v + done), &e);
        uint32_t in_cluster = i ? 0 : qcow2_in_cluster(g, off);
        if (e.kind == QCOW2_CLUSTER_COMPRESSED) {
            if (done)
                return 0;
            *run = (MappingRun){e.kind, MIN(len, g->cluster_bytes - in_cluster), e.host,
                                e.compressed_bytes, false};
            return 0;
        }
        for (uint32_t s = in_cluster >> g->subcluster_bits; s < g->subclusters && done < len; s++) {
            Qcow2ClusterKind kind = g->extended_l2 ? qcow2_subcluster_kind(&e, s) : e.kind;
            uint64_t within = MAX(in_cluster, s << g->subcluster_bits);
            HostOff host = kind == QCOW2_CLUSTER_DATA ? host_off(e.host.v + within) : host_off(0);
            uint64_t n = MIN(((uint64_t)s << g->subcluster_bits) + sub_bytes - within, len - done);
            bool copied = e.copied && place->is_own;
            if (!done)
                *run = (MappingRun){kind, n, host, 0, copied};
            else if (kind == run->kind && (kind != QCOW2_CLUSTER_DATA ||
                                           (host.v == run->host.v + done && copied == run->copied)))
                run->len += n;
            else
                return 0;
            done += n;
        }
    }
    return 0;
}

int mapping_decode(Qcow2View *view, const MappingPlace *place, GuestOff off, uint64_t len,
                   MappingRun *run)
{
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint32_t in_cluster = qcow2_in_cluster(g, off);
    if (!place->slice) {
        uint64_t n = ((uint64_t)place->n_left << g->cluster_bits) - in_cluster;
        *run = (MappingRun){QCOW2_CLUSTER_UNALLOCATED, MIN(n, len), host_off(0), 0, false};
        return 0;
    }
    HostOff host;
    bool copied;
    if (!qcow2_l2_entry_is_plain(g, place->slice, place->index, &host, &copied) ||
        !image_host_is_sane(image, host))
        return decode_run_slow(view, place, off, len, run);
    *run = (MappingRun){QCOW2_CLUSTER_DATA, g->cluster_bytes - in_cluster,
                        host_off(host.v + in_cluster), 0, copied && place->is_own};
    for (uint32_t i = 1; run->len < len && i < place->n_left; i++) {
        HostOff next;
        bool next_copied;
        if (!qcow2_l2_entry_is_plain(g, place->slice, place->index + i, &next, &next_copied) ||
            next_copied != copied || next.v != run->host.v + run->len ||
            !image_host_is_sane(image, next))
            break;
        run->len += g->cluster_bytes;
    }
    run->len = MIN(run->len, len);
    return 0;
}

// Loads the slices for [off, off+len) that are not there, at once instead of one after the other as
// the caller comes to them. What fails to load is met again by who needs it.
static void fetch_ahead(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len)
{
    enum { MAX_FETCH_BYTES = 128 << 10 }; // what one miss may add to the cache
    Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    unsigned n_looks = MAX_FETCH_BYTES / g->slice_bytes;
    uint64_t end = MIN(off.v + len, view->node.size_bytes);
    TableFetch fetch;
    table_fetch_begin(self, &fetch, image->cache, image, image->file, g->slice_bytes);
    while (off.v < end && n_looks-- > 0) {
        HostOff host = {0};
        MappingPlace place;
        int r = slice_place(view, off, &host, &place);
        if (r < 0)
            break;
        if (r == 0)
            table_fetch_add(&fetch, host, TABLE_SLICE_L2);
        off.v = ((off.v >> g->cluster_bits) + place.n_left) << g->cluster_bits;
    }
    table_fetch_end(self, &fetch);
}

static int find_and_decode(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len,
                           MappingRun *ret_run)
{
    MappingPlace place;
    int r = mapping_try_find_place(view, off, &place);
    if (G_UNLIKELY(r == -EAGAIN)) {
        bool has_more = (uint64_t)place.n_left << view->image->geometry.cluster_bits < len;
        if (has_more && !view->image->is_shared)
            fetch_ahead(self, view, off, len);
        r = mapping_find_place(self, view, off, &place);
    }
    return r < 0 ? r : mapping_decode(view, &place, off, len, ret_run);
}

// Of a shared image: what the other program has added lies past the end as we knew it.
static int find_shared_run(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len,
                           MappingRun *ret_run)
{
    Qcow2Image *image = view->image;
    File *data = image_data_file(image);
    int r = find_and_decode(self, view, off, len, ret_run);
    if (r == -ESTALE) {
        r = image_remeasure(self, image, image->file);
        if (r == 0)
            r = find_and_decode(self, view, off, len, ret_run);
    }
    if (r == 0 && ret_run->kind == QCOW2_CLUSTER_DATA)
        r = image_see_end(self, image, data, ret_run->host.v + ret_run->len);
    return r == -ESTALE ? -EIO : r;
}

int mapping_find(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, MappingRun *ret_run)
{
    return G_UNLIKELY(view->image->is_shared) ? find_shared_run(self, view, off, len, ret_run)
                                              : find_and_decode(self, view, off, len, ret_run);
}
