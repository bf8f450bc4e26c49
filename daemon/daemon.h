// SPDX-License-Identifier: LGPL-2.1-or-later
// What the daemon consists of. Everything is opened in this order, and closed in the reverse one.
//
// The control loop runs no data I/O: on it live the daemon's tables (nodes, exports, jobs), without
// locks, and the monitors through which commands come. Other threads reach it by loop_post() or a
// remote call.
#pragma once

#include "exports.h"
#include "listeners.h"
#include "loops.h"
#include "nbd/server.h"
#include "nodes.h"
#include "options.h"
#include "stop.h"

typedef struct Daemon {
    Options options;
    unsigned n_activated; // sockets handed to this process
    Stop *stop;
    Listeners *listeners;
    Loops *loops;   // of disks
    Loops *control; // one loop
    MapMemory *memory;
    Nodes *nodes;
    NbdsServer *server;
    Exports *exports;
} Daemon;

static inline Loop *daemon_control_loop(const Daemon *daemon)
{
    return loops_get(daemon->control, 0);
}
