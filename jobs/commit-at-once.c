// SPDX-License-Identifier: LGPL-2.1-or-later
// An active commit that nobody watches or asks for anything: it completes as soon as it is ready.
// On the chain's loop.
#include "job-work.h"
#include "jobs/commit.h"

static void hear(void *arg, const JobNews *news)
{
}

static int finish(Fiber *self, Commit *commit, GError **error)
{
    bool is_switched;
    int r;
    do {
        r = commit_come_close(self, commit, error);
        if (r == 0)
            r = commit_switch(self, commit, &is_switched, error);
    } while (r > 0);
    return r;
}

static int run(Fiber *self, const CommitSpec *spec, JobControl *control, GError **error)
{
    Commit *commit = NULL;
    int r = commit_begin(self, spec, &commit, error);
    if (r == 0)
        r = commit_run(self, control, commit, error);
    if (r == 0)
        r = finish(self, commit, error);
    commit_end(self, commit);
    return r;
}

int commit_at_once(Fiber *self, const CommitSpec *spec, GError **error)
{
    Loop *loop = fiber_loop(self);
    JobControl *control = job_control_new(0);
    job_control_begin(control, loop, loop, hear, NULL);
    job_control_ask_end(control, JOB_END_COMPLETE);
    int r = run(self, spec, control, error);
    job_control_end(control);
    job_control_drop(control);
    return r;
}
