// SPDX-License-Identifier: LGPL-2.1-or-later
// Whole clusters of the host file. A value.
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct ClusterRange {
    uint64_t first, n;
} ClusterRange;

static inline bool cluster_range_overlaps(ClusterRange a, ClusterRange b)
{
    return a.first < b.first + b.n && b.first < a.first + a.n;
}
