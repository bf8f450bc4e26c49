// SPDX-License-Identifier: LGPL-2.1-or-later
// The struct of a job, for the files that make its life: job.c (the table, what is known),
// job-life.c (start, groups, the end), job-verbs.c (what users ask). Control loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "job-work.h"
#include "jobs/job.h"

// Jobs that end together.
struct JobGroup {
    unsigned n_refs;
    GPtrArray *jobs; // Job, that have not concluded; they end in this order, the last one first
    unsigned n_left; // their work has not ended, or not begun
    bool has_failed;
    bool is_finalized; // by a user, or since none has to
    bool is_ending;    // it is too late to cancel
    unsigned n_clearing_up;
    bool is_over; // all have concluded
    FiberQueue changed;
};

struct Job {
    JobTable *table;
    JobGroup *group; // a reference
    JobControl *control;
    const JobKind *kind;
    void *work;
    char *id, *error;
    bool waits_pending, waits_concluded;
    bool is_clearing_up; // JobKind.clears_up
    JobStatus status;
    Loop *loop; // of the work; NULL: not started
    Loop *control_loop;
    LoopTimer give_up; // it was cancelled, and is not given so long to end
    int result;        // of the work, then of preparing
    GError *run_error;
    const JobFollower *follower; // NULL: nobody
    void *follower_arg;
};

// To be told of, and the transition to be one that there is.
void job_set_status(Job *job, JobStatus status);
void job_tell(const Job *job, JobEvent event);
// Its work is to end.
void job_cancel_work(Job *job);
// Frees the job, in state `null`.
void job_forget(Job *job);
// For the end of all: waits until no job runs; one does no more.
void job_table_wait(Fiber *self, JobTable *table);
void job_table_wake(JobTable *table);

// `job` has failed, or is cancelled: the others of its group are cancelled, too.
void job_group_fail(JobGroup *group, const Job *job);
// Returns when all have concluded, but for clearing up.
void job_group_wait(Fiber *self, JobGroup *group);
