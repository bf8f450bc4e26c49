// SPDX-License-Identifier: LGPL-2.1-or-later
// The log: lines on stderr, "chaind: sentence"; or entries of the journal, when systemd has
// connected stderr to it. Any thread; one line is one write.
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef enum LogLevel { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG } LogLevel;

// By their number; ends with NULL.
extern const char *const log_level_names[];
// "error", "warning", "info" or "debug"; false for anything else.
bool log_level_parse(const char *text, LogLevel *ret_level);
// From now on, lines above `level` are dropped; GLib's own log (g_debug() and so on) comes here
// too. Once, before any other thread.
void log_init(LogLevel level);
// Any thread, at any time after that.
void log_set_level(LogLevel level);
LogLevel log_level(void);

void log_line(LogLevel level, const char *format, ...) G_GNUC_PRINTF(2, 3);

// What a line is about: fields of its entry in the journal. Borrowed; NULL: nothing of that kind.
typedef struct LogAbout {
    const char *message_id; // message-ids.h
    const char *disk, *file, *node, *job, *client;
} LogAbout;
void log_about(LogLevel level, const LogAbout *about, const char *format, ...) G_GNUC_PRINTF(3, 4);
