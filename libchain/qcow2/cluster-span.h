// SPDX-License-Identifier: LGPL-2.1-or-later
// A span of guest bytes inside one slice of an L2 table, and the guest clusters that it touches:
// what one step of a write, zeroing or look-up works on. The arithmetic between bytes, clusters and
// entries is here. A value; pure.
//
//              off                     off + len
//               ├───────── len ────────────┤
//     ┌─────────┴─┬───────────┬────────────┴┐
//     │ first     │ first + 1 │ …           │   n clusters
//     └───────────┴───────────┴─────────────┘
//      index       index + 1    …               their entries in the slice
#pragma once

#include <glib.h>

#include "format/qcow2-table.h"

typedef struct ClusterSpan {
    GuestOff off;
    uint64_t len;
    uint64_t first; // guest cluster
    uint32_t n;
    uint32_t index;
} ClusterSpan;

// What of [off, off+len), which is not empty, lies in the slice that maps its first byte.
static inline ClusterSpan cluster_span_make(const Qcow2Geometry *g, GuestOff off, uint64_t len)
{
    uint64_t first = off.v >> g->cluster_bits, last = (off.v + len - 1) >> g->cluster_bits;
    uint64_t slice_last = first | (g->slice_entries - 1);
    if (last > slice_last) {
        last = slice_last;
        len = ((last + 1) << g->cluster_bits) - off.v;
    }
    return (ClusterSpan){off, len, first, last - first + 1, first & (g->slice_entries - 1)};
}

// Guest offset of its cluster `i`.
static inline GuestOff cluster_span_cluster(const Qcow2Geometry *g, const ClusterSpan *span,
                                            uint32_t i)
{
    return guest_off((span->first + i) << g->cluster_bits);
}

// What of it lies in its first `n` clusters.
static inline ClusterSpan cluster_span_head(const Qcow2Geometry *g, ClusterSpan span, uint32_t n)
{
    if (n < span.n) {
        span.n = n;
        span.len = cluster_span_cluster(g, &span, n).v - span.off.v;
    }
    return span;
}

// Where in an image's file the slice that maps it lies, in the L2 table at `table`.
static inline HostOff cluster_span_slice(const Qcow2Geometry *g, const ClusterSpan *span,
                                         HostOff table)
{
    uint64_t in_table = (span->first & (g->l2_entries - 1)) - span->index;
    return host_off(table.v + in_table * g->l2_entry_bytes);
}

// Bits of the subclusters that [from, to) touches in the cluster at `cluster_start` (guest bytes).
static inline uint32_t cluster_subclusters(const Qcow2Geometry *g, uint64_t cluster_start,
                                           uint64_t from, uint64_t to)
{
    from = MAX(from, cluster_start);
    to = MIN(to, cluster_start + g->cluster_bytes);
    if (from >= to)
        return 0;
    uint32_t first = (from - cluster_start) >> g->subcluster_bits;
    uint32_t last = (to - 1 - cluster_start) >> g->subcluster_bits;
    return (uint32_t)((UINT64_C(2) << last) - (UINT64_C(1) << first));
}
