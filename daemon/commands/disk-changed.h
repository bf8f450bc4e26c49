// SPDX-License-Identifier: LGPL-2.1-or-later
// What has changed on a disk since a checkpoint: what its bitmap says and, where the disk has got
// layers since, all that those own. Control loop, with the catalogue's lock.
#pragma once

#include "daemon/qmp/command.h"
#include "daemon/state/catalogue.h"

// A name for the bitmap of a checkpoint; owned.
char *disk_changed_bitmap_name(const char *checkpoint);
Checkpoint *disk_changed_find_checkpoint(const Disk *disk,
                                         const char *name); // or "last"; NULL: none
// Can its head note what changes? Not one that is raw, or read-only.
bool disk_changed_can_note(const Disk *disk);
// May a new checkpoint have that name?
int disk_changed_check_new(const Disk *disk, const char *name, GError **error);
// Takes the bitmap of that name off the head; what fails is logged. Accepts NULL.
void disk_changed_remove_bitmap(Fiber *self, const QmpCall *call, const Disk *disk,
                                const char *name);

typedef struct DiskChanges {
    const Checkpoint *since; // NULL: all of the disk counts
    char *bitmap;            // on the head: what has changed; NULL: all
    char *temporary;         // of that name, while it is needed; NULL: it is the checkpoint's own
    uint64_t bytes;          // how much that is, at most
    char *reason;            // why it is not what was asked for; NULL: it is
} DiskChanges;

// `since` NULL: all. "last": since the latest checkpoint that can be used, and all where none can,
// with the reason; another that cannot be used is an error. `id` is part of a temporary bitmap's
// name. Reads tables, and no data. `needs_file`: a checkpoint whose backup is not there cannot be
// used.
int disk_changes_find(Fiber *self, const QmpCall *call, Disk *disk, const char *since,
                      const char *id, bool needs_file, DiskChanges *ret_changes, GError **error);
void disk_changes_done(Fiber *self, const QmpCall *call, const Disk *disk, DiskChanges *changes);
