// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs as their users see them: an id, a state, verbs, a result that stays known until the job is
// dismissed. Knows no kind of job. Everything here is for one loop, the daemon's control loop; the
// work of a job runs on another (jobs/job-control.h).
//
// A job runs, then waits for those of its group, and ends with them, in steps: all are prepared,
// which may fail; then each is committed, or each aborted, and cleaned.
#pragma once

#include <glib.h>
#include <stdint.h>

#include "jobs/job-control.h"
#include "jobs/job-states.h"

// What one kind of job does. `work` is its own. Functions but run() may be NULL, and are called on
// the control loop, in a fiber that holds no lock.
typedef struct JobKind {
    const char *type;  // "stream"
    bool is_block_job; // copies between nodes: query-block-jobs and BLOCK_JOB_* events tell of it
    bool can_be_ready; // calls job_ready(), and ends when it is asked to
    // On the loop that job_start() was given. 0, -ECANCELED after it was cancelled, or negative,
    // with a sentence or without.
    int (*run)(Fiber *self, JobControl *control, void *work, GError **error);
    // It was cancelled a while ago, and has not ended: what its work waits for, and nobody else
    // needs, is to fail. Must not suspend.
    void (*give_up)(void *work);
    // What has been done takes effect, or can from here on without fail: 0 or negative. Users
    // cannot cancel any more.
    int (*prepare)(Fiber *self, void *work, GError **error);
    // One of them, for each job that was started. A commit that `clears_up` (NULL: none does) takes
    // time for what its users, and the others of its group, need not wait for: they can set its
    // speed meanwhile, and cancel what is left of it.
    bool (*clears_up)(const void *work);
    void (*commit)(Fiber *self, void *work);
    void (*abort)(Fiber *self, void *work);
    // Last: frees `work`.
    void (*clean)(Fiber *self, void *work);
} JobKind;

#define JOB_ERROR (job_error_quark())
GQuark job_error_quark(void); // codes are errno

typedef struct Job Job;
typedef struct JobTable JobTable;
typedef struct JobGroup JobGroup;

// -- what happens to jobs -------------------------------------------------------------------------

typedef enum JobEventKind {
    JOB_EVENT_STATUS, // it is in another state
    JOB_EVENT_READY,
    JOB_EVENT_PENDING,   // it waits for job_finalize()
    JOB_EVENT_COMPLETED, // well, or not: job_error()
    JOB_EVENT_CANCELLED,
    JOB_EVENT_ERROR,     // a read or write of it failed
    JOB_EVENT_COPY_MODE, // JobInfo.copy_mode is another one
} JobEventKind;
typedef struct JobEvent {
    JobEventKind kind;
    bool is_read;          // ERROR
    JobErrorAction action; // ERROR
} JobEvent;
// Told when it has happened; must not suspend.
typedef void JobEventFn(void *arg, const Job *job, const JobEvent *event);

// -- all jobs -------------------------------------------------------------------------------------

JobTable *job_table_new(JobEventFn *happened, void *arg);
// No job may run. Accepts NULL.
void job_table_free(JobTable *table);
// NULL with "Job not found".
Job *job_table_get(const JobTable *table, const char *id, GError **error);
// Job, in the order in which they were made. Borrowed until the table changes.
const GPtrArray *job_table_all(const JobTable *table);
// Cancels all jobs, waits until none runs, and dismisses them.
void job_table_end(Fiber *self, JobTable *table);

// -- the life of a job ----------------------------------------------------------------------------

// Jobs that end together: when one fails or is cancelled, all are. They are joined before any of
// them is started. With one reference.
JobGroup *job_group_new(void);
void job_group_unref(JobGroup *group); // accepts NULL

typedef struct JobSpec {
    const char *id; // copied
    const JobKind *kind;
    void *work;           // taken by job_start()
    uint64_t speed;       // bytes a second; 0: no limit
    uint64_t total;       // of its progress, as far as is known
    bool waits_pending;   // for job_finalize()
    bool waits_concluded; // for job_dismiss()
    JobGroup *group;      // NULL: by itself
    CopyMode copy_mode;   // that it begins in; COPY_MODE_AUTOMATIC: it has none
} JobSpec;

// A job in state `created`. NULL with QEMU's words when the id is none, or taken.
Job *job_new(JobTable *table, const JobSpec *spec, GError **error);
// created → running; the work runs in a fiber of `loop`, and the job is borrowed from here on.
void job_start(Fiber *self, Job *job, Loop *loop);
// Instead of that, and before any of its group is started, created → null; or, for what has begun
// together with others, by `aborting`, as a cancelled job. Both free the job; its work is the
// caller's.
void job_drop(Job *job);
void job_drop_cancelled(Job *job);

// Who has more to do when a job ends than its kind does. On the control loop, in a fiber that holds
// no lock.
typedef struct JobFollower {
    // What the kind prepared has taken effect. A sentence, where it is no end that went well.
    int (*prepared)(Fiber *self, void *arg, GError **error);
    // Last, when the kind has cleaned up, and before users hear of the end: why it failed, or NULL.
    // Frees `arg`.
    void (*ended)(Fiber *self, void *arg, const char *error);
} JobFollower;
// Before the start. `follower` is borrowed; a job that is dropped calls none of it.
void job_follow(Job *job, const JobFollower *follower, void *arg);

// -- what users ask; -EPERM with QEMU's words where the state does not allow it -------------------

int job_check_verb(const Job *job, JobVerb verb, GError **error);
// `force`: also one that is ready ends without having completed, and one that is paused. One whose
// work is over already has concluded on return.
int job_cancel(Fiber *self, Job *job, bool force, GError **error);
int job_pause(Job *job, GError **error);
int job_resume(Job *job, GError **error);
int job_set_speed(Job *job, int64_t speed, GError **error);
// From now on; also where the job would choose.
int job_change_copy_mode(Job *job, CopyMode mode, GError **error);
int job_complete(Job *job, GError **error);
// And all of its group: they have concluded on return.
int job_finalize(Fiber *self, Job *job, GError **error);
int job_dismiss(Job *job, GError **error); // frees the job

// -- what is known --------------------------------------------------------------------------------

const char *job_id(const Job *job);
const JobKind *job_kind(const Job *job);
JobStatus job_status(const Job *job);
// Why it failed; NULL: it did not, or not yet.
const char *job_error(const Job *job);
bool job_waits_pending(const Job *job);
bool job_waits_concluded(const Job *job);

typedef enum JobIoStatus { JOB_IO_OK, JOB_IO_FAILED, JOB_IO_NOSPACE } JobIoStatus;
// Numbers may be of slightly different moments.
typedef struct JobInfo {
    uint64_t current, total;     // all that is done, of all there is
    uint64_t bytes[JOB_N_BYTES]; // JobBytes
    uint64_t rate;               // bytes a second copied or shared, in the last seconds
    int64_t seconds_left;        // at this rate; -1: not known, or there is no such time
    uint64_t speed;              // the limit; 0: none
    bool is_busy, is_paused;
    JobIoStatus io_status;
    CopyMode copy_mode; // now; COPY_MODE_AUTOMATIC: it has none
    bool is_synced;     // source and target show the same, and go on so
} JobInfo;
JobInfo job_info(const Job *job, uint64_t now_ns);
