// SPDX-License-Identifier: LGPL-2.1-or-later
// Events say what becomes of a job; how far it is is asked four times a second. Events count from
// the connection on, which is there before the job is looked for, so none is missed.
//
//     running ⇄ paused → (ready) → waiting → pending → concluded → gone
//     with BLOCK_JOB_COMPLETED, which has an error if it failed, or BLOCK_JOB_CANCELLED
#include "job-follow.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "field.h"
#include "progress.h"
#include "units.h"

enum { LOOK_MS = 250 };

typedef struct Following {
    const JobFollow *follow;
    Progress progress;
    Latency latency; // at the last look
    bool was_seen, is_over;
    bool is_ready, is_completing;
    bool was_cancelled;
    bool has_failed;
    char *failure; // what is known of why; NULL: nothing, or it has not failed
    char *type;    // NULL: never seen
    char *label;   // if it had to be made up
    int64_t began_us;
    json_t *row; // as last seen; NULL: never
} Following;

static volatile sig_atomic_t is_interrupted, is_asked; // by SIGINT, SIGUSR1

static void note_signal(int number)
{
    if (number == SIGINT)
        is_interrupted = 1;
    else
        is_asked = 1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = note_signal}; // system calls are interrupted
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
}

// -- rows -----------------------------------------------------------------------------------------

static json_t *row_new(const char *id, const json_t *info, json_int_t done, json_int_t total)
{
    json_int_t percent = total > 0 ? (json_int_t)(100 * ((double)done / (double)total)) : 0;
    return json_pack("{s:s, s:O, s:O, s:I, s:I, s:I, s:O*}", "id", id, "type", field(info, "type"),
                     "status", field(info, "status"), "done", done, "total", total, "percent",
                     percent, "error", field(info, "error"));
}

// Of bytes that there is something to do for: those that were skipped are not counted.
static json_t *block_job_row(const json_t *info)
{
    const json_t *progress = field(info, "progress");
    json_int_t done = field_int(progress, "copied") + field_int(progress, "shared");
    json_int_t left = field_int(info, "len") - field_int(info, "offset");
    json_t *row = row_new(field_text(info, "device"), info, done, done + MAX(left, 0));
    json_object_set(row, "rate", field(progress, "rate"));
    if (field(progress, "seconds-left"))
        json_object_set(row, "seconds-left", field(progress, "seconds-left"));
    if (g_strcmp0(field_text(info, "io-status"), "ok") != 0)
        json_object_set(row, "io-status", field(info, "io-status"));
    return row;
}

const json_t *job_rows_find(const json_t *rows, const char *id)
{
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row)
    {
        if (g_str_equal(field_text(row, "id"), id))
            return row;
    }
    return NULL;
}

json_t *job_rows(Ctl *ctl, GError **error)
{
    json_auto_t *block_jobs = ctl_run(ctl, "query-block-jobs", NULL, error);
    json_auto_t *jobs = block_jobs ? ctl_run(ctl, "query-jobs", NULL, error) : NULL;
    size_t i;
    const json_t *info;
    if (!jobs)
        return NULL;
    json_t *rows = json_array();
    json_array_foreach(block_jobs, i, info) json_array_append_new(rows, block_job_row(info));
    json_array_foreach(jobs, i, info)
    {
        if (!job_rows_find(rows, field_text(info, "id")))
            json_array_append_new(rows, row_new(field_text(info, "id"), info,
                                                field_int(info, "current-progress"),
                                                field_int(info, "total-progress")));
    }
    return rows;
}

// -- what becomes of it ---------------------------------------------------------------------------

static void fail_with(Following *f, const char *why)
{
    f->has_failed = true;
    if (!f->failure)
        f->failure = g_strdup(why);
}

static void hear(Following *f, const json_t *event)
{
    const char *name = field_text(event, "event");
    const json_t *data = field(event, "data");
    if (g_str_equal(name, "JOB_STATUS_CHANGE") &&
        g_str_equal(field_text(data, "id"), f->follow->id)) {
        const char *status = field_text(data, "status");
        f->was_seen = true;
        f->has_failed |= g_str_equal(status, "aborting");
        f->is_over |= g_str_equal(status, "null");
        f->is_ready |= g_str_equal(status, "ready");
        return;
    }
    if (!g_str_has_prefix(name, "BLOCK_JOB_") ||
        !g_str_equal(field_text(data, "device"), f->follow->id))
        return;
    if (g_str_equal(name, "BLOCK_JOB_CANCELLED"))
        f->was_cancelled = true;
    if (g_str_equal(name, "BLOCK_JOB_COMPLETED") && field(data, "error"))
        fail_with(f, field_text(data, "error"));
}

