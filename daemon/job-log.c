// SPDX-License-Identifier: LGPL-2.1-or-later
// A job that goes on by itself after an error tells its monitors only: it may do so for every
// piece.
#include "job-log.h"

#include "log.h"
#include "message-ids.h"

static void log_paused(const Job *job, const JobEvent *event, const char *disk)
{
    bool has_no_space = job_info(job, 0).io_status == JOB_IO_NOSPACE;
    LogAbout about = {
        .message_id = has_no_space ? MESSAGE_ID_JOB_NO_SPACE : NULL,
        .job = job_id(job),
        .disk = disk,
    };
    if (has_no_space)
        log_about(LOG_WARNING, &about,
                  "job '%s' is paused, because no space is left for what it writes: make some, and "
                  "let it go on (job-resume), or cancel it",
                  job_id(job));
    else
        log_about(LOG_WARNING, &about,
                  "job '%s' is paused, because it failed to %s: let it go on when the reason is "
                  "gone (job-resume), or cancel it",
                  job_id(job), event->is_read ? "read" : "write");
}

void job_log_happened(const Job *job, const JobEvent *event, const char *disk)
{
    if (event->kind == JOB_EVENT_ERROR && event->action == JOB_ERROR_STOP) {
        log_paused(job, event, disk);
    } else if (event->kind == JOB_EVENT_COMPLETED && job_error(job)) {
        LogAbout about = {.message_id = MESSAGE_ID_JOB_FAILED, .job = job_id(job), .disk = disk};
        log_about(LOG_ERROR, &about, "job '%s' (%s) failed: %s", job_id(job), job_kind(job)->type,
                  job_error(job));
    }
}
