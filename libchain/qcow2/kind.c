// SPDX-License-Identifier: LGPL-2.1-or-later
// What a view has of its own, whatever lies where: for those who plan or count, an image in many
// fragments is one run where its map is as many. One look-up may suspend; from there on only tables
// in memory are looked at, and not too many, since nobody else gets a turn meanwhile. In a fiber on
// the image's loop.

#include <errno.h>

#include "qcow2/view.h"

enum {
    MAX_STEPS = 1 << 14, // entries of L2 tables; a step takes a few ns
    EMPTY_TABLE_STEPS = 4,
};

static NodeExtentKind kind_of(Qcow2ClusterKind kind)
{
    switch (kind) {
    case QCOW2_CLUSTER_UNALLOCATED:
        return NODE_EXTENT_BELOW;
    case QCOW2_CLUSTER_ZERO:
    case QCOW2_CLUSTER_ZERO_ALLOCATED:
        return NODE_EXTENT_ZERO;
    default:
        return NODE_EXTENT_DATA;
    }
}

// How many subclusters of entry `e`, from number `s` on, are of that kind.
static uint32_t subclusters_of_kind(const Qcow2Geometry *g, const Qcow2L2Entry *e, uint32_t s,
                                    NodeExtentKind kind)
{
    uint32_t first = s;
    if (!g->extended_l2 || e->kind == QCOW2_CLUSTER_COMPRESSED)
        return kind_of(e->kind) == kind ? g->subclusters - s : 0;
    while (s < g->subclusters && kind_of(qcow2_subcluster_kind(e, s)) == kind)
        s++;
    return s - first;
}

// Most entries are of one of two kinds, and need no full look.
static bool is_plainly(const Qcow2Geometry *g, const MappingPlace *place, uint32_t i,
                       NodeExtentKind kind)
{
    HostOff host;
    bool copied;
    if (kind == NODE_EXTENT_BELOW)
        return !g->extended_l2 && !((const Be64 *)place->slice)[place->index + i].raw;
    return kind == NODE_EXTENT_DATA &&
           qcow2_l2_entry_is_plain(g, place->slice, place->index + i, &host, &copied);
}

// How far from `off` on the slice of `place` is of that kind; `*steps` counts.
static uint64_t len_in_slice(const Qcow2View *view, const MappingPlace *place, GuestOff off,
                             NodeExtentKind kind, unsigned *steps)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint64_t subcluster = UINT64_C(1) << g->subcluster_bits, n = 0;
    uint32_t s = qcow2_in_cluster(g, off) >> g->subcluster_bits, i = 0;
    for (; i < place->n_left; i++, s = 0) {
        if (is_plainly(g, place, i, kind)) {
            n += g->subclusters - s;
            continue;
        }
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, place->slice, place->index + i);
        uint32_t like = e.kind == QCOW2_CLUSTER_BAD ? 0 : subclusters_of_kind(g, &e, s, kind);
        n += like;
        if (s + like < g->subclusters)
            break;
    }
    *steps += i + 1;
    return n ? n * subcluster - off.v % subcluster : 0;
}

// The same where no table is.
static uint64_t len_without_table(const Qcow2View *view, const MappingPlace *place, GuestOff off,
                                  NodeExtentKind kind, unsigned *steps)
{
    const Qcow2Geometry *g = &view->image->geometry;
    *steps += EMPTY_TABLE_STEPS;
    if (kind != NODE_EXTENT_BELOW)
        return 0;
    return ((uint64_t)place->n_left << g->cluster_bits) - qcow2_in_cluster(g, off);
}

// The kind at `off`. False: what is there is damaged, or lies past the end as it was known.
static bool find_first_kind(const Qcow2View *view, const MappingPlace *place, GuestOff off,
                            NodeExtentKind *ret_kind)
{
    const Qcow2Geometry *g = &view->image->geometry;
    *ret_kind = NODE_EXTENT_BELOW;
    if (!place->slice)
        return true;
    Qcow2L2Entry e = qcow2_l2_entry_decode(g, place->slice, place->index);
    if (e.kind == QCOW2_CLUSTER_BAD)
        return false;
    uint32_t s = qcow2_in_cluster(g, off) >> g->subcluster_bits;
    bool has_bitmaps = g->extended_l2 && e.kind != QCOW2_CLUSTER_COMPRESSED;
    *ret_kind = kind_of(has_bitmaps ? qcow2_subcluster_kind(&e, s) : e.kind);
    return true;
}

// Of an image that another program may write, or one that is damaged: as its map says.
static int find_slowly(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len,
                       NodeExtentKind *ret_kind, uint64_t *ret_len)
{
    MappingRun run;
    G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
    int r = mapping_find(self, view, off, len, &run);
    if (r < 0)
        return r;
    *ret_kind = kind_of(run.kind);
    *ret_len = run.len;
    return 0;
}

int view_find_kind(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtentKind *ret_kind,
                   uint64_t *ret_len)
{
    Qcow2View *view = view_of(node);
    MappingPlace place;
    NodeExtentKind kind;
    unsigned steps = 0;
    int r = mapping_try_find_place(view, off, &place);
    if (r == -EAGAIN)
        r = find_slowly(self, view, off, len, ret_kind, ret_len); // its slice is there then
    if (r < 0 || view->image->is_shared || mapping_try_find_place(view, off, &place) < 0 ||
        !find_first_kind(view, &place, off, &kind))
        return find_slowly(self, view, off, len, ret_kind, ret_len);
    uint64_t done = 0, n;
    do {
        GuestOff at = guest_off(off.v + done);
        if (done && mapping_try_find_place(view, at, &place) < 0)
            break;
        n = place.slice ? len_in_slice(view, &place, at, kind, &steps)
                        : len_without_table(view, &place, at, kind, &steps);
        done += n;
    } while (n && done < len && steps < MAX_STEPS);
    *ret_kind = kind;
    *ret_len = MIN(done, len);
    return 0;
}
