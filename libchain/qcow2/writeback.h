// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-back of an image's metadata, in the order that keeps it consistent at every point
// (docs/ordering.md). For writable images. On the image's loop.
#pragma once

#include "chain-core/map-memory.h"
#include "qcow2/writeback-pass.h"

// States and invariants: writeback.c.
typedef struct Writeback {
    WritebackParts parts;
    Loop *loop;
    const MapMemory *memory;
    FiberWaitGroup *fibers; // counts the one in the background
    bool has_background;    // it is under way
    bool has_ended;         // no more passes
    bool running;
    FiberQueue next; // waiters of the pass after the running one
    uint64_t n_started, n_done;
    WritebackRest rest;                 // of the last pass
    uint64_t left_bytes, left_unlinked; // what was dirty, and unlinked, when it failed; else 0
} Writeback;

// The caller fills `parts` (of `dirty` only the cache), `loop`, `memory` and `fibers`, all
// borrowed.
void writeback_init(Writeback *w);
void writeback_done(Writeback *w);

// Makes durable all that completed before the call: data, refcounts, tables, L1. Callers that come
// while one runs share the next. 0 or -errno; -EIO for good after a failed sync. When some pieces
// could not be written the others are durable, and the caller may ask whether it depends on those
// that are not.
int writeback_run(Fiber *self, Writeback *w);
// After writeback_run() failed: is what lies at `place` (an L2 slice, an L1 entry) not durable?
bool writeback_has_failed(const Writeback *w, HostOff place);
// As writeback_run(), and fails, too, while a refcount is missing on which no entry in the pass
// depends. For one whose next step is a header that names clusters.
int writeback_run_all(Fiber *self, Writeback *w);
// As writeback_run(), for one who needs all refcounts on disk, and nothing else.
int writeback_run_refcounts(Fiber *self, Writeback *w);
// No more passes, since nobody knows what the disk says, or what is right: writeback_run() fails
// from now on.
void writeback_end(Writeback *w);

// After -ENOSPC: writes back, and waits until what was freed before the call can be taken again,
// unless something was released since `n_released` (of FreedClusters) was looked at. The caller
// must hold no pin on the image. False when another try is hopeless.
bool writeback_reclaim(Fiber *self, Writeback *w, uint64_t n_released);

// To be called before dirtying more metadata, with nothing held: starts write-backs when enough is
// dirty in all images, here or elsewhere. Waits for one of this image when far too much is and the
// image has more than its share, and returns its error if that does not help. It never waits for
// another image, and a write-back waits for no memory, so images cannot block each other. May
// suspend.
int writeback_throttle(Fiber *self, Writeback *w);
