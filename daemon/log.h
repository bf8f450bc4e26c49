// SPDX-License-Identifier: LGPL-2.1-or-later
// Log lines on stderr: "chaind: sentence". Any thread; one line is one write.
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef enum LogLevel { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG } LogLevel;

// "error", "warning", "info" or "debug"; false for anything else.
bool log_level_parse(const char *text, LogLevel *ret_level);
// From now on, lines above `level` are dropped; GLib's own log (g_debug() and so on) comes here
// too. Once, before any other thread.
void log_init(LogLevel level);

void log_line(LogLevel level, const char *format, ...) G_GNUC_PRINTF(2, 3);
