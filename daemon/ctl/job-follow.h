// SPDX-License-Identifier: LGPL-2.1-or-later
// Waits for a job and shows how far it is. Whatever ends the waiting, the job goes on.
#pragma once

#include "ctl.h"
#include "latency.h"

typedef struct JobFollow {
    const char *id;
    const char *label; // of the progress line: "web → delete mon"; NULL: the job's type and id
    double timeout_s;  // <0: none
    const char *disk;  // whose clients' latency is shown; NULL: nobody's
    const Latency *before; // what was counted before the job began
    bool completes;        // when it is ready, it is told to complete
    bool is_known;         // it was there since this connection was
} JobFollow;

// CTL_OK: it has done its work. CTL_PARTIAL: it still works at the end of the time.
// CTL_INTERRUPTED: by SIGINT; it was said how to wait or cancel. -1: it failed, or was cancelled,
// or is not there: `error`.
int job_follow(Ctl *ctl, const JobFollow *follow, GError **error);

// The jobs that there are, as rows: id, type, status, done, total, percent, rate, seconds-left,
// error. A new reference; NULL: `error`.
json_t *job_rows(Ctl *ctl, GError **error);
// The one of that id; NULL: there is none. Borrowed.
const json_t *job_rows_find(const json_t *rows, const char *id);