// One that waits to be dismissed has come to its end, too.
static int look(Ctl *ctl, Following *f, GError **error)
{
    json_auto_t *rows = job_rows(ctl, error);
    if (!rows)
        return -1;
    const json_t *row = job_rows_find(rows, f->follow->id);
    if (!row) {
        f->is_over |= f->was_seen;
        return 0;
    }
    f->was_seen = true;
    json_decref(f->row);
    f->row = json_deep_copy(row);
    f->is_ready |= g_str_equal(field_text(row, "status"), "ready");
    if (g_str_equal(field_text(row, "status"), "concluded")) {
        f->is_over = true;
        if (field(row, "error"))
            fail_with(f, field_text(row, "error"));
    }
    return 0;
}

// The end of a copy that stays in step with what clients write.
static int complete(Ctl *ctl, Following *f, GError **error)
{
    if (!f->follow->completes || !f->is_ready || f->is_completing)
        return 0;
    f->is_completing = true;
    return ctl_do(ctl, "job-complete", json_pack("{s:s}", "id", f->follow->id), error);
}

static void describe_latency(Ctl *ctl, Following *f, ProgressState *state)
{
    enum { ENOUGH = 100 }; // requests, for a 99th percentile
    const JobFollow *follow = f->follow;
    Latency now;
    if (!follow->disk || !follow->before || latency_count(follow->before) < ENOUGH ||
        latency_load(ctl, follow->disk, &now, NULL) < 0)
        return;
    Latency during = latency_since(&now, follow->before);
    if (latency_count(&during) < ENOUGH)
        return;
    state->knows_latency = true;
    state->latency_change_us =
        latency_percentile(&during, 0.99) - latency_percentile(follow->before, 0.99);
}

static const char *note_of(const json_t *row)
{
    const char *status = field_text(row, "status");
    if (g_str_equal(field_text(row, "io-status"), "nospace"))
        return "paused: there is no space left";
    if (g_str_equal(field_text(row, "io-status"), "failed"))
        return "paused for an error";
    return g_str_equal(status, "running") ? NULL : status;
}

static void show(Ctl *ctl, Following *f, bool is_forced)
{
    if (!f->row)
        return;
    if (!f->label && !f->follow->label) {
        f->label = g_strdup_printf("%s %s", field_text(f->row, "type"), f->follow->id);
        f->progress.label = f->label;
    }
    ProgressState state = {
        .done = (uint64_t)field_int(f->row, "done"),
        .total = (uint64_t)field_int(f->row, "total"),
        .rate = (uint64_t)field_int(f->row, "rate"),
        .seconds_left = field(f->row, "seconds-left") ? field_int(f->row, "seconds-left") : -1,
        .note = note_of(f->row),
    };
    describe_latency(ctl, f, &state);
    progress_show(&f->progress, &state, is_forced);
}

// -- the end --------------------------------------------------------------------------------------

static void say_detached(Ctl *ctl, Following *f)
{
    const char *id = f->follow->id;
    bool is_drawn = f->progress.is_drawn && is_interrupted;
    if (is_drawn)
        show(ctl, f, true); // over what the terminal has put behind it
    progress_end(&f->progress);
    fprintf(stderr, "%sstill running as job %s.   chainctl wait %s  |  chainctl cancel %s\n",
            is_drawn ? "^C  " : "", id, id, id);
}

static void say_done(const Following *f)
{
    g_autofree char *size = units_size((uint64_t)field_int(f->row, "done"));
    g_autofree char *clock =
        units_clock((uint64_t)((g_get_monotonic_time() - f->began_us) / 1000000));
    fprintf(stderr, "%s: done, %s in %s\n", f->progress.label ? f->progress.label : f->follow->id,
            size, clock);
}

static json_t *result_of(const Following *f, const char *result)
{
    double seconds = (double)(g_get_monotonic_time() - f->began_us) / 1e6;
    return json_pack("{s:s, s:s*, s:s, s:I, s:f, s:s*}", "id", f->follow->id, "type",
                     f->row ? field_text(f->row, "type") : NULL, "result", result, "done",
                     field_int(f->row, "done"), "seconds", seconds, "error", f->failure);
}

