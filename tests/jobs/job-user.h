// SPDX-License-Identifier: LGPL-2.1-or-later
// The user of a job whose work is run in a fiber of a simulation: pauses, limits or cancels it at
// moments that its guests pick, and waits for it.
#pragma once

#include "guests.h"
#include "job-work.h"

// Zero-initialised but for the first members.
typedef struct JobUser {
    Guests *guests;
    bool makes_room;          // what has paused is resumed
    void (*ready)(void *arg); // NULL: nobody listens
    void *arg;                // of this and of the work
    JobControl *control;
    bool is_ready, is_over;
    FiberQueue changed;
} JobUser;

// The work ends with job_user_done().
void job_user_begin(Fiber *self, JobUser *user, FiberFn *work);
void job_user_done(JobUser *user);

// Pauses and limits it so many times; in the end it goes on without any.
void job_user_disturb(Fiber *self, JobUser *user, unsigned n_times);
void job_user_cancel(Fiber *self, JobUser *user); // after a while

void job_user_wait_ready(Fiber *self, JobUser *user); // or over
void job_user_end(Fiber *self, JobUser *user);        // once it is over
