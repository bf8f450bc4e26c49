// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's log: one sentence for an error, as a plain line, or as an entry of the journal with
// fields that it can be found by (CHAIND_DISK=web).
// Libraries below log nothing above debug; what they say through GLib is written in the same form.
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "journal.h"

const char *const log_level_names[] = {"error", "warning", "info", "debug", NULL};
static _Atomic LogLevel log_limit = LOG_INFO; // process-wide like stderr itself
static bool has_journal;                      // stderr leads there

bool log_level_parse(const char *text, LogLevel *ret_level)
{
    for (unsigned i = 0; log_level_names[i]; i++) {
        if (!strcmp(text, log_level_names[i])) {
            *ret_level = i;
            return true;
        }
    }
    return false;
}

// NULL: no field.
static void add_field(GPtrArray *fields, const char *name, const char *value)
{
    if (value)
        g_ptr_array_add(fields, g_strconcat(name, "=", value, NULL));
}

static bool send_to_journal(LogLevel level, const LogAbout *about, const char *text)
{
    static const char *const priorities[] = {"3", "4", "6", "7"}; // syslog's, by LogLevel
    g_autoptr(GPtrArray) fields = g_ptr_array_new_with_free_func(g_free);
    add_field(fields, "MESSAGE", text);
    add_field(fields, "PRIORITY", priorities[level]);
    add_field(fields, "SYSLOG_IDENTIFIER", "chaind");
    add_field(fields, "MESSAGE_ID", about->message_id);
    add_field(fields, "CHAIND_DISK", about->disk);
    add_field(fields, "CHAIND_FILE", about->file);
    add_field(fields, "CHAIND_NODE", about->node);
    add_field(fields, "CHAIND_JOB", about->job);
    add_field(fields, "CHAIND_CLIENT", about->client);
    return journal_send((char **)fields->pdata, fields->len);
}

static void write_entry(LogLevel level, const LogAbout *about, const char *text)
{
    if (has_journal && send_to_journal(level, about, text))
        return;
    g_autofree char *line = g_strdup_printf("chaind: %s\n", text);
    // A log that cannot be written must not end the daemon.
    if (write(STDERR_FILENO, line, strlen(line)) < 0)
        return;
}

static void G_GNUC_PRINTF(3, 0)
    write_formatted(LogLevel level, const LogAbout *about, const char *format, va_list args)
{
    g_autofree char *text = level <= log_limit ? g_strdup_vprintf(format, args) : NULL;
    if (text)
        write_entry(level, about, text);
}

void log_line(LogLevel level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_formatted(level, &(LogAbout){0}, format, args);
    va_end(args);
}

void log_about(LogLevel level, const LogAbout *about, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_formatted(level, about, format, args);
    va_end(args);
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
            write_entry(level_of_glib(flags), &(LogAbout){0}, fields[i].value);
    return G_LOG_WRITER_HANDLED;
}

void log_init(LogLevel level)
{
    log_set_level(level);
    has_journal = journal_is_behind(STDERR_FILENO);
    g_log_set_writer_func(write_glib, NULL, NULL);
}

void log_set_level(LogLevel level)
{
    log_limit = level;
}

LogLevel log_level(void)
{
    return log_limit;
}