// What a job tells of its failure is a sentence, as in QEMU; it begins with the error's.
static CtlStatus status_of_failure(const Following *f)
{
    return f->failure && g_str_has_prefix(f->failure, "No space left") ? CTL_NO_SPACE : CTL_FAILED;
}

static int conclude(const Ctl *ctl, Following *f, GError **error)
{
    const char *result = f->was_cancelled ? "cancelled" : f->has_failed ? "failed" : "completed";
    progress_clear(&f->progress);
    if (ctl->output.format != OUTPUT_TABLE) {
        json_auto_t *object = result_of(f, result);
        output_json(&ctl->output, object);
    }
    if (f->was_cancelled)
        return ctl_fail(error, CTL_FAILED, "job %s was cancelled; every image is as it was before",
                        f->follow->id);
    if (f->has_failed)
        return ctl_fail(error, status_of_failure(f), "job %s failed: %s", f->follow->id,
                        f->failure ? f->failure : "the daemon's log says why");
    if (ctl->output.format == OUTPUT_TABLE && f->progress.is_terminal)
        say_done(f);
    return CTL_OK;
}

// How it ended, where the daemon remembers it; the last one of that id. Its job is over then.
static int recall(Ctl *ctl, Following *f, GError **error)
{
    json_auto_t *entries = qmp_client_has(ctl->client, "query-job-history")
                               ? ctl_run(ctl, "query-job-history", NULL, error)
                               : NULL;
    const json_t *entry = job_rows_find(entries, f->follow->id);
    if (!entry && error && *error)
        return -1;
    if (!entry)
        return ctl_fail(error, CTL_NOT_FOUND,
                        "there is no job '%s': 'chainctl jobs' lists those there are",
                        f->follow->id);
    const char *result = field_text(entry, "result");
    f->is_over = true;
    f->was_cancelled = g_str_equal(result, "cancelled");
    if (g_str_equal(result, "failed"))
        fail_with(f, field_text(entry, "error"));
    return 0;
}

// What came while the command ran that began it.
static int hear_queued(Ctl *ctl, Following *f, GError **error)
{
    f->was_seen = f->follow->is_known;
    for (json_t *event; f->was_seen && (event = qmp_client_next_event(ctl->client, 0, error));) {
        hear(f, event);
        json_decref(event);
    }
    return error && *error ? -1 : 0;
}

static int wait_for_end(Ctl *ctl, Following *f, GError **error)
{
    double timeout_s = f->follow->timeout_s;
    int64_t deadline_us = timeout_s < 0 ? INT64_MAX : f->began_us + (int64_t)(timeout_s * 1e6);
    if (hear_queued(ctl, f, error) < 0)
        return -1;
    while (!f->is_over) {
        int64_t next_us = g_get_monotonic_time() + LOOK_MS * 1000;
        if (look(ctl, f, error) < 0)
            return -1;
        if (!f->was_seen && recall(ctl, f, error) < 0)
            return -1;
        if (complete(ctl, f, error) < 0)
            return -1;
        show(ctl, f, is_asked);
        is_asked = 0;
        for (int64_t left_us; !f->is_over && !is_interrupted && !is_asked;) {
            left_us = MIN(next_us, deadline_us) - g_get_monotonic_time();
            if (left_us <= 0)
                break;
            json_auto_t *event =
                qmp_client_next_event(ctl->client, (int)((left_us + 999) / 1000), error);
            if (error && *error)
                return -1;
            if (event)
                hear(f, event);
            if (complete(ctl, f, error) < 0)
                return -1;
        }
        if (!f->is_over && is_interrupted)
            return CTL_INTERRUPTED;
        if (!f->is_over && g_get_monotonic_time() >= deadline_us)
            return CTL_PARTIAL;
    }
    return conclude(ctl, f, error);
}

int job_follow(Ctl *ctl, const JobFollow *follow, GError **error)
{
    Following f = {.follow = follow, .began_us = g_get_monotonic_time()};
    g_autoptr(GError) fault = NULL;
    if (!ctl_client(ctl, error))
        return -1;
    catch_signals();
    progress_init(&f.progress, follow->label, ctl->output.has_color);
    int r = wait_for_end(ctl, &f, &fault);
    if (r < 0)
        progress_clear(&f.progress);
    else if (r == CTL_INTERRUPTED || r == CTL_PARTIAL)
        say_detached(ctl, &f);
    g_free(f.failure);
    g_free(f.label);
    json_decref(f.row);
    if (fault)
        g_propagate_error(error, g_steal_pointer(&fault));
    return r;
}
