// SPDX-License-Identifier: LGPL-2.1-or-later
// The log lines about what the host does to the files of one disk: failures, and sizes that changed
// from outside. A disk that fails does so for every request, so failures are told at most once in
// some seconds, with the number of those in between. On the disk's loop.
#pragma once

#include <glib.h>

#include "chain-core/file.h"

typedef struct FileLog {
    const char *disk;   // for the lines; borrowed
    gint64 quiet_until; // of g_get_monotonic_time(): failures before are only counted
    unsigned n_untold;
} FileLog;

// A FileEventFn; `file_log` is a FileLog.
void file_log_event(File *file, const FileEvent *event, void *file_log);
// Tells how many failures were not told, if any.
void file_log_done(FileLog *log);
