// SPDX-License-Identifier: LGPL-2.1-or-later
// An entry is made when a job has cleaned up, and written by a fiber of its own: events must not
// wait.
#include "job-history.h"

#include <string.h>

#include "log.h"

enum { MAX_ENTRIES = CATALOGUE_MAX_HISTORY };

typedef struct Begun {
    gint64 real_us, monotonic_us;
    char *disk; // NULL: none is busy with it
} Begun;

struct JobHistory {
    Catalogue *catalogue;
    GQueue entries;    // json_t, the last one first
    GHashTable *begun; // Begun, by id
};

static void begun_free(gpointer p)
{
    g_free(((Begun *)p)->disk);
    g_free(p);
}

JobHistory *job_history_new(Catalogue *catalogue)
{
    JobHistory *history = g_new0(JobHistory, 1);
    history->catalogue = catalogue;
    history->begun = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, begun_free);
    g_queue_init(&history->entries);
    for (json_t *entry; catalogue && (entry = g_queue_pop_head(&catalogue->history));)
        g_queue_push_tail(&history->entries, entry);
    return history;
}

void job_history_free(JobHistory *history)
{
    if (!history)
        return;
    for (json_t *entry; (entry = g_queue_pop_head(&history->entries));)
        json_decref(entry);
    g_hash_table_unref(history->begun);
    g_free(history);
}

static char *disk_of(const JobHistory *history, const char *id)
{
    for (guint i = 0; history->catalogue && i < history->catalogue->disks->len; i++) {
        const Disk *disk = history->catalogue->disks->pdata[i];
        if (g_strcmp0(disk->job, id) == 0)
            return g_strdup(disk->name);
    }
    return NULL;
}

static void begin(JobHistory *history, const Job *job)
{
    Begun *begun = g_new(Begun, 1);
    *begun = (Begun){g_get_real_time(), g_get_monotonic_time(), disk_of(history, job_id(job))};
    g_hash_table_replace(history->begun, g_strdup(job_id(job)), begun);
}

typedef struct Writing {
    Catalogue *catalogue;
    json_t *entry;
} Writing;

static void write_fiber(Fiber *self, void *arg)
{
    Writing *writing = arg;
    g_autoptr(GError) error = NULL;
    DatabaseChange *change = database_change_new();
    catalogue_add_history(change, writing->entry);
    if (database_write(self, writing->catalogue->database, change, &error) < 0)
        log_line(LOG_ERROR, "how a job ended is not remembered: %s", error->message);
    json_decref(writing->entry);
    g_free(writing);
}

static json_t *describe(Loop *loop, const Job *job, const Begun *begun, bool is_cancelled)
{
    JobInfo info = job_info(job, loop_now_ns(loop));
    const char *error = job_error(job);
    g_autofree char *valid = error ? g_utf8_make_valid(error, -1) : NULL;
    double seconds = (double)(g_get_monotonic_time() - begun->monotonic_us) / G_USEC_PER_SEC;
    return json_pack("{s:s, s:s, s:s*, s:s, s:s*, s:I, s:I, s:I, s:I, s:f}", "id", job_id(job),
                     "type", job_kind(job)->type, "disk", begun->disk, "result",
                     is_cancelled ? "cancelled"
                     : error      ? "failed"
                                  : "ok",
                     "error", is_cancelled ? NULL : valid, "began",
                     (json_int_t)(begun->real_us / G_USEC_PER_SEC), "copied",
                     (json_int_t)info.bytes[JOB_BYTES_COPIED], "shared",
                     (json_int_t)info.bytes[JOB_BYTES_SHARED], "skipped",
                     (json_int_t)info.bytes[JOB_BYTES_SKIPPED], "seconds", seconds);
}

static void end(JobHistory *history, Loop *loop, const Job *job, bool is_cancelled)
{
    const Begun *begun = g_hash_table_lookup(history->begun, job_id(job));
    if (!begun)
        return;
    json_t *entry = describe(loop, job, begun, is_cancelled);
    g_queue_push_head(&history->entries, entry);
    while (history->entries.length > MAX_ENTRIES)
        json_decref(g_queue_pop_tail(&history->entries));
    g_hash_table_remove(history->begun, job_id(job));
    if (!history->catalogue)
        return;
    Writing *writing = g_new(Writing, 1);
    *writing = (Writing){history->catalogue, json_incref(entry)};
    if (fiber_spawn_reserve(loop, "job history", write_fiber, writing) == 0)
        return;
    json_decref(entry);
    g_free(writing);
}

void job_history_happened(JobHistory *history, Loop *loop, const Job *job, const JobEvent *event)
{
    if (event->kind == JOB_EVENT_STATUS && job_status(job) == JOB_CREATED)
        begin(history, job);
    else if (event->kind == JOB_EVENT_STATUS && job_status(job) == JOB_NULL)
        g_hash_table_remove(history->begun, job_id(job));
    else if (event->kind == JOB_EVENT_COMPLETED || event->kind == JOB_EVENT_CANCELLED)
        end(history, loop, job, event->kind == JOB_EVENT_CANCELLED);
}

const char *job_history_disk(const JobHistory *history, const Job *job)
{
    const Begun *begun = g_hash_table_lookup(history->begun, job_id(job));
    return begun ? begun->disk : NULL;
}

json_t *job_history_entries(const JobHistory *history)
{
    json_t *entries = json_array();
    for (GList *at = history->entries.head; at; at = at->next)
        json_array_append(entries, at->data);
    return entries;
}
