// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verbs-daemon.h"

#include <stdio.h>
#include <time.h>

#include "ctl.h"

// -- status ---------------------------------------------------------------------------------------

static json_int_t sum_of(const json_t *rows, const char *key)
{
    json_int_t sum = 0;
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row) sum += json_integer_value(json_object_get(row, key));
    return sum;
}

// 0 for a daemon that remembers none.
static json_int_t count_disks(Ctl *ctl)
{
    json_auto_t *disks = ctl_run(ctl, "query-disks", NULL, NULL);
    return (json_int_t)json_array_size(disks);
}

static json_t *status_of(Ctl *ctl, const json_t *version, const json_t *exports, const json_t *jobs,
                         const json_t *level)
{
    return json_pack("{s:s, s:s, s:O, s:I, s:I, s:I, s:I, s:I, s:O}", "state", "up", "socket",
                     ctl->socket, "version", json_object_get(version, "package"), "disks",
                     count_disks(ctl), "exports", (json_int_t)json_array_size(exports), "clients",
                     sum_of(exports, "clients"), "in-flight", sum_of(exports, "in-flight"), "jobs",
                     (json_int_t)json_array_size(jobs), "log-level",
                     json_object_get(level, "level"));
}

static int run_status(Ctl *ctl, GError **error)
{
    static const Column columns[] = {
        {"state", "daemon", CELL_STATE},
        {"version", "version", CELL_TEXT},
        {"socket", "socket", CELL_TEXT},
        {"disks", "disks remembered", CELL_NUMBER},
        {"exports", "exports", CELL_NUMBER},
        {"clients", "clients", CELL_NUMBER},
        {"in-flight", "requests in flight", CELL_NUMBER},
        {"jobs", "jobs", CELL_NUMBER},
        {"log-level", "log level", CELL_TEXT},
        {0},
    };
    json_auto_t *version = ctl_run(ctl, "query-version", NULL, error);
    json_auto_t *exports = version ? ctl_run(ctl, "query-export-stats", NULL, error) : NULL;
    json_auto_t *jobs = exports ? ctl_run(ctl, "query-jobs", NULL, error) : NULL;
    json_auto_t *level = jobs ? ctl_run(ctl, "query-log-level", NULL, error) : NULL;
    if (!level)
        return -1;
    json_auto_t *status = status_of(ctl, version, exports, jobs, level);
    output_fields(&ctl->output, status, columns);
    return CTL_OK;
}

// -- events ---------------------------------------------------------------------------------------

static char *time_text(const json_t *event)
{
    const json_t *stamp = json_object_get(event, "timestamp");
    time_t seconds = (time_t)json_integer_value(json_object_get(stamp, "seconds"));
    json_int_t us = json_integer_value(json_object_get(stamp, "microseconds"));
    struct tm local;
    char text[32];
    localtime_r(&seconds, &local);
    strftime(text, sizeof(text), "%H:%M:%S", &local);
    return g_strdup_printf("%s.%03d", text, (int)(us / 1000));
}

// "id=s1 status=running"
static char *data_text(const json_t *data)
{
    GString *text = g_string_new(NULL);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)data, key, value)
    {
        char *dumped =
            json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        g_string_append_printf(text, "%s%s=%s", text->len ? " " : "", key,
                               dumped ? dumped : json_string_value(value));
        free(dumped);
    }
    g_autofree char *raw = g_string_free(text, FALSE);
    return output_clean(raw);
}

static void print_event(const Output *output, const json_t *event)
{
    if (output->format != OUTPUT_TABLE) {
        json_dumpf(event, stdout, JSON_COMPACT); // one a line: their number is not known
        putchar('\n');
    } else {
        const char *separator = output->is_bare ? "\t" : "  ";
        g_autofree char *when = time_text(event);
        g_autofree char *data = data_text(json_object_get(event, "data"));
        printf("%s%s%s%s%s%s%s%s%s\n", output_style(output, STYLE_DIM), when,
               output_style(output, STYLE_PLAIN), separator, output_style(output, STYLE_BOLD),
               json_string_value(json_object_get(event, "event")),
               output_style(output, STYLE_PLAIN), separator, data);
    }
    fflush(stdout);
}

static int run_events(Ctl *ctl, GError **error)
{
    uint64_t left = arguments_size(ctl->arguments, "count", UINT64_MAX);
    double timeout_s = arguments_seconds(ctl->arguments, "timeout", -1);
    gint64 deadline = g_get_monotonic_time() + (gint64)(timeout_s * 1e6);
    if (!ctl_client(ctl, error))
        return -1;
    for (; left > 0; left--) {
        gint64 wait_ms = timeout_s < 0 ? -1 : (deadline - g_get_monotonic_time() + 999) / 1000;
        if (timeout_s >= 0 && wait_ms <= 0)
            return CTL_OK;
        g_autoptr(GError) fault = NULL;
        json_auto_t *event =
            qmp_client_next_event(ctl->client, (int)MIN(wait_ms, INT32_MAX), &fault);
        if (fault) {
            g_propagate_error(error, g_steal_pointer(&fault));
            return -1;
        }
        if (event)
            print_event(&ctl->output, event);
        else
            return CTL_OK;
    }
    return CTL_OK;
}

// -- log-level ------------------------------------------------------------------------------------

static int run_log_level(Ctl *ctl, GError **error)
{
    const char *level = ctl_word(ctl, 0);
    static const Column columns[] = {{"level", "level", CELL_TEXT}, {0}};
    if (level)
        return ctl_do(ctl, "set-log-level", json_pack("{s:s}", "level", level), error);
    json_auto_t *reply = ctl_run(ctl, "query-log-level", NULL, error);
    if (!reply)
        return -1;
    if (ctl->output.format == OUTPUT_TABLE)
        puts(json_string_value(json_object_get(reply, "level")));
    else
        output_fields(&ctl->output, reply, columns);
    return CTL_OK;
}

// -- the family -----------------------------------------------------------------------------------

static const VerbOption events_options[] = {
    {"count", 'n', WORD_NUMBER, "N", "end after so many"},
    {"timeout", 't', WORD_SECONDS, "SECS", "end after this time"},
    {0},
};
static const VerbWord level_word[] = {
    {"LEVEL", WORD_TEXT, .is_optional = true, .choices = "error|warning|info|debug"}, {0}};

static const Verb verbs[] = {
    {
        .name = "status",
        .summary = "Say whether the daemon runs, and what it is at",
        .examples = "chainctl status\nchainctl status --output=json",
        .run = run_status,
    },
    {
        .name = "events",
        .summary = "Show events as they come",
        .text = "Until Ctrl-C. With --output=json, too, each is an object on a line of its own.",
        .examples = "chainctl events\nchainctl events -n 1 --output=jsonl",
        .options = events_options,
        .run = run_events,
    },
    {
        .name = "log-level",
        .summary = "Show or change how much the daemon logs",
        .examples = "chainctl log-level\nchainctl log-level debug",
        .words = level_word,
        .run = run_log_level,
    },
    {0},
};

const VerbFamily verbs_daemon_family = {.title = "The daemon", .verbs = verbs};
