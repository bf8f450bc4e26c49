// SPDX-License-Identifier: LGPL-2.1-or-later
#include "job-user.h"

static void hear(void *arg, const JobNews *news)
{
    JobUser *user = arg;
    if (news->kind == JOB_NEWS_READY) {
        user->is_ready = true;
        if (user->ready)
            user->ready(user->arg);
    }
    if (news->kind == JOB_NEWS_PAUSED && user->makes_room)
        job_control_resume(user->control);
    fiber_queue_wake_all(&user->changed);
}

void job_user_begin(Fiber *self, JobUser *user, FiberFn *work)
{
    Loop *loop = fiber_loop(self);
    user->control = job_control_new(0);
    job_control_begin(user->control, loop, loop, hear, user);
    fiber_assert_equal(fiber_spawn(loop, "job", work, user->arg, NULL), 0);
}

void job_user_done(JobUser *user)
{
    user->is_over = true;
    job_control_end(user->control);
    fiber_queue_wake_all(&user->changed);
}

void job_user_disturb(Fiber *self, JobUser *user, unsigned n_times)
{
    Guests *g = user->guests;
    for (unsigned i = 0; i < n_times; i++) {
        fiber_sleep(self, guests_pick(g, 2000000));
        uint64_t what = guests_pick(g, 3);
        if (what == 0)
            job_control_pause(user->control);
        job_control_set_speed(user->control, what == 1 ? 10000000 : 0);
        fiber_sleep(self, guests_pick(g, 2000000));
        if (!job_is_cancelled(user->control))
            job_control_resume(user->control);
    }
    job_control_set_speed(user->control, 0);
}

void job_user_cancel(Fiber *self, JobUser *user)
{
    fiber_sleep(self, guests_pick(user->guests, 3000000));
    job_control_cancel(user->control);
}

void job_user_wait_ready(Fiber *self, JobUser *user)
{
    while (!user->is_over && !user->is_ready)
        fiber_queue_wait(self, &user->changed, false, "the job");
}

void job_user_end(Fiber *self, JobUser *user)
{
    while (!user->is_over)
        fiber_queue_wait(self, &user->changed, false, "the job's end");
    fiber_sleep(self, 1000000); // its last messages
    job_control_drop(user->control);
}
