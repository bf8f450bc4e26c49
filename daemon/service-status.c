// SPDX-License-Identifier: LGPL-2.1-or-later
// A line of a terminal has room for a few jobs; the others are counted.
#include "service-status.h"

#include <glib.h>
#include <inttypes.h>
#include <stdbool.h>

enum { MAX_JOBS_NAMED = 3 };

static void append_count(GString *text, unsigned n, const char *noun)
{
    g_string_append_printf(text, "%s%u %s%s", text->len ? ", " : "", n, noun, n == 1 ? "" : "s");
}

// Two units at most: nobody looks at the seconds of hours.
static void append_time(GString *text, int64_t seconds)
{
    int64_t minutes = (seconds + 30) / 60;
    if (seconds < 60)
        g_string_append_printf(text, "%" PRId64 "s", seconds);
    else if (minutes < 60)
        g_string_append_printf(text, "%" PRId64 "m", minutes);
    else
        g_string_append_printf(text, "%" PRId64 "h %02" PRId64 "m", minutes / 60, minutes % 60);
}

static void append_job(GString *text, const ServiceJob *job)
{
    double part = job->total ? (double)MIN(job->done, job->total) / (double)job->total : 0;
    g_string_append_printf(text, ", %s %u%%", job->id, (unsigned)(part * 100));
    if (job->state) {
        g_string_append_printf(text, " %s", job->state);
    } else if (job->seconds_left >= 0) {
        g_string_append(text, " ETA ");
        append_time(text, job->seconds_left);
    }
}

char *service_status_text(const ServiceFacts *facts)
{
    GString *text = g_string_new(NULL);
    append_count(text, facts->n_disks, "disk");
    append_count(text, facts->n_clients, "client");
    unsigned n_named = MIN(facts->n_jobs, (unsigned)MAX_JOBS_NAMED);
    for (unsigned i = 0; i < n_named; i++)
        append_job(text, &facts->jobs[i]);
    if (facts->n_jobs > n_named)
        g_string_append_printf(text, ", %u more job%s", facts->n_jobs - n_named,
                               facts->n_jobs - n_named == 1 ? "" : "s");
    return g_string_free(text, false);
}
