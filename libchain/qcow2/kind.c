// SPDX-License-Identifier: LGPL-2.1-or-later
// What a view has of its own, whatever lies where: for those who plan or count, an image in many
// fragments is one run where its map is as many. One look-up may suspend; from there on only tables
// in memory are looked at, and not too many, since nobody else gets a turn meanwhile. In a fiber on
// the image's loop.

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

// How far from `off`, where a subcluster begins, the slice of `place` is of that kind; `*steps` counts.
static uint64_t len_in_slice(const Qcow2View *view, const MappingPlace *place, GuestOff off,
                             NodeExtentKind kind, unsigned *steps)
{
    const Qcow2Geometry *g = &view->image->geometry;
    uint32_t s = qcow2_in_cluster(g, off) >> g->subcluster_bits;
    uint64_t n = 0;
    for (uint32_t i = 0; i < place->n_left; i++, s = 0) {
        Qcow2L2Entry e = qcow2_l2_entry_decode(g, place->slice, place->index + i);
        ++*steps;
        uint32_t like = e.kind == QCOW2_CLUSTER_BAD ? 0 : subclusters_of_kind(g, &e, s, kind);
        n += (uint64_t)like << g->subcluster_bits;
        if (s + like < g->subclusters)
            break;
    }
    return n;
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

int view_find_kind(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtentKind *ret_kind,
                   uint64_t *ret_len)
{
    Qcow2View *view = view_of(node);
    MappingRun run;
    unsigned steps = 0;
    int r;
    {
        G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
        r = mapping_find(self, view, off, len, &run);
    }
    if (r < 0)
        return r;
    NodeExtentKind kind = kind_of(run.kind);
    uint64_t done = run.len, n = 1;
    while (n && done < len && steps < MAX_STEPS) {
        MappingPlace place;
        GuestOff at = guest_off(off.v + done);
        if (mapping_try_find_place(view, at, &place) < 0)
            break;
        n = place.slice ? len_in_slice(view, &place, at, kind, &steps)
                        : len_without_table(view, &place, at, kind, &steps);
        done += n;
    }
    *ret_kind = kind;
    *ret_len = MIN(done, len);
    return 0;
}
