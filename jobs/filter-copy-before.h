// SPDX-License-Identifier: LGPL-2.1-or-later
// Copy-before-write: a filter above the source of a backup. What guests are about to change there,
// and is not in the backup yet, is saved first; they wait for the granules that they change, and
// for nothing else. What is saved, or never was to be, costs them one look at a bitmap.
//
// The owner saves, too, from the other end (a backup in the background). Both go by `unsaved` and
// by the lock:
//
//     guest:  holds the range → reads the source, writes the target → clears the bits, saved() →
//             gives the range up → changes the source
//     chunk:  reads the source → holds the range → stale? → writes the target → clears the bits →
//             gives the range up
//
// so a bit is cleared with the range held, the source is changed only where all bits are clear, and
// a chunk that has read while a guest saved is stale, as saved() tells the copy engine.
//
// When a guest's granules cannot be saved, or not in time, it is the backup that fails, unless the
// guest is to: then its request does, and the granules can be saved later. On the node's loop.
#pragma once

#include "copy-nodes.h"

typedef struct CopyBeforeOps {
    CopyFindFn *find; // CopyEngineOps's; asked of what is unsaved, with the range held
    // A guest has saved the range: copies of it under way are to be dropped. Does not suspend.
    // NULL: nobody copies.
    void (*saved)(void *arg, uint64_t off, uint64_t len);
    // The backup has failed: guests go on without it. Once; does not suspend.
    void (*broken)(void *arg, int error);
    // The filter is being closed, and uses `config` no more. NULL: its owner knows.
    void (*closed)(Fiber *self, void *arg);
} CopyBeforeOps;

typedef struct CopyBeforeConfig {
    const char *name; // for messages
    // `source` goes under the filter with node_insert_filter(); `target` becomes a child beside it,
    // so that a drain of it stops guests, and may lie above the source. The port enters above.
    const CopyNodes *nodes;
    Bitmap *unsaved;         // by granules of at least a cluster of the target
    Bitmap *readable;        // what filter_copy_before_read() is to give; NULL: all
    uint64_t max_save_bytes; // of one save; a multiple of the granularity
    uint64_t timeout_ns;     // for which a guest's request waits at most; 0: no limit
    bool breaks_guests;      // a request fails where its granules cannot be saved
    const CopyBeforeOps *ops;
    void *arg;
} CopyBeforeConfig;

// All in `config` is borrowed, and outlives the filter's use. Returned with one reference.
Node *filter_copy_before_new(const CopyBeforeConfig *config);
bool filter_copy_before_is(const Node *node);
// What the owner's chunk has saved, up to chunk->off + chunk->len: called when its range was given
// up, without a suspend point between. -ENOMEM: it may look unsaved still, so the backup is broken.
int filter_copy_before_saved(Node *filter, const CopyChunk *chunk);
// The same, and what was saved is discarded in the source before, with the range held, so that
// guests who are about to change it wait, also when the backup breaks meanwhile; but not if a guest
// has saved some of it since it was copied, for then he may have changed it. A discard is a hint:
// it may fail.
int filter_copy_before_discard_saved(Fiber *self, Node *filter, const CopyChunk *chunk);
// Guests go on at once, as after a failure, which nobody is told; returns when no save is under
// way.
void filter_copy_before_stop(Fiber *self, Node *filter);
// 0, or why the backup is broken.
int filter_copy_before_error(const Node *filter);

// What the source showed when all was unsaved yet, as long as the backup is not broken: what is not
// saved is as it was, the rest is in the target. Nobody waits for who reads: the source is read
// without a lock, and of what it gave counts what is unsaved still when it has. -EACCES: the backup
// is broken, or stopped meanwhile, or part of the range is not readable.
int filter_copy_before_read(Fiber *self, Node *filter, GuestOff off, void *buf, size_t len);
// NodeOps.map of `view`, which reads so: zeros that metadata knows of, or what it is to be asked
// for.
int filter_copy_before_map(Fiber *self, Node *filter, Node *view, GuestOff off, uint64_t len,
                           NodeExtent *ret_extent);
// Whole granules in the range are not readable from now on, and are not saved any more; the target
// gives back their space. Nothing where all is readable for ever.
int filter_copy_before_forget(Fiber *self, Node *filter, GuestOff off, uint64_t len);
