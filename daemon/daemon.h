// SPDX-License-Identifier: LGPL-2.1-or-later
// What the daemon consists of. Everything is opened in this order, and closed in the reverse one.
//
// The control loop runs no data I/O: on it live the daemon's tables (nodes, exports, jobs), without
// locks, and the monitors through which commands come. Other threads reach it by loop_post() or a
// remote call.
#pragma once

#include "daemon/qmp/server.h"
#include "disks.h"
#include "exports.h"
#include "iothreads.h"
#include "jobs/job.h"
#include "loops.h"
#include "monitors.h"
#include "nbd-server.h"
#include "nodes.h"
#include "objects.h"
#include "options.h"
#include "stop.h"

struct Daemon {
    InheritedFds *inherited;
    Options options;
    unsigned n_activated; // sockets handed to this process
    Stop *stop;
    bool is_activated; // started for a client; ends with the last one
    Monitors *monitors;
    Loops *loops;         // of disks
    Loops *control;       // one loop
    QmpServer *qmp;       // on it
    JobTable *jobs;       // likewise
    IoThreads *iothreads; // further ones
    MapMemory *memory;
    ThrottleGroups *throttle_groups; // of objects
    Objects *objects;
    Nodes *nodes;
    NbdServer *nbd;
    Exports *exports;
};

static inline Loop *daemon_control_loop(const Daemon *daemon)
{
    return loops_get(daemon->control, 0);
}

// Tells all monitors. Takes `data` (NULL: none). Control loop.
static inline void qmp_emit(const Daemon *daemon, const char *event, json_t *data)
{
    qmp_server_emit(daemon->qmp, event, data);
}
