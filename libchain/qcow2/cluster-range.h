// SPDX-License-Identifier: LGPL-2.1-or-later
// Whole clusters of the host file. A value.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/qcow2-table.h"

typedef struct ClusterRange {
    uint64_t first, n;
} ClusterRange;

static inline bool cluster_range_overlaps(ClusterRange a, ClusterRange b)
{
    return a.first < b.first + b.n && b.first < a.first + a.n;
}

// Sorts an array of ClusterRange, and makes neighbours one. Those that overlap stay apart.
void cluster_ranges_merge(GArray *ranges);

// The clusters of the image's file that an L2 entry names. False: none; data in a file of its own
// has no refcounts.
static inline bool cluster_range_of_entry(const Qcow2Geometry *g, const Qcow2L2Entry *e,
                                          ClusterRange *ret_range)
{
    bool has_host = e->kind == QCOW2_CLUSTER_DATA || e->kind == QCOW2_CLUSTER_ZERO_ALLOCATED;
    bool is_compressed = e->kind == QCOW2_CLUSTER_COMPRESSED;
    uint64_t last = is_compressed ? e->host.v + e->compressed_bytes - 1 : e->host.v;
    ret_range->first = e->host.v >> g->cluster_bits;
    ret_range->n = (last >> g->cluster_bits) - ret_range->first + 1;
    return (has_host || is_compressed) && !g->external_data;
}
