// SPDX-License-Identifier: LGPL-2.1-or-later
// What a snapshot's L1 table reaches is referenced once more for it: its L2 tables, and each
// cluster that their entries name. Counting that, and taking it back, in steps beside the guest's
// requests; with COPIED of the head's entries, which says where the count is one. For this folder.
// In a fiber on the image's loop.
#pragma once

#include "qcow2/mapping.h"

enum { SNAPSHOT_REFS_MAX_SLICES = 512 }; // of a table: a cluster of 2 MiB

// All is zero but the first four: nothing is counted yet.
typedef struct SnapshotRefs {
    Qcow2View *head;
    const Be64 *l1; // the snapshot's; it and the tables stay as they are
    uint64_t n_l1;
    const ClusterSet
        *no_tables; // clusters that cannot be L2 tables; NULL: the head's are known good
    // Counted are the tables before `i1`, and of that one itself (has_table) and its first entries.
    uint64_t i1;
    bool has_table;
    uint32_t n_entries;
    // Of the table that is being taken back: slices of which no entry names anything, a bit each.
    uint64_t empty_slices[SNAPSHOT_REFS_MAX_SLICES / 64];
    // ClusterRange: what lost its last reference, and is not released yet.
    GArray *last;
    bool is_incomplete;   // something could not be taken back, or put right
    uint64_t dirty_bytes; // made dirty since the last write-back
} SnapshotRefs;

// Counts the rest, in memory. On failure (-EOVERFLOW: a refcount's width does not hold more;
// -ENOSPC; -EIO, where a table cannot be read or is damaged) `refs` says how far it came. The
// head's tables must be marked as shared (mapping_is_shared()); those marks go as the references
// are counted.
int snapshot_refs_raise(Fiber *self, SnapshotRefs *refs);
// Takes back what was counted, and frees what nobody else references; nothing on disk names the L1
// table, and nobody reads through it. What cannot be read leaks.
void snapshot_refs_lower(Fiber *self, SnapshotRefs *refs);
