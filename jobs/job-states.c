// SPDX-License-Identifier: LGPL-2.1-or-later
// The tables are QEMU's. A job that ends while it is paused leaves the pause first.
#include "jobs/job-states.h"

#include <glib.h>

// The verbs that a state allows, and the states that may follow it.
typedef struct State {
    const char *name;
    unsigned verbs, next; // of 1 << JobVerb, 1 << JobStatus
} State;

enum {
    AT_WORK =
        1 << JOB_CANCEL | 1 << JOB_PAUSE | 1 << JOB_RESUME | 1 << JOB_SET_SPEED | 1 << JOB_CHANGE,
};

static const State states[JOB_N_STATUSES] = {
    [JOB_CREATED] = {"created", AT_WORK, 1 << JOB_RUNNING | 1 << JOB_ABORTING | 1 << JOB_NULL},
    [JOB_RUNNING] = {"running", AT_WORK,
                     1 << JOB_PAUSED | 1 << JOB_READY | 1 << JOB_WAITING | 1 << JOB_ABORTING},
    [JOB_PAUSED] = {"paused", AT_WORK, 1 << JOB_RUNNING},
    [JOB_READY] = {"ready", AT_WORK | 1 << JOB_COMPLETE,
                   1 << JOB_STANDBY | 1 << JOB_WAITING | 1 << JOB_ABORTING},
    [JOB_STANDBY] = {"standby", AT_WORK | 1 << JOB_COMPLETE, 1 << JOB_READY},
    [JOB_WAITING] = {"waiting", 1 << JOB_CANCEL, 1 << JOB_PENDING | 1 << JOB_ABORTING},
    [JOB_PENDING] = {"pending", 1 << JOB_CANCEL | 1 << JOB_FINALIZE,
                     1 << JOB_ABORTING | 1 << JOB_CONCLUDED},
    [JOB_ABORTING] = {"aborting", 0, 1 << JOB_CONCLUDED},
    [JOB_CONCLUDED] = {"concluded", 1 << JOB_DISMISS, 1 << JOB_NULL},
    [JOB_NULL] = {"null", 0, 0},
};

static const char *const verb_names[JOB_N_VERBS] = {
    [JOB_CANCEL] = "cancel",     [JOB_PAUSE] = "pause",         [JOB_RESUME] = "resume",
    [JOB_COMPLETE] = "complete", [JOB_FINALIZE] = "finalize",   [JOB_DISMISS] = "dismiss",
    [JOB_CHANGE] = "change",     [JOB_SET_SPEED] = "set-speed",
};

const char *job_status_name(JobStatus status)
{
    return states[status].name;
}

const char *job_verb_name(JobVerb verb)
{
    return verb_names[verb];
}

bool job_status_may_follow(JobStatus from, JobStatus to)
{
    return states[from].next >> to & 1;
}

bool job_status_allows(JobStatus status, JobVerb verb)
{
    return states[status].verbs >> verb & 1;
}

char *job_states_text(void)
{
    GString *text = g_string_new("| state | may be followed by | allows |\n| --- | --- | --- |\n");
    for (JobStatus status = 0; status < JOB_N_STATUSES; status++) {
        g_string_append_printf(text, "| `%s` |", states[status].name);
        for (JobStatus next = 0; next < JOB_N_STATUSES; next++)
            if (job_status_may_follow(status, next))
                g_string_append_printf(text, " `%s`", states[next].name);
        g_string_append(text, " |");
        for (JobVerb verb = 0; verb < JOB_N_VERBS; verb++)
            if (job_status_allows(status, verb))
                g_string_append_printf(text, " %s", verb_names[verb]);
        g_string_append(text, " |\n");
    }
    return g_string_free(text, false);
}
