// SPDX-License-Identifier: LGPL-2.1-or-later
// The job's side of the seam to its work (jobs/job-control.h): it asks, counts and hears. On the
// control loop.
#pragma once

#include "jobs/job-control.h"

typedef enum JobNewsKind {
    JOB_NEWS_PAUSED,
    JOB_NEWS_RESUMED,
    JOB_NEWS_READY,
    JOB_NEWS_ERROR,
    JOB_NEWS_COPY_MODE,
} JobNewsKind;

typedef struct JobNews {
    JobNewsKind kind;
    bool is_read;          // ERROR
    JobErrorAction action; // ERROR
} JobNews;
typedef void JobHearFn(void *arg, const JobNews *news); // must not suspend

// Who paused it: the bits of job_control_pauses(). The last two say why the work did.
enum {
    JOB_PAUSED_BY_USER = 1 << 0,
    JOB_PAUSED_BY_ERROR = 1 << 1,
    JOB_PAUSED_BY_ENOSPC = 1 << 2,
};

JobControl *job_control_new(uint64_t speed);
// Drops the owner's reference; messages under way have theirs. Accepts NULL.
void job_control_drop(JobControl *control);

// The work begins on `loop`, and tells its news on `control_loop`; and has ended: it tells no more,
// and is asked for nothing.
void job_control_begin(JobControl *control, Loop *loop, Loop *control_loop, JobHearFn *hear,
                       void *arg);
void job_control_end(JobControl *control);

unsigned job_control_pauses(const JobControl *control);
void job_control_pause(JobControl *control);  // by the user
void job_control_resume(JobControl *control); // whoever paused it
void job_control_cancel(JobControl *control); // and resumes
void job_control_ask_end(JobControl *control, JobEnd end);
void job_control_set_speed(JobControl *control, uint64_t speed);

// A job with a copy mode begins in that; a user wants another; and what it is by now.
void job_control_begin_copy_mode(JobControl *control, CopyMode mode);
void job_control_ask_copy_mode(JobControl *control, CopyMode mode);
CopyMode job_control_copy_mode(const JobControl *control);
bool job_control_is_synced(const JobControl *control);

// Is it neither paused nor asleep?
bool job_control_is_busy(const JobControl *control);
bool job_control_is_endless(const JobControl *control);
uint64_t job_control_total(const JobControl *control);
uint64_t job_control_count(const JobControl *control, JobBytes how);
uint64_t job_control_rate(const JobControl *control, uint64_t now_ns); // of copied and shared
