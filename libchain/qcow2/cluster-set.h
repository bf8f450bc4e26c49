// SPDX-License-Identifier: LGPL-2.1-or-later
// A set of cluster numbers: which host clusters hold metadata, so that a write that would hit one
// of them is noticed. Open addressing; a look-up is a few ns. Pure.
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct ClusterSet {
    uint64_t *slots; // cluster number + 1; 0 = empty
    uint64_t mask;   // slots - 1
    uint64_t n;
} ClusterSet;

void cluster_set_done(ClusterSet *set);
// Returns false when `cluster` was in the set already (nothing changes).
bool cluster_set_add(ClusterSet *set, uint64_t cluster);
void cluster_set_remove(ClusterSet *set, uint64_t cluster);
uint64_t *cluster_set_list(const ClusterSet *set, uint64_t *ret_n); // owned; in no order

static inline uint64_t cluster_set_slot(const ClusterSet *set, uint64_t cluster)
{
    return (cluster * UINT64_C(0x9e3779b97f4a7c15) >> 20) & set->mask;
}

static inline bool cluster_set_contains(const ClusterSet *set, uint64_t cluster)
{
    if (!set->slots)
        return false;
    for (uint64_t i = cluster_set_slot(set, cluster); set->slots[i]; i = (i + 1) & set->mask)
        if (set->slots[i] == cluster + 1)
            return true;
    return false;
}
