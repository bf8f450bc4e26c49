// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's NBD server: whether it runs, and on which sockets. Control loop, unless said
// otherwise.
#pragma once

#include "listeners.h"
#include "nbd/server.h"

typedef struct NbdServer NbdServer;

// `config` (copied; its max_connections is the most that nbd_server_start() grants) and `loops` are
// of all servers that run one after the other.
NbdServer *nbd_server_new(const NbdsServerConfig *config, const Loops *loops);
// When it does not run. Accepts NULL.
void nbd_server_free(NbdServer *server);

// NULL: it does not run.
NbdsServer *nbd_server_get(const NbdServer *server);
bool nbd_server_is_stopping(const NbdServer *server);

// What clients are granted.
typedef struct NbdServerBounds {
    unsigned max_connections; // 0: as many as the config says
    int64_t handshake_s;      // for a handshake; 0: as long as it takes
} NbdServerBounds;
// Begins to serve; there are no exports yet. NULL: the config's.
void nbd_server_start(NbdServer *server, const NbdServerBounds *bounds);
// Takes clients from these sockets, too; takes `listeners`.
void nbd_server_listen(NbdServer *server, Listeners *listeners);
// The ones at that address (listeners_open_at()); borrowed; NULL: there are none.
Listeners *nbd_server_find_listeners(const NbdServer *server, const char *address);
// Takes clients from these no more, and frees them; their clients stay. While it runs and does not
// stop.
void nbd_server_end_listeners(Fiber *self, NbdServer *server, Listeners *listeners);
// The NBD URIs of an export, one for each address; owned, NULL-terminated.
char **nbd_server_uris(const NbdServer *server, const char *export_name);
// Removes the sockets from the file system. Any thread; accepts NULL.
void nbd_server_remove_files(NbdServer *server);
// It takes no more exports; nbd_server_stop() follows. False: it does not run, or stops already.
bool nbd_server_begin_stop(NbdServer *server);
// Disconnects all clients, once their requests have ended, and closes the sockets. While or after
// all exports are removed.
void nbd_server_stop(Fiber *self, NbdServer *server);
// After that, when no export is left.
void nbd_server_end(NbdServer *server);
