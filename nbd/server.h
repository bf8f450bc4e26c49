// SPDX-License-Identifier: LGPL-2.1-or-later
// What connections need of their server. Any thread.
#pragma once

#include "export.h"
#include "nbd/server.h"

const NbdsLimits *nbds_server_limits(const NbdsServer *server); // defaults filled in
bool nbds_server_is_stopping(const NbdsServer *server);
// Changes with every export added or removed.
unsigned nbds_server_generation(const NbdsServer *server);
// The exports now, returned owned; `owners` are the NbdsExports.
NbdsExportTable *nbds_server_export_table(NbdsServer *server);

// One client more, unless the server has as many as it may have.
bool nbds_server_try_enter(NbdsServer *server);
// It is gone (its last act: the server may be freed meanwhile).
void nbds_server_leave(NbdsServer *server);
// Whatever holds the server must be gone before a stop returns.
void nbds_server_hold(NbdsServer *server);
void nbds_server_release(NbdsServer *server);

// The next client that leaves has nbds_listener_offer_room() called for each listener.
void nbds_server_want_room(NbdsServer *server);
// A client waits, or was turned away: NbdsServerConfig's `full` hears of the first of an episode.
void nbds_server_report_full(NbdsServer *server, NbdsFull why, uint64_t now_ns);
