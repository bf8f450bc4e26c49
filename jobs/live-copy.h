// SPDX-License-Identifier: LGPL-2.1-or-later
// A copy of a node that guests go on writing: the copy engine, the filter above the source that
// tells it what they write, and the moment at which both show the same and guests are taken from
// the one to the other, or the copy is let go. For an active commit and a mirror; for what nobody
// writes (a commit of layers in the middle) it is the engine alone.
//
//     live_copy_init → live_copy_begin
//       → live_copy_run           until it is asked to end; users can pause, limit, cancel it
//       → live_copy_come_close    \  as often as it takes; the second is the only step for which
//       → live_copy_try_leave     /  guests wait
//     live_copy_done              at any time
//
// The switch does no I/O while guests wait. What a flush of theirs has promised is durable in the
// target before that, too: once the copy is close, their flushes are the target's as well, and then
// it is flushed once more for all that came before. A guest's flush then takes as long as what is
// not durable in the target does, so before that the target is flushed alone until that gets no
// shorter.
//
// On the nodes' loop.
#pragma once

#include "chain-core/switch.h"
#include "copy-nodes.h"
#include "job-copy.h"
#include "jobs/copy-mode.h"
#include "jobs/job-pivot.h"
#include "unflushed.h"

typedef struct LiveCopySpec {
    const char *name;      // of the job, for messages; outlives the copy
    const char *owner;     // a literal: "mirror"
    Node *source, *target; // the caller's references outlive the copy
    bool is_live;          // guests write the source meanwhile
    bool ends_as_it_is;    // asked to end without completing, it does so at once
    bool completes_itself; // is never ready to its users: it goes on to its end
    CopyMode mode;
    uint64_t whole_bytes; // ForwardConfig's
    JobPivot pivot;
} LiveCopySpec;

// First member of the struct that is CopyEngineConfig.arg, whose ops are then
// {.find = …, .copy = …, LIVE_COPY_OPS}.
typedef struct LiveCopy {
    JobCopy copy; // first
    LiveCopySpec spec;
    Port port; // entered for each look at metadata and each chunk
    CopyNodes nodes;
    RangeLock lock;
    Unflushed unflushed; // of a live copy
    Node *filter;        // NULL: not in the graph
    bool is_ready, is_over;
    uint64_t look_done, look_left; // when the look at its progress began
    uint64_t look_bytes;           // that are to be done until it ends
    bool look_is_fair;             // all was known when it began
    unsigned n_tries;              // to leave
    uint64_t n_added;              // work that had come when the target began to be flushed last
} LiveCopy;

#define LIVE_COPY_OPS                                                                              \
    .failed = live_copy_failed, .wants_pause = live_copy_wants_pause,                              \
    .pause_point = live_copy_pause_point, .progress = live_copy_progress

// `live` is zero-initialised but for what job_copy_begin() wants.
void live_copy_init(LiveCopy *live, const LiveCopySpec *spec);
// Makes the engine (sizes of chunks are chosen here), and puts the filter over the source.
void live_copy_begin(Fiber *self, LiveCopy *live, JobControl *control, CopyEngineConfig *config);
// Copies; a live copy is ready then, and stays in step with what guests write until users want it
// to end: 0, and unless it ends as it is, little is left and little not durable.
int live_copy_run(Fiber *self, LiveCopy *live, GError **error);
// For callers that run the engine themselves: users hear of it, and from here on may want it to
// end; they are not asked any more.
void live_copy_set_ready(LiveCopy *live);
void live_copy_set_over(LiveCopy *live);
// It was ready, and is to end by completing.
bool live_copy_is_to_complete(const LiveCopy *live);
// After a run that went well: what is left is done and made durable, without a limit on the rate,
// for as long as it takes. Guests go on, and nothing need be held that others wait for.
int live_copy_come_close(Fiber *self, LiveCopy *live, GError **error);
// While nobody enters, `plan` is done, the steps that `arg`'s owner records in the switch: 0, and
// the filter is gone. 1: guests were faster, so it is to come close again. On failure nothing has
// changed.
typedef void LiveCopyPlanFn(Switch *s, void *arg);
int live_copy_try_leave(Fiber *self, LiveCopy *live, LiveCopyPlanFn *plan, void *arg,
                        GError **error);
// Both, for as long as it takes, where nothing is held that others wait for.
int live_copy_leave(Fiber *self, LiveCopy *live, LiveCopyPlanFn *plan, void *arg, GError **error);
// Instead: the filter is taken out, and in the same step, while no guest is inside, `fn` is called.
void live_copy_stop(Fiber *self, LiveCopy *live, SwitchFn *fn, void *arg);
// Takes the filter out if it is there still. Accepts one that has not begun, or is zero.
void live_copy_done(Fiber *self, LiveCopy *live);

// The target, before what depends on it.
int live_copy_make_durable(Fiber *self, LiveCopy *live, GError **error);
// The requests under way have not ended within a reasonable time.
int live_copy_drain(Fiber *self, const LiveCopy *live, Switch *s, GError **error);

// CopyEngineOps; `arg` is the LiveCopy.
CopyErrorAction live_copy_failed(void *arg, const CopyChunk *chunk, int error);
bool live_copy_wants_pause(void *arg);
int live_copy_pause_point(Fiber *self, void *arg);
void live_copy_progress(void *arg);
