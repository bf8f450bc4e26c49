// SPDX-License-Identifier: LGPL-2.1-or-later
// Mirror: a copy of what a node shows, that stays in step with what guests write, until they are
// taken to it, or it is left behind as it is at that moment. Nobody above sees a difference.
//
//     mirror_begin → mirror_run → mirror_come_close → mirror_switch → mirror_end
//
// Write order: docs/ordering.md §19. Everything runs on the nodes' loop, in a fiber.
#pragma once

#include <glib.h>

#include "chain-core/dirty-bitmap.h"
#include "jobs/copy-mode.h"
#include "jobs/job-control.h"
#include "jobs/job-pivot.h"

typedef struct Mirror Mirror;

// What is copied beside that which guests write meanwhile.
typedef enum MirrorSync {
    MIRROR_SYNC_FULL,   // all
    MIRROR_SYNC_TOP,    // what the source's topmost layer owns
    MIRROR_SYNC_NONE,   // nothing
    MIRROR_SYNC_BITMAP, // what is dirty in the bitmap
} MirrorSync;

// What becomes of the bitmap. Meanwhile it goes on noting what guests write, if it is enabled.
typedef enum MirrorBitmapMode {
    MIRROR_BITMAP_NEVER,      // nothing else
    MIRROR_BITMAP_ON_SUCCESS, // of a mirror that ended well: clean, from its last moment on
    MIRROR_BITMAP_ALWAYS,     // and of one that did not: what the target lacks
} MirrorBitmapMode;

// Borrowed for the call, the nodes and the bitmap referenced until the end.
typedef struct MirrorSpec {
    const char *name;      // the job's, for messages
    Node *source, *target; // of the same loop
    Node *replaced;        // in whose place the target comes: the source, or what it filters
    MirrorSync sync;
    DirtyBitmap *bitmap; // of the source, and consistent; NULL: none
    MirrorBitmapMode bitmap_mode;
    CopyMode copy_mode;
    bool target_is_zero;       // all of it, at the begin
    bool keeps_space;          // of zeros in the target
    bool verifies;             // what the job has written there is read back and compared
    uint32_t granularity_bits; // at least, of what is noted as changed; 0: chosen
    uint64_t window_bytes;     // of data in flight, at most; 0: chosen
    JobOnError on_source_error, on_target_error;
    JobPivot pivot;
    bool completes_itself; // it is never ready: nobody has to complete it
} MirrorSpec;

// The caller has seen to it that nobody else uses the target, which is writable.
Mirror *mirror_begin(const MirrorSpec *spec);
// JobKind.run; `mirror` is a Mirror. Asked to end without completing, it leaves a copy of that
// moment in the target, durable, when it returns 0.
int mirror_run(Fiber *self, JobControl *control, void *mirror, GError **error);
// After a run that went well, where it was asked to complete: first what is left is done, for as
// long as it takes: guests go on, and nothing need be held. Then the target comes in the place of
// the replaced node, which holds up guests for requests in flight only. 0. 1 from the second:
// guests were faster, so from the first again. Negative with a sentence, and nothing has changed.
// *ret_switched: it is.
int mirror_come_close(Fiber *self, Mirror *mirror, GError **error);
int mirror_switch(Fiber *self, Mirror *mirror, bool *ret_switched, GError **error);
// Last, whatever came before. Closes what nobody else uses any more. Accepts NULL.
void mirror_end(Fiber *self, Mirror *mirror);
