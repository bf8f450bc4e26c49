// SPDX-License-Identifier: LGPL-2.1-or-later
// Reading the configuration again while clients are served: what changed takes effect, and no
// client is dropped. With a mistake anywhere nothing changes. Control loop, unless said otherwise.
#pragma once

#include "daemon/qmp/command.h"

typedef struct Reload Reload;

// What came of one, in sentences (char *).
typedef struct ReloadReport {
    GPtrArray *done;
    GPtrArray *waiting; // for the next start; they begin with file and line
    GPtrArray *failed;  // nobody could know before
} ReloadReport;
ReloadReport reload_report_new(void);
void reload_report_clear(ReloadReport *report);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ReloadReport, reload_report_clear)

Reload *reload_new(Daemon *daemon);
void reload_free(Reload *reload); // accepts NULL
// SIGHUP: has it done, and the log tell. Any thread; returns at once.
void reload_post(void *reload);
// One after the other. The log tells what the report does. -EINVAL with a sentence: nothing was
// done; the log has every mistake.
int reload_run(Fiber *self, Reload *reload, ReloadReport *report, GError **error);
// Returns when none is under way; then there are none any more.
void reload_end(Fiber *self, Reload *reload);
