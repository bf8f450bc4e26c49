// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon counts; what happened in an interval is the difference of two answers.
#include "top.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ctl.h"
#include "export-limits.h"
#include "field.h"
#include "job-follow.h"
#include "latency.h"

// What an export has counted, or counted in an interval.
typedef struct Counts {
    uint64_t reads, writes, read_bytes, write_bytes, errors;
    Latency read, write, flush;
} Counts;

static Counts counts_of(const json_t *export)
{
    Counts counts = {0};
    size_t i;
    const json_t *stats;
    json_array_foreach(field(export, "operations"), i, stats)
    {
        const char *name = json_string_value(field(stats, "operation"));
        counts.errors += field_uint(stats, "errors");
        if (g_strcmp0(name, "read") == 0) {
            counts.reads += field_uint(stats, "requests");
            counts.read_bytes += field_uint(stats, "bytes");
        } else if (g_strcmp0(name, "write") == 0 || g_strcmp0(name, "write-zeroes") == 0 ||
                   g_strcmp0(name, "trim") == 0) {
            counts.writes += field_uint(stats, "requests");
            counts.write_bytes += g_strcmp0(name, "write") == 0 ? field_uint(stats, "bytes") : 0;
        }
    }
    latency_add(&counts.read, export, "read");
    latency_add(&counts.write, export, "write");
    latency_add(&counts.flush, export, "flush");
    return counts;
}

static Counts counts_since(const Counts *now, const Counts *before)
{
    return (Counts){
        .reads = now->reads - before->reads,
        .writes = now->writes - before->writes,
        .read_bytes = now->read_bytes - before->read_bytes,
        .write_bytes = now->write_bytes - before->write_bytes,
        .errors = now->errors - before->errors,
        .read = latency_since(&now->read, &before->read),
        .write = latency_since(&now->write, &before->write),
        .flush = latency_since(&now->flush, &before->flush),
    };
}

// -- rows -----------------------------------------------------------------------------------------

static json_t *find_export(const json_t *exports, const json_t *id)
{
    size_t i;
    json_t *export;
    json_array_foreach(exports, i, export)
    {
        if (json_equal(field(export, "id"), id))
            return export;
    }
    return NULL;
}

// Microseconds, or null.
static json_t *percentile(const Latency *latency, double fraction)
{
    double us = latency_percentile(latency, fraction);
    return us < 0 ? json_null() : json_real(us);
}

static json_t *row_of(const json_t *export, const json_t *before, double seconds)
{
    Counts now = counts_of(export), then = before ? counts_of(before) : now;
    if (now.reads < then.reads || now.writes < then.writes)
        then = (Counts){0}; // it was added anew under that id
    Counts c = counts_since(&now, &then);
    const char *name = json_string_value(field(export, "name"));
    g_autofree char *limit = limits_short_text(field(export, "throttle"));
    return json_pack("{s:s, s:f, s:f, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:O, s:O, s:I, s:s?}",
                     "name", name && *name ? name : json_string_value(field(export, "id")), "reads",
                     (double)c.reads / seconds, "writes", (double)c.writes / seconds, "read-rate",
                     (json_int_t)((double)c.read_bytes / seconds), "write-rate",
                     (json_int_t)((double)c.write_bytes / seconds), "read-p50",
                     percentile(&c.read, 0.5), "read-p99", percentile(&c.read, 0.99), "write-p50",
                     percentile(&c.write, 0.5), "write-p99", percentile(&c.write, 0.99),
                     "flush-p99", percentile(&c.flush, 0.99), "in-flight",
                     field(export, "in-flight"), "clients", field(export, "clients"), "errors",
                     (json_int_t)c.errors, "limit", limit);
}

static json_t *rows_of(const json_t *exports, const json_t *before, double seconds,
                       const char *only)
{
    json_t *rows = json_array();
    size_t i;
    const json_t *export;
    json_array_foreach(exports, i, export)
    {
        json_t *row = row_of(export, find_export(before, field(export, "id")), seconds);
        if (!only || g_strcmp0(json_string_value(field(row, "name")), only) == 0)
            json_array_append_new(rows, row);
        else
            json_decref(row);
    }
    return rows;
}

