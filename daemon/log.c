// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's log: plain lines on stderr, one sentence for an error.
// Libraries below log nothing above debug; what they say through GLib is written in the same form.
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static LogLevel log_limit = LOG_INFO; // process-wide like stderr itself; set once by log_init()

bool log_level_parse(const char *text, LogLevel *ret_level)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(level_names); i++) {
        if (!strcmp(text, level_names[i])) {
            *ret_level = i;
            return true;
        }
    }
    return false;
}

static void write_line(const char *text)
{
    g_autofree char *line = g_strdup_printf("chaind: %s\n", text);
    // A log that cannot be written must not end the daemon.
    if (write(STDERR_FILENO, line, strlen(line)) < 0)
        return;
}

void log_line(LogLevel level, const char *format, ...)
{
    if (level > log_limit)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    write_line(text);
}

static LogLevel level_of_glib(GLogLevelFlags flags)
{
    if (flags & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL))
        return LOG_ERROR;
    if (flags & G_LOG_LEVEL_WARNING)
        return LOG_WARNING;
    return flags & (G_LOG_LEVEL_MESSAGE | G_LOG_LEVEL_INFO) ? LOG_INFO : LOG_DEBUG;
}

static GLogWriterOutput write_glib(GLogLevelFlags flags, const GLogField *fields, gsize n_fields,
                                   gpointer arg)
{
    for (gsize i = 0; i < n_fields; i++)
        if (!strcmp(fields[i].key, "MESSAGE") && level_of_glib(flags) <= log_limit)
            write_line(fields[i].value);
    return G_LOG_WRITER_HANDLED;
}

void log_init(LogLevel level)
{
    log_limit = level;
    g_log_set_writer_func(write_glib, NULL, NULL);
}
