// SPDX-License-Identifier: LGPL-2.1-or-later
// The snapshot table of an image on disk: reading it, and new ones, which are written beside the
// old before the header names them. For this folder. In a fiber on the image's loop.
#pragma once

#include "qcow2/image.h"

// Of all snapshots together, of an image that is written: a bound on what a crafted one can fill
// memory with.
enum { SNAPSHOT_TABLE_MAX_L1_BYTES = 1 << 30 };

// Reads the table that the header names into the image's list, and checks each entry.
int snapshot_table_load(Fiber *self, Qcow2Image *image, GError **error);

// Clusters in one piece for metadata that nothing names yet, with their space on the host. -EFBIG:
// there is no room in one piece. Giving them back is allocator_release().
int snapshot_table_take_clusters(Fiber *self, Qcow2Image *image, uint64_t bytes,
                                 ClusterRange *ret_range);

// A table that no header names yet: the image's list, with one entry more or less.
typedef struct SnapshotTable {
    ClusterRange range; // taken for it; an empty list takes none
    uint64_t table_bytes;
    uint32_t n; // snapshots
    uint8_t *data;
} SnapshotTable;

// `added` (of Qcow2Snapshot *; may be NULL) go to the end, `removed` (may be NULL) is left out.
// -EFBIG: too many or too long. After 0, snapshot_table_done(); the clusters are the caller's.
int snapshot_table_make(Fiber *self, Qcow2Image *image, const GPtrArray *added,
                        const ImageSnapshot *removed, SnapshotTable *ret_table);
void snapshot_table_done(SnapshotTable *table);
// What `added` say has changed, but none of their lengths.
void snapshot_table_update(SnapshotTable *table, const GPtrArray *added);
// Not synced.
int snapshot_table_write(Fiber *self, Qcow2Image *image, const SnapshotTable *table);

// Sets or clears the dirty bit, in version 3: while it is set, the next writable open repairs.
int snapshot_table_set_dirty(Fiber *self, Qcow2Image *image, bool is_dirty);
// Counts and flags have been put right, in memory; or not all of them (is_incomplete). Where they
// all can be on disk they are, and the dirty bit goes; else it stays until the next open.
void snapshot_table_end_repair(Fiber *self, Qcow2Image *image, bool is_incomplete);

// Makes the header name `table` instead of the old one, which is freed, and changes the dirty bit
// to `is_dirty` in the same write (version 3). What the table names is durable before.
int snapshot_table_switch(Fiber *self, Qcow2Image *image, const SnapshotTable *table,
                          bool is_dirty);
