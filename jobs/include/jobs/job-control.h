// SPDX-License-Identifier: LGPL-2.1-or-later
// The seam between the work of a job and its users. The work runs in fibers of one loop, that of
// its node; what users ask comes from the control loop. They share atomics: who asks wakes the work
// by a message to its loop, and what the work tells goes back as messages, in order.
//
// This is the work's side: on its loop, unless said otherwise. Users have job.h.
//
//     for each piece:
//         r = job_pause_point(self, control)        nothing is held that others wait for
//         port_enter … read, write … port_leave     a drain waits for this piece, never for the job
//         on an error: job_error_action() says whether to end, go on, or try again
//         job_count(control, JOB_BYTES_COPIED, n)
//         job_sleep(self, control, ns)              for a rate limit: over early if somebody asks
//
// A drain is no pause: the job waits in port_enter() like everybody who enters there.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "chain-core/loop.h"
#include "jobs/copy-mode.h"

typedef struct JobControl JobControl;

// Goes on at once unless the job is paused; suspends then until it is resumed or cancelled, and
// users see it `paused` (or `standby`). 0, or -ECANCELED: it was cancelled; what is in flight is to
// end, and the job with it. Only one fiber of the work comes here, and to job_sleep(), with no port
// entered, no range locked, and nothing in flight that waits for it.
int job_pause_point(Fiber *self, JobControl *control);
// Suspends for `ns` (UINT64_MAX: without limit), or less, when a user asks for something: a pause,
// another speed, the end. Then a pause point.
int job_sleep(Fiber *self, JobControl *control, uint64_t ns);
// For the work's other fibers: is that one fiber to come to a pause point? Any thread.
bool job_is_asked(const JobControl *control);
bool job_is_cancelled(const JobControl *control); // any thread
// `asked` is called whenever a user has asked for something (whatever it is), for work that waits
// elsewhere than in job_sleep(): it must not suspend. NULL: no more.
typedef void JobAskedFn(void *arg);
void job_set_asked(JobControl *control, JobAskedFn *asked, void *arg);

// Bytes a second, 0: no limit. Any thread.
uint64_t job_speed(const JobControl *control);

// From here on the job can be completed (JobKind.can_be_ready). Once.
void job_ready(JobControl *control);
// How the job is to end, once it is ready.
typedef enum JobEnd {
    JOB_END_NOT_YET,
    JOB_END_COMPLETE,
    JOB_END_CANCEL, // well, but without what completing would do
} JobEnd;
JobEnd job_asked_end(const JobControl *control);

// Of a job that has one (JobSpec.copy_mode): what a user has asked for since it began;
// COPY_MODE_AUTOMATIC: nothing. Any thread.
CopyMode job_asked_copy_mode(const JobControl *control);
// It is another one now, and users are told; or the same.
void job_set_copy_mode(JobControl *control, CopyMode mode);
// Source and target show the same, and will as long as the mode is write-blocking; or not. Any
// thread.
void job_set_synced(JobControl *control, bool is_synced);

// -- progress: any thread, and read there ---------------------------------------------------------

// What has become of bytes that the job is to bring to their place.
typedef enum JobBytes {
    JOB_BYTES_COPIED,
    JOB_BYTES_SHARED,  // between files (reflinked): nothing was copied
    JOB_BYTES_SKIPPED, // there was nothing to be done
    JOB_N_BYTES,
} JobBytes;

// How much there is, as far as is known; it may change.
void job_set_total(JobControl *control, uint64_t total);
void job_add_total(JobControl *control, int64_t more);
// The job goes on until it is cancelled, whatever is done by then: nobody is told how long it
// takes.
void job_set_endless(JobControl *control);
// `bytes` of it are done. Only on the work's loop.
void job_count(JobControl *control, JobBytes how, uint64_t bytes);

// -- errors ---------------------------------------------------------------------------------------

// What a user wants done when reads or writes of the job fail.
typedef enum JobOnError {
    JOB_ON_ERROR_REPORT, // the job fails
    JOB_ON_ERROR_IGNORE, // it goes on, and fails at its end
    JOB_ON_ERROR_ENOSPC, // stop on ENOSPC, else report
    JOB_ON_ERROR_STOP,   // it is paused, and tries again when it is resumed
} JobOnError;

typedef enum JobErrorAction {
    JOB_ERROR_REPORT,
    JOB_ERROR_IGNORE,
    JOB_ERROR_STOP,
} JobErrorAction;

// What to do about `error` (negative), and users are told. After JOB_ERROR_STOP the job is paused
// at its next pause point; then the same piece is tried again.
JobErrorAction job_error_action(JobControl *control, JobOnError policy, int error, bool is_read);
