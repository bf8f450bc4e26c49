// SPDX-License-Identifier: LGPL-2.1-or-later
// One client of QMP: a stream, a fiber that receives its commands and runs them one after the
// other, and one that sends what there is to send. Control loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/stream.h"
#include "command.h"

typedef struct QmpMonitor QmpMonitor;

// What outlives the monitor.
typedef struct QmpMonitorConfig {
    const char *name; // of its socket, for the log
    Daemon *daemon;
    const QmpTable *table;
    FiberWaitGroup *running;   // counts the commands that run
    bool is_read_only;         // takes queries only
    const SocketProcess *peer; // NULL: unknown
} QmpMonitorConfig;

// Takes `stream`.
QmpMonitor *qmp_monitor_new(Stream *stream, const QmpMonitorConfig *config);
// When it does not run.
void qmp_monitor_free(QmpMonitor *monitor);

// Greets, and serves until the client leaves or qmp_monitor_end(). Once.
void qmp_monitor_run(Fiber *self, QmpMonitor *monitor);
// Takes no more commands. What runs is finished and answered, and events are still sent.
void qmp_monitor_end_commands(QmpMonitor *monitor);
// After that: sends what is unsent, but for no longer than `timeout_ns`, and ends.
void qmp_monitor_end(QmpMonitor *monitor, uint64_t timeout_ns);

// Has `text` (a JSON object; borrowed) sent as a line, if the client has negotiated.
void qmp_monitor_send_event(QmpMonitor *monitor, const char *text);
