// SPDX-License-Identifier: LGPL-2.1-or-later
// Every failure of the host that a client hears of as an error is an event of a file: this is where
// it ends. On the disk's loop; the fast path of a failing disk is a comparison and a count.
#include "file-log.h"

#include "log.h"
#include "message-ids.h"

enum { QUIET_US = 10 * G_USEC_PER_SEC };

static const char *verb(FileEventKind kind)
{
    switch (kind) {
    case FILE_EVENT_READ_FAILED:
        return "cannot read";
    case FILE_EVENT_WRITE_FAILED:
        return "cannot write";
    case FILE_EVENT_ZERO_FAILED:
        return "cannot zero";
    case FILE_EVENT_DISCARD_FAILED:
        return "cannot discard";
    case FILE_EVENT_TRUNCATE_FAILED:
        return "cannot resize";
    case FILE_EVENT_MAP_FAILED:
        return "cannot tell data from holes of";
    case FILE_EVENT_DECODE_FAILED:
        return "cannot decompress a cluster of";
    case FILE_EVENT_FLUSH_FAILED:
    case FILE_EVENT_RESIZED:
    case FILE_EVENT_CHANGED:
        break;
    }
    g_assert_not_reached();
}

static void tell_failure(FileLog *log, File *file, const FileEvent *event)
{
    gint64 now = g_get_monotonic_time();
    if (now < log->quiet_until) {
        log->n_untold++;
        return;
    }
    log->quiet_until = now + QUIET_US;
    g_autofree char *untold =
        log->n_untold ? g_strdup_printf(" (and %u failures before)", log->n_untold) : g_strdup("");
    log->n_untold = 0;
    LogAbout about = {
        .message_id = MESSAGE_ID_FILE_FAILED, .disk = log->disk, .file = file_path(file)};
    log_about(LOG_ERROR, &about, "disk '%s': %s %s at offset %" G_GUINT64_FORMAT ": %s%s",
              log->disk, verb(event->kind), file_path(file), event->off, g_strerror(-event->error),
              untold);
}

void file_log_event(File *file, const FileEvent *event, void *file_log)
{
    FileLog *log = file_log;
    LogAbout about = {.disk = log->disk, .file = file_path(file)};
    about.message_id =
        event->kind == FILE_EVENT_FLUSH_FAILED ? MESSAGE_ID_SYNC_FAILED : MESSAGE_ID_FILE_CHANGED;
    if (event->kind == FILE_EVENT_FLUSH_FAILED)
        log_about(LOG_ERROR, &about,
                  "disk '%s': %s: sync failed: %s; every flush answers an error until it is opened "
                  "again",
                  log->disk, file_path(file), g_strerror(-event->error));
    else if (event->kind == FILE_EVENT_RESIZED)
        log_about(
            LOG_WARNING, &about,
            "disk '%s': %s was resized from outside while it is served, from %" G_GUINT64_FORMAT
            " to %" G_GUINT64_FORMAT " bytes: another program writes to it; clients see the "
            "size from before until chaind opens it again",
            log->disk, file_path(file), file_size(file), event->off);
    else if (event->kind == FILE_EVENT_CHANGED)
        log_about(
            LOG_WARNING, &about,
            "disk '%s': %s was changed from outside while it is served, though nobody may write "
            "it: what is read may be damaged, and nothing is built on it until it is opened again",
            log->disk, file_path(file));
    else
        tell_failure(log, file, event);
}

void file_log_done(FileLog *log)
{
    if (log->n_untold)
        log_line(LOG_ERROR, "disk '%s': %u more failures of its files", log->disk, log->n_untold);
    log->n_untold = 0;
}
