// SPDX-License-Identifier: LGPL-2.1-or-later
// Pure.
#include "qcow2/cluster-range.h"

static int compare_ranges(const void *a, const void *b)
{
    const ClusterRange *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

void cluster_ranges_merge(GArray *ranges)
{
    g_array_sort(ranges, compare_ranges);
    guint out = 0;
    for (guint i = 1; i < ranges->len; i++) {
        ClusterRange *last = &g_array_index(ranges, ClusterRange, out);
        ClusterRange next = g_array_index(ranges, ClusterRange, i);
        if (last->first + last->n == next.first)
            last->n += next.n;
        else
            g_array_index(ranges, ClusterRange, ++out) = next;
    }
    if (ranges->len)
        g_array_set_size(ranges, out + 1);
}
