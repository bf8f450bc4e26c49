// SPDX-License-Identifier: LGPL-2.1-or-later
// A copy engine as the work of a job: it is paused, cancelled, limited, and tells of itself and of
// errors, as the job's users want it. On the work's loop.
#pragma once

#include "copy-engine.h"
#include "jobs/job-control.h"

// First member of the struct that is CopyEngineConfig.arg, whose ops are then
// {.find = …, .copy = …, JOB_COPY_OPS}.
typedef struct JobCopy {
    JobControl *control;
    CopyEngine *engine; // owned
    JobOnError on_read_error, on_write_error;
    bool retries_ignored;  // an error to be ignored is tried again, and else left out to the end
    bool counts_all;       // progress is of the whole disk: what is no work is skipped
    Node *source, *target; // for messages, borrowed; NULL: they say less
    uint64_t size_bytes;   // of it
    uint64_t copied, shared, skipped; // that the job was told of
    uint64_t written_out;             // of what is copied: the target's file was told
    // The first failure that ends the run:
    int failure;
    bool failed_reading;
    uint64_t failed_off;
} JobCopy;

#define JOB_COPY_OPS                                                                               \
    .failed = job_copy_failed, .wants_pause = job_copy_wants_pause,                                \
    .pause_point = job_copy_pause_point, .progress = job_copy_progress

// Of what is copied into `target` as a whole: a cluster at least, so that no two granules are parts
// of one; on a large disk more, so that a bit for each takes some MiB at most, however they lie.
uint32_t job_copy_granularity_bits(uint64_t size_bytes, const Node *target, uint32_t least_bits);
// How to copy into `target`: the granularity of the work set (at least what is there already),
// chunks, and the window (what is there already, or else the usual one).
void job_copy_choose_sizes(CopyEngineConfig *config, Node *target);
// `control`, what to do on errors, `retries_ignored`, `counts_all`, `source` and `target` are set.
void job_copy_begin(JobCopy *copy, Loop *loop, const CopyEngineConfig *config);
// JobAskedFn of a job that has begun, for its owner's to call; `arg` is the JobCopy.
void job_copy_asked(void *arg);
void job_copy_end(JobCopy *copy); // frees the engine; accepts one that has not begun
// copy_engine_run(), at the speed that users want.
int job_copy_run(Fiber *self, JobCopy *copy);

// After a run, its result: if it is that of a chunk, *error says what could not be done, where.
void job_copy_explain(const JobCopy *copy, int result, GError **error);

// CopyEngineOps; `arg` is the JobCopy.
CopyErrorAction job_copy_failed(void *arg, const CopyChunk *chunk, int error);
bool job_copy_wants_pause(void *arg);
int job_copy_pause_point(Fiber *self, void *arg);
void job_copy_progress(void *arg);
