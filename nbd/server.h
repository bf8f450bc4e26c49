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
// A connection is gone (its last act: the server may be freed meanwhile).
void nbds_server_leave(NbdsServer *server);
