// SPDX-License-Identifier: LGPL-2.1-or-later
// Internal snapshots of a qcow2 image, made and deleted while its head is written. What takes long
// (counting what a snapshot references) goes on beside the guest's requests, in steps; the guest
// waits for the moment itself only: for the writes that are under way then. On the loop of the
// head, in a fiber. Views on snapshots: qcow2_snapshot_view_new().
//
// `head` is always the writable head's view, kept open by the caller. One snapshot of an image is
// made or deleted at a time: a second call waits. After a power cut an image has a snapshot whole
// or not at all, and the next writable open gives back what counting it left behind
// (docs/ordering.md §13).
#pragma once

#include <glib.h>

#include "chain-core/node.h"

// As the snapshot table has it. Strings are owned by whoever got it.
typedef struct Qcow2SnapshotInfo {
    char *id, *name;
    uint64_t vm_state_bytes;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint64_t icount; // UINT64_MAX: none
    uint64_t size_bytes;
} Qcow2SnapshotInfo;
void qcow2_snapshot_info_clear(Qcow2SnapshotInfo *info);

// All of the image that `node` is a view of, in their order; owned. Empty for other nodes.
GArray *qcow2_snapshots(Node *node); // of Qcow2SnapshotInfo, cleared with it
// The one with that id and that name, of which one may be NULL. False: there is none.
bool qcow2_snapshot_find(Node *node, const char *id, const char *name, Qcow2SnapshotInfo *ret_info);

// Around work on snapshots of the image of `head`, however long that takes: it keeps its loop, and
// is not idle (node_check_idle()). Neither suspends.
void qcow2_snapshot_hold(Node *head);
void qcow2_snapshot_release(Node *head);

// A snapshot of the head as it is at one moment of the call, named `name`; its id is the next
// number. *ret_info (NULL: not wanted) says what was made. -EEXIST: a snapshot has that name.
// -ENOTSUP: the data is in a file of its own. -ENOSPC, -EOVERFLOW (refcounts too narrow), -EFBIG
// (too many): all is as before.
int qcow2_snapshot_create(Fiber *self, Node *head, const char *name, Qcow2SnapshotInfo *ret_info,
                          GError **error);

// The same in steps, for several disks at one moment: prepare each, drain what writes to each, take
// each, end the drains, finish each. prepare fails (-EBUSY) where another is being made or deleted.
// take suspends nowhere and cannot fail. After prepare comes finish or abort, which end it.
typedef struct Qcow2NewSnapshot Qcow2NewSnapshot;
int qcow2_snapshot_prepare(Fiber *self, Node *head, const char *name, Qcow2NewSnapshot **ret_new,
                           GError **error);
// One more of the same head and moment, between prepare and take: it comes after those before in
// the list. All of them are made or none, also after a power cut. *ret_info is that of the first. A
// failure, with the errors of qcow2_snapshot_create(), leaves those before as they were.
int qcow2_snapshot_prepare_another(Fiber *self, Qcow2NewSnapshot *new_snapshot, const char *name,
                                   GError **error);
void qcow2_snapshot_take(Qcow2NewSnapshot *new_snapshot);
int qcow2_snapshot_finish(Fiber *self, Qcow2NewSnapshot *new_snapshot, Qcow2SnapshotInfo *ret_info,
                          GError **error);
void qcow2_snapshot_abort(Fiber *self, Qcow2NewSnapshot *new_snapshot); // NULL is fine

// Deletes the snapshot with that id and that name, of which one may be NULL. -ENOENT; -EBUSY while
// a view of it is open. Once it is off the list, which is first, it succeeds; *ret_info (may be
// NULL) says what it was.
int qcow2_snapshot_delete(Fiber *self, Node *head, const char *id, const char *name,
                          Qcow2SnapshotInfo *ret_info, GError **error);
