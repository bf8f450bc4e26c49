// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs that commands of disks start: those of block-stream, block-commit and others, with what the
// catalogue has to know at their end. Control loop, with the catalogue's lock.
#pragma once

#include "daemon/state/merges.h"
#include "job-start.h"
#include "jobs/job-pivot.h"

// First member of what a job of a disk hangs on.
typedef struct DiskJob {
    Daemon *daemon;
    Catalogue *catalogue;
    char *id;           // "delete-7"
    GPtrArray *disks;   // Disk, busy until its end
    GPtrArray *closing; // names of nodes that may not be needed then, those above first
    int64_t intent;
    MergeLeft left;
} DiskJob;

// `verb` is the first part of its id.
void disk_job_init(DiskJob *job, const QmpCall *call, Catalogue *catalogue, const char *verb);
// Members of `args` that all such jobs have: job-id, speed, auto-dismiss; a new reference.
json_t *disk_job_args(const DiskJob *job, const json_t *args);
// The job will change what lies where around this layer: disks that have it, or a point on it, are
// busy until its end, and its node is closed then if nobody uses it.
int disk_job_take(DiskJob *job, const DiskLayer *layer, GError **error);
// Only that the node is closed.
void disk_job_add_closing(DiskJob *job, const DiskLayer *layer);
// The disk is busy.
int disk_job_take_disk(DiskJob *job, Disk *disk, GError **error);
// Brings the disks that have `layer` to one loop, as far as they can be moved, so that it is there
// once.
void disk_job_gather(Fiber *self, const DiskJob *job, const DiskLayer *layer);

// Starts what `prepare` makes of `args`; the end is the follower's (which gets `job`, and frees
// it), on failure the caller's.
int disk_job_start(Fiber *self, const QmpCall *call, DiskJob *job, QmpPrepareJobFn *prepare,
                   const json_t *args, const JobFollower *follower, GError **error);
// At the end: nodes are held as the chains are now, others closed, files removed.
void disk_job_end(Fiber *self, DiskJob *job);
// Instead of a start: nobody is busy any more.
void disk_job_drop(Fiber *self, DiskJob *job);

// A stream into `merge->image`, whose disk's point goes with it, if one is named; `job` is taken.
typedef struct DiskStreamJob {
    DiskJob job; // first
    StreamMerge merge;
    char *point; // owned; NULL: none
} DiskStreamJob;
int disk_stream_start(Fiber *self, const QmpCall *call, DiskStreamJob *stream, const json_t *args,
                      GError **error);
// A commit of `merge->top` into `merge->base`, which is being merged from here on.
typedef struct DiskCommitJob {
    DiskJob job; // first
    CommitMerge merge;
    JobPivot pivot;
    bool is_pivoted;
} DiskCommitJob;
// Takes the layers of the merge, and opens what stands on the top, whose headers will name the
// base.
int disk_commit_open(Fiber *self, DiskCommitJob *commit, GError **error);
// `disk`'s `point` (or NULL), which the base shows, is forgotten before the first byte.
int disk_commit_start(Fiber *self, const QmpCall *call, DiskCommitJob *commit, Disk *disk,
                      Point *point, const json_t *args, GError **error);
// Begins again what a crash or somebody's cancel has left half merged.
void disk_jobs_resume(Fiber *self, const QmpCall *call, Catalogue *catalogue);
