// SPDX-License-Identifier: LGPL-2.1-or-later
// Both sides of the seam. Whoever asks changes an atomic first and sends the wake-up then; the work
// looks at the atomics and goes to sleep without a suspend point between, so that no wake-up is
// missed: one that arrives before the look has changed what it sees.
#include "jobs/job-control.h"

#include <errno.h>
#include <stdatomic.h>

#include "chain-core/fiber-sync.h"
#include "job-rate.h"
#include "job-work.h"

struct JobControl {
    atomic_uint n_refs;
    _Atomic uint64_t speed;
    atomic_uint pauses; // JOB_PAUSED_BY_…
    atomic_bool is_cancelled, is_asleep;
    _Atomic JobEnd asked_end;
    _Atomic CopyMode asked_copy_mode, copy_mode; // AUTOMATIC: not asked; it has none
    atomic_bool is_synced, is_endless;
    _Atomic uint64_t total, counts[JOB_N_BYTES];
    JobRate rate;
    // Of the work's loop.
    FiberQueue waiting;
    JobAskedFn *asked; // NULL: nobody is told
    void *asked_arg;
    // Set before the work begins.
    Loop *loop; // NULL on the control loop when the work has ended
    Loop *control_loop, *work_loop;
    JobHearFn *hear;
    void *arg;
};

// -- messages -------------------------------------------------------------------------------------

static void unref(JobControl *control)
{
    if (atomic_fetch_sub(&control->n_refs, 1) == 1)
        g_free(control);
}

typedef struct Wake {
    LoopCall call; // first
    JobControl *control;
} Wake;

static void wake_arrives(LoopCall *call)
{
    Wake *wake = (Wake *)call;
    JobControl *control = wake->control;
    fiber_queue_wake_all(&control->waiting);
    if (control->asked)
        control->asked(control->asked_arg);
    unref(control);
    g_free(wake);
}

static void wake_work(JobControl *control)
{
    if (!control->loop)
        return;
    Wake *wake = g_new(Wake, 1);
    *wake = (Wake){.call.fn = wake_arrives, .control = control};
    atomic_fetch_add(&control->n_refs, 1);
    loop_post(control->loop, &wake->call);
}

typedef struct NewsPost {
    LoopCall call; // first
    JobControl *control;
    JobNews news;
} NewsPost;

static void news_arrives(LoopCall *call)
{
    NewsPost *post = (NewsPost *)call;
    post->control->hear(post->control->arg, &post->news);
    unref(post->control);
    g_free(post);
}

// Where the work and its users share the loop, at once.
static void tell(JobControl *control, JobNews news)
{
    if (control->work_loop == control->control_loop) {
        control->hear(control->arg, &news);
        return;
    }
    NewsPost *post = g_new(NewsPost, 1);
    *post = (NewsPost){.call.fn = news_arrives, .control = control, .news = news};
    atomic_fetch_add(&control->n_refs, 1);
    loop_post(control->control_loop, &post->call);
}

// -- the job's side -------------------------------------------------------------------------------

JobControl *job_control_new(uint64_t speed)
{
    JobControl *control = g_new0(JobControl, 1);
    atomic_init(&control->n_refs, 1);
    atomic_init(&control->speed, speed);
    return control;
}

void job_control_drop(JobControl *control)
{
    if (control)
        unref(control);
}

void job_control_begin(JobControl *control, Loop *loop, Loop *control_loop, JobHearFn *hear,
                       void *arg)
{
    control->loop = control->work_loop = loop;
    control->control_loop = control_loop;
    control->hear = hear;
    control->arg = arg;
}

void job_control_end(JobControl *control)
{
    control->loop = NULL;
}

unsigned job_control_pauses(const JobControl *control)
{
    return atomic_load(&control->pauses);
}

void job_control_pause(JobControl *control)
{
    atomic_fetch_or(&control->pauses, JOB_PAUSED_BY_USER);
    wake_work(control);
}

void job_control_resume(JobControl *control)
{
    atomic_store(&control->pauses, 0);
    wake_work(control);
}

void job_control_cancel(JobControl *control)
{
    atomic_store(&control->is_cancelled, true);
    job_control_resume(control);
}

void job_control_ask_end(JobControl *control, JobEnd end)
{
    atomic_store(&control->asked_end, end);
    wake_work(control);
}

void job_control_set_speed(JobControl *control, uint64_t speed)
{
    atomic_store(&control->speed, speed);
    wake_work(control);
}

void job_control_begin_copy_mode(JobControl *control, CopyMode mode)
{
    atomic_store(&control->copy_mode, mode);
}

void job_control_ask_copy_mode(JobControl *control, CopyMode mode)
{
    atomic_store(&control->asked_copy_mode, mode);
    wake_work(control);
}

CopyMode job_control_copy_mode(const JobControl *control)
{
    return atomic_load(&control->copy_mode);
}

bool job_control_is_synced(const JobControl *control)
{
    return atomic_load(&control->is_synced);
}

bool job_control_is_busy(const JobControl *control)
{
    return control->loop && !atomic_load(&control->is_asleep);
}

