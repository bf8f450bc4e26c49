// SPDX-License-Identifier: LGPL-2.1-or-later
// Commit: what the layers from `top` down to, and without, `base` own is written into `base`; then
// they are left out of the chain. Nobody above sees a difference, before, meanwhile or after.
//
//     intermediate   overlays lie on `top`: their images record `base`, and whoever uses `top` uses
//                    that then
//     active         `top` is the head, and guests write it meanwhile. Once all is copied the job
//                    is ready, and stays in step; completed, whoever uses `top` uses `base`
//
// The top may stay in the chain, over the base: only what lies between leaves, and what the base
// has of the top then is given back. So nothing is pivoted to, and what guests write while an
// active commit comes to its end, and from then on, stays in the top.
//
// Until its end a commit that fails or is cancelled leaves the chain as it was, and base with part
// of what is above it: no state of the disk by itself any more. Write order: docs/ordering.md §18.
//
// Overlays of the base that are named as points stay valid points in time, whatever becomes of the
// commit, and so does what lies on them: each comes to own what base is about to lose. The one that
// is part of the chain is left out with the others, and is valid over the base all the same.
//
// Everything runs on the chain's loop, in a fiber.
#pragma once

#include <glib.h>

#include "chain-core/map-memory.h"
#include "chain-core/node.h"
#include "jobs/copy-mode.h"
#include "jobs/job-control.h"
#include "jobs/job-pivot.h"

typedef struct Commit Commit;

// Borrowed for the call, the nodes referenced until the end.
typedef struct CommitSpec {
    const char *name;      // the job's, for messages
    Node *top, *base;      // of one chain
    Node *const *overlays; // all images whose backing layer `top` is; none: it is active
    unsigned n_overlays;
    Node *const *points; // images whose backing layer `base` is, and that are to stay valid
    unsigned n_points;   // of an active commit only if the top stays: else guests write the base
    bool keeps_top;      // writable until the end then, without internal snapshots
    const char *backing_name,
        *backing_format; // that overlays, or the top that stays, are to record
    JobOnError on_error;
    CopyMode copy_mode;    // of an active commit; no matter if the top stays
    bool completes_itself; // an active commit is never ready: nobody has to complete it
    JobPivot pivot;        // of an active commit
    MapMemory *memory;
} CommitSpec;

// Makes `base` as large as `top`. Until the end it is writable, and so are overlays and points; and
// the caller has seen to it that nobody else relies on what the base and the layers in between
// show, unless points keep it. 0, or
// negative with a sentence, and nothing has changed.
int commit_begin(Fiber *self, const CommitSpec *spec, Commit **ret_commit, GError **error);
// JobKind.run; `commit` is a Commit.
int commit_run(Fiber *self, JobControl *control, void *commit, GError **error);
// After a run that went well. First what is left is done, for as long as it takes: guests go on,
// and nothing need be held. Then the layers are left out, which holds up guests for requests in
// flight only. 0. 1 from the second: guests were faster, so from the first again. Negative with a
// sentence, and the chain shows what it did. *ret_switched: it is another one now (not after an
// active commit was asked to end without).
int commit_come_close(Fiber *self, Commit *commit, GError **error);
int commit_switch(Fiber *self, Commit *commit, bool *ret_switched, GError **error);
// After that, if the top stays: what the base has is given back. Ends early once the job is
// cancelled. 0 or -errno: some of it has stayed in the top, and is right there.
int commit_give_back(Fiber *self, Commit *commit);
// All of that for an active commit, with nobody to ask it for anything: it completes when it is
// ready.
int commit_at_once(Fiber *self, const CommitSpec *spec, GError **error);
// Last, whatever came before. Closes what nobody else uses any more. Accepts NULL.
void commit_end(Fiber *self, Commit *commit);
