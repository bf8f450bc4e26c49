// SPDX-License-Identifier: LGPL-2.1-or-later
// A copy of a node that guests go on writing: the copy engine, the filter above the source that
// tells it what they write, and the moment at which both show the same and guests are taken from the
// one to the other, or the copy is let go. For an active commit and a mirror; for what nobody writes
// (a commit of layers in the middle) it is the engine alone.
//
//     live_copy_init → live_copy_begin → live_copy_run → live_copy_leave → live_copy_done
//
// On the nodes' loop.
#pragma once

#include "chain-core/switch.h"
#include "copy-nodes.h"
#include "job-copy.h"
#include "jobs/copy-mode.h"

typedef struct LiveCopySpec {
    const char *name;      // of the job, for messages; outlives the copy
    const char *owner;     // a literal: "mirror"
    Node *source, *target; // the caller's references outlive the copy
    bool is_live;          // guests write the source meanwhile
    bool ends_as_it_is;    // asked to end without completing, it does so at once
    bool completes_itself; // is never ready to its users: it goes on to its end
    CopyMode mode;
    uint64_t whole_bytes; // ForwardConfig's
} LiveCopySpec;

// First member of the struct that is CopyEngineConfig.arg, whose ops are then
// {.find = …, .copy = …, LIVE_COPY_OPS}.
typedef struct LiveCopy {
    JobCopy copy; // first
    LiveCopySpec spec;
    Port port; // entered for each look at metadata and each chunk
    CopyNodes nodes;
    RangeLock lock;
    Node *filter; // NULL: not in the graph
    bool is_ready, is_over;
    uint64_t looked_ns, left_before;
    unsigned n_looks_without_progress;
} LiveCopy;

#define LIVE_COPY_OPS                                                                              \
    .failed = live_copy_failed, .wants_pause = live_copy_wants_pause,                              \
    .pause_point = live_copy_pause_point, .progress = live_copy_progress

// `live` is zero-initialised but for what job_copy_begin() wants.
void live_copy_init(LiveCopy *live, const LiveCopySpec *spec);
// Makes the engine (sizes of chunks are chosen here), and puts the filter over the source.
void live_copy_begin(Fiber *self, LiveCopy *live, JobControl *control, CopyEngineConfig *config);
// Copies; a live copy is ready then, and stays in step with what guests write until users want it to
// end: 0.
int live_copy_run(Fiber *self, LiveCopy *live);
// For who runs the engine by himself: users hear of it, and from here on may want it to end; they are
// not asked any more.
void live_copy_set_ready(LiveCopy *live);
void live_copy_set_over(LiveCopy *live);
// It was ready, and is to end by completing.
bool live_copy_is_to_complete(const LiveCopy *live);
// After a run that went well. Waits until both show the same and the target is durable; then, while
// nobody enters, `plan` is done, the steps that `arg`'s owner records in the switch. On failure
// nothing has changed.
typedef void LiveCopyPlanFn(Switch *s, void *arg);
int live_copy_leave(Fiber *self, LiveCopy *live, LiveCopyPlanFn *plan, void *arg, GError **error);
// Takes the filter out if it is there still. Accepts one that has not begun, or is zero.
void live_copy_done(Fiber *self, LiveCopy *live);

// The target, before what depends on it.
int live_copy_make_durable(Fiber *self, const LiveCopy *live, GError **error);
// The requests under way have not ended within a reasonable time.
int live_copy_drain(Fiber *self, const LiveCopy *live, Switch *s, GError **error);

// CopyEngineOps; `arg` is the LiveCopy.
CopyErrorAction live_copy_failed(void *arg, const CopyChunk *chunk, int error);
bool live_copy_wants_pause(void *arg);
int live_copy_pause_point(Fiber *self, void *arg);
void live_copy_progress(void *arg);
