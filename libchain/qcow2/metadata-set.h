// SPDX-License-Identifier: LGPL-2.1-or-later
// Which clusters of the host file hold metadata in use (header, tables, refcount blocks, bitmap
// directory), so that a write that would hit one is noticed, and what is known of them:
//
//     with_space   the host has space for all of the cluster, so write-back needs none
//     new_tables   L2 tables that no L1 entry on disk names yet (docs/ordering.md §6)
//
// Metadata becomes dirty only where its space was reserved before (docs/ordering.md §10): a full
// host fails the request that needs space, and never a later flush. For writable images, on their
// loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "qcow2/cluster-set.h"
#include "qcow2/table-cache.h"

typedef struct MetadataSet {
    File *file;
    uint32_t cluster_bits;
    ClusterSet clusters;
    ClusterSet with_space, new_tables; // subsets
    FiberMutex space_mutex;            // one reservation at a time
} MetadataSet;

void metadata_set_init(MetadataSet *set, File *file, uint32_t cluster_bits); // borrows `file`
void metadata_set_done(MetadataSet *set);
bool metadata_set_add(MetadataSet *set, uint64_t cluster); // false: it was in the set already
void metadata_set_remove(MetadataSet *set, uint64_t cluster);
static inline bool metadata_set_contains(const MetadataSet *set, uint64_t cluster)
{
    return cluster_set_contains(&set->clusters, cluster);
}

// Takes space for a cluster of metadata of which nothing is dirty yet: a new table, whose content
// is in the file, or what holds an entry that is about to change. -ENOSPC. Suspends unless the
// space is known to be there.
int metadata_set_reserve(Fiber *self, MetadataSet *set, uint64_t cluster);

// The same for `slice` (held), before it becomes dirty: for its whole cluster, or where the host
// has no space for that, for the slice alone.
int metadata_set_reserve_slice(Fiber *self, MetadataSet *set, TableSlice *slice);
