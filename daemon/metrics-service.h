// SPDX-License-Identifier: LGPL-2.1-or-later
// Where metrics are read: in a file, written anew every few seconds, for node_exporter's textfile
// collector, and by HTTP at a socket (GET /metrics). Nothing, and at no cost, where neither is
// asked for. The file goes with the daemon: what is old is no news.
#pragma once

#include "options.h"

typedef struct Daemon Daemon;
typedef struct MetricsService MetricsService;

// Binds the socket; clients wait. NULL with a sentence. Main thread, blocking.
MetricsService *metrics_service_open(const Daemon *daemon, const DaemonSettings *settings,
                                     GError **error);
// Control loop; once. From then on it is written and answered, until the stop, which must not be
// left out. 0 or -ENOMEM.
int metrics_service_start(MetricsService *service, Loop *control);
void metrics_service_stop(Fiber *self, MetricsService *service); // accepts NULL
void metrics_service_free(MetricsService *service);              // likewise
