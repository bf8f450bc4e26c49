// SPDX-License-Identifier: LGPL-2.1-or-later
// Backup: a copy of what a node shows at one moment, made while guests go on writing. What they are
// about to change is saved first; nobody above the node sees a difference.
//
//     backup_begin → backup_drain → backup_commit → backup_resume → backup_run → backup_settle
//                                   (the moment)                               → backup_end
//
// The first steps are those of a Switch (chain-core/switch.h), taken together with those of other
// nodes for several disks at one moment; before the commit backup_end() takes them back.
//
// Write order: docs/ordering.md §20. Everything runs on the nodes' loop; what takes a Fiber, in
// one.
#pragma once

#include <glib.h>

#include "chain-core/dirty-bitmap.h"
#include "chain-core/node.h"
#include "jobs/job-control.h"

typedef struct Backup Backup;

typedef enum BackupSync {
    BACKUP_SYNC_FULL,   // all
    BACKUP_SYNC_TOP,    // what the source's topmost layer owns
    BACKUP_SYNC_NONE,   // what guests change from then on, until it is cancelled
    BACKUP_SYNC_BITMAP, // what is dirty in the bitmap
} BackupSync;

// What becomes of a bitmap at the end. Until then, and whatever happens, it holds what it did and
// what guests have changed since.
typedef enum BackupBitmapMode {
    BACKUP_BITMAP_NEVER,      // that
    BACKUP_BITMAP_ON_SUCCESS, // after a backup that went well, what guests have changed since
    BACKUP_BITMAP_ALWAYS,     // that, and what was not copied
} BackupBitmapMode;

// Borrowed for the call, the nodes and the bitmap referenced until the end.
typedef struct BackupSpec {
    const char *name;      // the job's, for messages
    Node *source, *target; // of the same loop and size
    BackupSync sync;
    // The target is an overlay of the source (under filters, perhaps). With sync `none` it shows
    // the moment of the backup from then on to who reads it, without holding guests up; when the
    // backup is over, reads of what was not saved fail. Otherwise nobody reads it meanwhile.
    bool is_over_source;
    DirtyBitmap *bitmap; // of the source, where it is used, or NULL
    BackupBitmapMode bitmap_mode;
    uint64_t max_chunk_bytes, max_chunks; // of one; under way. 0: chosen
    uint32_t granularity_bits;            // of what is copied at once, at least; 0: chosen
    bool discards_source; // what has been copied in the background; then it is writable
    bool compresses;      // the target's clusters: node_can_compress()
    bool uses_buffers;    // the host is not asked to share or copy between files
    bool verifies;        // what was written to the target is read back and compared
    JobOnError on_source_error, on_target_error;
    bool breaks_guests;      // a guest's request fails where its granules cannot be saved
    uint64_t cbw_timeout_ns; // for which it waits for that at most; 0: no limit
} BackupSpec;

// The caller has seen to it that nobody else writes the target, which is writable. NULL with a
// sentence.
Backup *backup_begin(Fiber *self, const BackupSpec *spec, GError **error);
int backup_drain(Fiber *self, Backup *backup, GError **error); // -ETIMEDOUT with a sentence, …
void backup_commit(Backup *backup);                            // memory only
void backup_resume(Backup *backup);
// JobKind.run; `backup` is a Backup. What was copied is durable when it returns 0.
int backup_run(Fiber *self, JobControl *control, void *backup, GError **error);
// Once it is known whether the backup is one: what that means for the bitmap. A failure leaves in
// the bitmap what a backup that failed does.
int backup_settle(Fiber *self, Backup *backup, bool is_good, GError **error);
// Last, whatever came before. Closes what nobody else uses any more. Accepts NULL.
void backup_end(Fiber *self, Backup *backup);

// The least that is copied at once: a cluster of the target, or more; 1 << `granularity_bits`, at
// least.
uint64_t backup_granule_bytes(const Node *source, Node *target, uint32_t granularity_bits);
