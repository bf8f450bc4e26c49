// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs that are over. Control loop.
#include "job-history.h"

#include "daemon/daemon.h"
#include "jobs.h"

static const QmpType result_type = {
    .name = "JobResult",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"ok", "failed", "cancelled", NULL},
};
static const QmpType entry_type = {
    .name = "JobHistoryEntry",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"id", &qmp_str, .doc = "of the job"},
            {"type", &qmp_job_type, .doc = "what it did"},
            {"disk", &qmp_str, true, "for which disk, if one of its commands began it"},
            {"result", &result_type, .doc = "how it ended"},
            {"error", &qmp_str, true, "why it failed"},
            {"began", &qmp_int, .doc = "when, in seconds since 1970"},
            {"seconds", &qmp_number, .doc = "how long it took"},
            {"copied", &qmp_int, .doc = "bytes that were moved"},
            {"shared", &qmp_int, .doc = "bytes that files share since"},
            {"skipped", &qmp_int, .doc = "bytes with which nothing had to be done"},
            {0}},
};
static const QmpType entries_type = {.kind = QMP_ARRAY, .element = &entry_type};

static int query_job_history(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                             GError **error)
{
    *ret_reply = job_history_entries(call->daemon->history);
    return 0;
}

static const QmpCommand commands[] = {
    {"query-job-history", NULL, &entries_type,
     "How the last 100 jobs ended, the last one first. An extension. With a state directory it is "
     "remembered over restarts.",
     query_job_history, .is_query = true},
    {0},
};

const QmpFamily qmp_job_history_family = {.title = "Jobs that are over", .commands = commands};
