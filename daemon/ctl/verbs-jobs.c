// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verbs-jobs.h"

#include <stdio.h>

#include "ctl.h"
#include "job-follow.h"

static int run_history(Ctl *ctl, GError **error)
{
    static const Column columns[] = {
        {"id", "JOB", CELL_NAME},        {"type", "TYPE", CELL_TEXT},
        {"disk", "DISK", CELL_TEXT},     {"result", "RESULT", CELL_STATE},
        {"copied", "COPIED", CELL_SIZE}, {"seconds", "TOOK", CELL_CLOCK},
        {"error", "ERROR", CELL_TEXT},   {0},
    };
    json_auto_t *entries = ctl_run(ctl, "query-job-history", NULL, error);
    if (!entries)
        return -1;
    output_rows(&ctl->output, entries, columns, "no job has ended yet");
    return CTL_OK;
}

static int run_jobs(Ctl *ctl, GError **error)
{
    if (arguments_flag(ctl->arguments, "history"))
        return run_history(ctl, error);
    static const Column columns[] = {
        {"id", "JOB", CELL_NAME},
        {"type", "TYPE", CELL_TEXT},
        {"status", "STATUS", CELL_STATE},
        {"percent", "DONE", CELL_PERCENT},
        {"total", "OF", CELL_SIZE},
        {"rate", "RATE", CELL_RATE},
        {"seconds-left", "ETA", CELL_CLOCK},
        {"error", "ERROR", CELL_TEXT},
        {0},
    };
    json_auto_t *rows = job_rows(ctl, error);
    if (!rows)
        return -1;
    output_rows(&ctl->output, rows, columns, "no jobs");
    return CTL_OK;
}

static int run_wait(Ctl *ctl, GError **error)
{
    return job_follow(ctl,
                      &(JobFollow){
                          .id = ctl_word(ctl, 0),
                          .timeout_s = arguments_seconds(ctl->arguments, "timeout", -1),
                      },
                      error);
}

static int run_cancel(Ctl *ctl, GError **error)
{
    return ctl_do(ctl, "job-cancel", json_pack("{s:s}", "id", ctl_word(ctl, 0)), error);
}

static const VerbWord job_word[] = {{"JOB", WORD_JOB}, {0}};

static const VerbOption jobs_options[] = {
    {"history", 0, WORD_NONE, NULL, "those that are over, the last one first"},
    {0},
};
static const VerbOption wait_options[] = {
    {"timeout", 't', WORD_SECONDS, "SECS", "wait no longer (status 3); the job goes on"},
    {0},
};

static const Verb verbs[] = {
    {
        .name = "jobs",
        .summary = "List jobs, and how far they are",
        .text = "DONE and OF count the bytes that there is something to do for; what needs no\n"
                "copy is left out.",
        .examples = "chainctl jobs\nchainctl jobs --history --output=json",
        .options = jobs_options,
        .run = run_jobs,
    },
    {
        .name = "wait",
        .summary = "Wait for a job, and show how far it is",
        .text = "The status is 0 when the job has done its work, 1 when it failed or was\n"
                "cancelled, 3 when the time was over before. Ctrl-C ends the waiting, never the\n"
                "job. SIGUSR1 prints a line of progress.",
        .examples = "chainctl wait 7\nchainctl wait -t 60 7",
        .words = job_word,
        .options = wait_options,
        .run = run_wait,
    },
    {
        .name = "cancel",
        .summary = "End a job before its time",
        .text = "Every image is valid then, and shows what it did before.",
        .examples = "chainctl cancel 7",
        .words = job_word,
        .run = run_cancel,
    },
    {0},
};

const VerbFamily verbs_jobs_family = {.title = "Jobs", .verbs = verbs};
