// SPDX-License-Identifier: LGPL-2.1-or-later
// The list of an image's internal snapshots in memory: which there are, who has a view of which,
// and that one at a time is made or deleted. The table on disk is snapshot-table.h. For this
// folder. On the image's loop.
#pragma once

#include <glib.h>

#include "chain-core/fiber-sync.h"
#include "format/qcow2-snapshot.h"

typedef struct ImageSnapshot {
    Qcow2Snapshot entry;
    unsigned n_views; // open on it: it can be neither deleted nor applied
    bool is_leaving;  // being deleted: no more views
    uint64_t number;  // that no other snapshot has as long as the process runs
} ImageSnapshot;

typedef struct SnapshotList {
    GPtrArray *all;       // of ImageSnapshot, owned; NULL: none
    uint64_t table_bytes; // as the table lies in the file
    bool needs_repair;    // counts or flags could not be put right: the next open does it
    bool is_changing;     // one is being made or deleted, no other meanwhile
    FiberQueue idle;      // who waits for the end of that
} SnapshotList;

// Takes what `entry` owns.
void snapshot_list_append(SnapshotList *list, Qcow2Snapshot *entry);
void snapshot_list_remove(SnapshotList *list, ImageSnapshot *snapshot); // frees it
void snapshot_list_done(SnapshotList *list);

static inline guint snapshot_list_count(const SnapshotList *list)
{
    return list->all ? list->all->len : 0;
}
static inline ImageSnapshot *snapshot_list_get(const SnapshotList *list, guint i)
{
    return list->all->pdata[i];
}

// By id, then by name; NULL.
ImageSnapshot *snapshot_list_find(const SnapshotList *list, const char *wanted);
// With that id and that name, of which one may be NULL and then says nothing; NULL.
ImageSnapshot *snapshot_list_find_exactly(const SnapshotList *list, const char *id,
                                          const char *name);
// Of some of them, for messages; "none" where there are none. Owned.
char *snapshot_list_names(const SnapshotList *list);

// The right to change the list: waits for whoever has it, or (try) is false when somebody does.
void snapshot_list_begin_change(Fiber *self, SnapshotList *list);
bool snapshot_list_try_begin_change(SnapshotList *list);
void snapshot_list_end_change(SnapshotList *list);
