// SPDX-License-Identifier: LGPL-2.1-or-later
// What the daemon consists of. Everything is opened in this order, and closed in the reverse one.
//
// The control loop runs no data I/O: on it live the daemon's tables (nodes, exports, jobs), without
// locks, and the monitors through which commands come. Other threads reach it by loop_post() or a
// remote call.
#pragma once

#include "access.h"
#include "activation.h"
#include "daemon/qmp/server.h"
#include "daemon/state/catalogue.h"
#include "disks.h"
#include "exports.h"
#include "iothreads.h"
#include "job-history.h"
#include "jobs/job.h"
#include "loops.h"
#include "monitors.h"
#include "nbd-server.h"
#include "nodes.h"
#include "objects.h"
#include "options.h"
#include "service.h"
#include "stop.h"

typedef struct Reload Reload;

typedef struct MetricsService MetricsService;

struct Daemon {
    InheritedFds *inherited;
    Options options; // joined with:
    Config *config;
    Activation activation;
    Stop *stop;
    Reload *reload; // on the control loop
    Access *access;
    Service *service;   // NULL: no service manager listens
    bool is_for_client; // started for one; ends with the last one
    bool prints_uris;
    Monitors *monitors;
    Loops *loops;            // of disks
    Loops *control;          // one loop
    QmpServer *qmp;          // on it
    MetricsService *metrics; // likewise
    JobTable *jobs;          // likewise
    JobHistory *history;     // likewise
    IoThreads *iothreads;    // further ones
    MapMemory *memory;
    ThrottleGroups *throttle_groups; // of objects
    TlsCredsTable *tls_creds;        // likewise
    Objects *objects;
    Nodes *nodes;
    NbdServer *nbd;
    Exports *exports;
    Catalogue *catalogue; // of the state directory; NULL: there is none
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