// -- the screen -----------------------------------------------------------------------------------

static const Column disk_columns[] = {
    {"name", "NAME", CELL_NAME},          {"reads", "READ/s", CELL_COUNT},
    {"writes", "WRITE/s", CELL_COUNT},    {"read-rate", "READ", CELL_RATE},
    {"write-rate", "WRITE", CELL_RATE},   {"read-p50", "R p50", CELL_LATENCY},
    {"read-p99", "R p99", CELL_LATENCY},  {"write-p50", "W p50", CELL_LATENCY},
    {"write-p99", "W p99", CELL_LATENCY}, {"flush-p99", "F p99", CELL_LATENCY},
    {"in-flight", "FLIGHT", CELL_NUMBER}, {"clients", "CLIENTS", CELL_NUMBER},
    {"limit", "LIMIT", CELL_TEXT},        {0},
};
static const Column job_columns[] = {
    {"id", "JOB", CELL_NAME},
    {"type", "TYPE", CELL_TEXT},
    {"status", "STATUS", CELL_STATE},
    {"percent", "DONE", CELL_PERCENT},
    {"rate", "RATE", CELL_RATE},
    {"seconds-left", "ETA", CELL_CLOCK},
    {0},
};

static void show(const Ctl *ctl, json_t *rows, json_t *jobs, double seconds)
{
    const Output *output = &ctl->output;
    if (output->format != OUTPUT_TABLE) { // one a line: their number is not known
        json_auto_t *sample =
            json_pack("{s:f, s:O, s:O}", "seconds", seconds, "disks", rows, "jobs", jobs);
        json_dumpf(sample, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        if (output->width && !output->is_bare)
            fputs("\033[H\033[J", stdout);
        output_rows(output, rows, disk_columns, NULL);
        if (json_array_size(jobs) && !output->is_bare) {
            putchar('\n');
            output_rows(output, jobs, job_columns, NULL);
        }
    }
    fflush(stdout);
}

static void sleep_seconds(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

static int run_top(Ctl *ctl, GError **error)
{
    uint64_t left = arguments_size(ctl->arguments, "count", UINT64_MAX);
    double interval = MAX(arguments_seconds(ctl->arguments, "interval", 1), 0.05);
    json_auto_t *before = ctl_run(ctl, "query-export-stats", NULL, error);
    gint64 then_us = g_get_monotonic_time();
    if (!before)
        return -1;
    for (; left > 0; left--) {
        sleep_seconds(interval);
        json_t *now = ctl_run(ctl, "query-export-stats", NULL, error);
        json_auto_t *jobs = now ? job_rows(ctl, error) : NULL;
        if (!jobs) {
            json_decref(now);
            return -1;
        }
        gint64 now_us = g_get_monotonic_time();
        double seconds = (double)(now_us - then_us) / 1e6;
        json_auto_t *rows = rows_of(now, before, seconds, ctl_word(ctl, 0));
        show(ctl, rows, jobs, seconds);
        json_decref(before);
        before = now;
        then_us = now_us;
    }
    return CTL_OK;
}

// -- the family -----------------------------------------------------------------------------------

static const VerbOption options[] = {
    {"count", 'n', WORD_NUMBER, "N", "end after so many"},
    {"interval", 'd', WORD_SECONDS, "SECS", "between two (1)"},
    {0},
};
static const VerbWord words[] = {{"DISK", WORD_DISK, .is_optional = true}, {0}};

static const Verb verbs[] = {
    {
        .name = "top",
        .summary = "Show rates and latencies of disks, live",
        .text = "R, W and F p50 and p99 say within which time half of the reads, writes or\n"
                "flushes, and 99 of 100 of them, were done in the interval; they are estimated\n"
                "from histograms. With --output=json, too, each sample is an object on a line\n"
                "of its own.",
        .examples = "chainctl top\nchainctl top web -n 1 -d 10",
        .words = words,
        .options = options,
        .run = run_top,
    },
    {0},
};

const VerbFamily verbs_top_family = {.verbs = verbs};
