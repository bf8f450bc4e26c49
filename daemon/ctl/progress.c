// SPDX-License-Identifier: LGPL-2.1-or-later
// What does not fit the terminal is left out: first the bar becomes shorter, then it goes, then the
// fields from the right.
#include "progress.h"

#include <glib.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "output.h"
#include "units.h"

enum { BAR_COLUMNS = 16, SHORT_BAR_COLUMNS = 8, MAX_FIELDS = 6 };
static const int64_t PLAIN_US = 10000000; // between plain lines

void progress_init(Progress *progress, const char *label, bool has_color)
{
    *progress = (Progress){
        .label = label,
        .is_terminal = isatty(STDERR_FILENO),
        .has_color = has_color,
        .next_us = g_get_monotonic_time() + PLAIN_US,
    };
}

static unsigned percent_of(const ProgressState *state)
{
    return state->total ? (unsigned)(100 * ((double)state->done / (double)state->total)) : 0;
}

static char *latency_text(double change_us)
{
    return fabs(change_us) < 1000 ? g_strdup_printf("guest p99 %+.0f us", change_us)
                                  : g_strdup_printf("guest p99 %+.1f ms", change_us / 1000);
}

// NULL-terminated, owned.
static char **fields_of(const ProgressState *state)
{
    char **fields = g_new0(char *, MAX_FIELDS + 1);
    unsigned n = 0;
    fields[n++] = g_strdup_printf("%3u%%", percent_of(state));
    fields[n++] = units_size_of(state->done, state->total);
    if (state->note) {
        fields[n++] = g_strdup(state->note);
        return fields;
    }
    fields[n++] = units_rate(state->rate);
    if (state->seconds_left >= 0) {
        g_autofree char *clock = units_clock((uint64_t)state->seconds_left);
        fields[n++] = g_strconcat("ETA ", clock, NULL);
    }
    if (state->knows_latency)
        fields[n++] = latency_text(state->latency_change_us);
    return fields;
}

// -- a terminal -----------------------------------------------------------------------------------

static unsigned columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

static char *bar_text(const Progress *progress, unsigned percent, unsigned width)
{
    GString *bar = g_string_new(NULL);
    unsigned full = width * MIN(percent, 100) / 100;
    if (progress->has_color)
        g_string_append(bar, "\033[32m");
    for (unsigned i = 0; i < width; i++)
        g_string_append(bar, i < full ? "█" : "░");
    if (progress->has_color)
        g_string_append(bar, "\033[0m");
    return g_string_free(bar, FALSE);
}

static void draw(Progress *progress, char **fields, unsigned percent)
{
    unsigned width = columns() - 1, used = output_width(progress->label);
    GString *line = g_string_new(progress->label);
    unsigned all = used;
    for (char **field = fields; *field; field++)
        all += 2 + output_width(*field);
    unsigned bar = all + 2 + BAR_COLUMNS <= width         ? BAR_COLUMNS
                   : all + 2 + SHORT_BAR_COLUMNS <= width ? SHORT_BAR_COLUMNS
                                                          : 0;
    if (bar) {
        g_autofree char *text = bar_text(progress, percent, bar);
        g_string_append_printf(line, "  %s", text);
        used += 2 + bar;
    }
    for (char **field = fields; *field && used + 2 + output_width(*field) <= width; field++) {
        g_string_append_printf(line, "  %s", *field);
        used += 2 + output_width(*field);
    }
    fprintf(stderr, "\r\033[K%s", line->str);
    fflush(stderr);
    g_string_free(line, TRUE);
    progress->is_drawn = true;
}

void progress_show(Progress *progress, const ProgressState *state, bool is_forced)
{
    g_auto(GStrv) fields = fields_of(state);
    int64_t now_us = g_get_monotonic_time();
    if (progress->is_terminal) {
        draw(progress, fields, percent_of(state));
    } else if (is_forced || now_us >= progress->next_us) {
        g_autofree char *text = g_strjoinv(", ", fields);
        fprintf(stderr, "%s: %s\n", progress->label, g_strstrip(text));
        progress->next_us = now_us + PLAIN_US;
    }
}

void progress_clear(Progress *progress)
{
    if (progress->is_drawn)
        fputs("\r\033[K", stderr);
    progress->is_drawn = false;
}

void progress_end(Progress *progress)
{
    if (progress->is_drawn)
        fputc('\n', stderr);
    progress->is_drawn = false;
}