bool job_control_is_endless(const JobControl *control)
{
    return atomic_load(&control->is_endless);
}

uint64_t job_control_total(const JobControl *control)
{
    return atomic_load(&control->total);
}

uint64_t job_control_count(const JobControl *control, JobBytes how)
{
    return atomic_load(&control->counts[how]);
}

uint64_t job_control_rate(const JobControl *control, uint64_t now_ns)
{
    return job_rate_get(&control->rate, now_ns);
}

// -- the work's side ------------------------------------------------------------------------------

bool job_is_cancelled(const JobControl *control)
{
    return atomic_load(&control->is_cancelled);
}

bool job_is_asked(const JobControl *control)
{
    return job_is_cancelled(control) || job_control_pauses(control);
}

void job_set_asked(JobControl *control, JobAskedFn *asked, void *arg)
{
    control->asked = asked;
    control->asked_arg = arg;
}

static void wait_while_paused(Fiber *self, JobControl *control)
{
    atomic_store(&control->is_asleep, true); // first: whoever hears of the pause may ask
    tell(control, (JobNews){.kind = JOB_NEWS_PAUSED});
    while (job_control_pauses(control) && !job_is_cancelled(control))
        fiber_queue_wait(self, &control->waiting, false, "job: paused");
    atomic_store(&control->is_asleep, false);
    tell(control, (JobNews){.kind = JOB_NEWS_RESUMED});
}

int job_pause_point(Fiber *self, JobControl *control)
{
    if (job_control_pauses(control) && !job_is_cancelled(control))
        wait_while_paused(self, control);
    return job_is_cancelled(control) ? -ECANCELED : 0;
}

int job_sleep(Fiber *self, JobControl *control, uint64_t ns)
{
    uint64_t now_ns = loop_now_ns(control->work_loop);
    uint64_t until_ns = ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + ns;
    if (!job_is_asked(control)) {
        atomic_store(&control->is_asleep, true);
        fiber_queue_wait_until(self, &control->waiting, until_ns, "job: asleep");
        atomic_store(&control->is_asleep, false);
    }
    return job_pause_point(self, control);
}

uint64_t job_speed(const JobControl *control)
{
    return atomic_load(&control->speed);
}

void job_ready(JobControl *control)
{
    tell(control, (JobNews){.kind = JOB_NEWS_READY});
}

JobEnd job_asked_end(const JobControl *control)
{
    return atomic_load(&control->asked_end);
}

CopyMode job_asked_copy_mode(const JobControl *control)
{
    return atomic_load(&control->asked_copy_mode);
}

void job_set_copy_mode(JobControl *control, CopyMode mode)
{
    if (atomic_exchange(&control->copy_mode, mode) != mode)
        tell(control, (JobNews){.kind = JOB_NEWS_COPY_MODE});
}

void job_set_synced(JobControl *control, bool is_synced)
{
    atomic_store(&control->is_synced, is_synced);
}

void job_set_endless(JobControl *control)
{
    atomic_store(&control->is_endless, true);
}

void job_set_total(JobControl *control, uint64_t total)
{
    atomic_store(&control->total, total);
}

void job_add_total(JobControl *control, int64_t more)
{
    atomic_fetch_add(&control->total, (uint64_t)more);
}

void job_count(JobControl *control, JobBytes how, uint64_t bytes)
{
    atomic_fetch_add(&control->counts[how], bytes);
    if (how != JOB_BYTES_SKIPPED)
        job_rate_count(&control->rate, loop_now_ns(control->work_loop), bytes);
}

// -- errors ---------------------------------------------------------------------------------------

static JobErrorAction action_of(JobOnError policy, int error)
{
    switch (policy) {
    case JOB_ON_ERROR_IGNORE:
        return JOB_ERROR_IGNORE;
    case JOB_ON_ERROR_ENOSPC:
        return error == -ENOSPC ? JOB_ERROR_STOP : JOB_ERROR_REPORT;
    case JOB_ON_ERROR_STOP:
        return JOB_ERROR_STOP;
    case JOB_ON_ERROR_REPORT:
        break;
    }
    return JOB_ERROR_REPORT;
}

// The first error is what the job is paused for.
static void pause_for(JobControl *control, int error)
{
    unsigned why = error == -ENOSPC ? JOB_PAUSED_BY_ENOSPC : JOB_PAUSED_BY_ERROR;
    unsigned pauses = atomic_load(&control->pauses);
    while (!(pauses & (JOB_PAUSED_BY_ERROR | JOB_PAUSED_BY_ENOSPC)) &&
           !atomic_compare_exchange_weak(&control->pauses, &pauses, pauses | why))
        ;
}

JobErrorAction job_error_action(JobControl *control, JobOnError policy, int error, bool is_read)
{
    JobErrorAction action = action_of(policy, error);
    if (action == JOB_ERROR_STOP)
        pause_for(control, error);
    tell(control, (JobNews){.kind = JOB_NEWS_ERROR, .is_read = is_read, .action = action});
    return action;
}
