// SPDX-License-Identifier: LGPL-2.1-or-later
// Linear probing with backward-shift deletion, kept at most half full. Pure.

#include "qcow2/cluster-set.h"

#include <glib.h>

void cluster_set_done(ClusterSet *set)
{
    g_free(set->slots);
    *set = (ClusterSet){0};
}

static void insert(ClusterSet *set, uint64_t key)
{
    uint64_t i = cluster_set_slot(set, key - 1);
    while (set->slots[i])
        i = (i + 1) & set->mask;
    set->slots[i] = key;
}

static void grow(ClusterSet *set)
{
    ClusterSet bigger = {.mask = set->slots ? set->mask * 2 + 1 : 63, .n = set->n};
    bigger.slots = g_new0(uint64_t, bigger.mask + 1);
    for (uint64_t i = 0; set->slots && i <= set->mask; i++)
        if (set->slots[i])
            insert(&bigger, set->slots[i]);
    g_free(set->slots);
    *set = bigger;
}

bool cluster_set_add(ClusterSet *set, uint64_t cluster)
{
    if (cluster_set_contains(set, cluster))
        return false;
    if (!set->slots || set->n * 2 > set->mask)
        grow(set);
    insert(set, cluster + 1);
    set->n++;
    return true;
}

void cluster_set_remove(ClusterSet *set, uint64_t cluster)
{
    if (!cluster_set_contains(set, cluster))
        return;
    uint64_t i = cluster_set_slot(set, cluster);
    while (set->slots[i] != cluster + 1)
        i = (i + 1) & set->mask;
    // Close the gap: move back each later entry of this run that may stand earlier.
    for (uint64_t j = (i + 1) & set->mask; set->slots[j]; j = (j + 1) & set->mask) {
        uint64_t home = cluster_set_slot(set, set->slots[j] - 1);
        if (((j - home) & set->mask) >= ((j - i) & set->mask)) {
            set->slots[i] = set->slots[j];
            i = j;
        }
    }
    set->slots[i] = 0;
    set->n--;
}

uint64_t *cluster_set_list(const ClusterSet *set, uint64_t *ret_n)
{
    uint64_t *list = g_new(uint64_t, set->n), n = 0;
    for (uint64_t i = 0; n < set->n; i++)
        if (set->slots[i])
            list[n++] = set->slots[i] - 1;
    *ret_n = n;
    return list;
}
