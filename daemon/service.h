// SPDX-License-Identifier: LGPL-2.1-or-later
// What the service manager is told, by sd_notify(3): that everything answers, what the daemon does,
// that its loops turn, that a start or an end needs more time. Nothing, and at no cost, where none
// listens (NOTIFY_SOCKET).
#pragma once

#include "exports.h"
#include "iothreads.h"
#include "jobs/job.h"

typedef struct Service Service;

// What it tells of; borrowed.
typedef struct ServiceParts {
    const Loops *loops;
    const IoThreads *iothreads;
    const JobTable *jobs;
    const Nodes *nodes;
    const NbdServer *nbd;
    const Exports *exports;
} ServiceParts;

// NULL: nobody listens; all others accept that.
Service *service_new(Loop *control);
// After the end of all loops.
void service_free(Service *service);

// Main thread, in this order. A start, and an end, gets more time for as long as it gets on.
void service_starting(Service *service, const ServiceParts *parts); // no disk is open yet
void service_ready(Service *service);                               // all exports answer
void service_stopping(Service *service, const char *why);
// The process is about to end with that status; no Service is needed. `error`: a negative errno.
void service_failed(int error, int exit_status, const char *sentence);

// The number of clients, exports or jobs, or what a job does. Any thread; returns at once.
void service_changed(Service *service);

// Around a change of the configuration. Control loop.
void service_reloading(Service *service);
void service_reloaded(Service *service);
