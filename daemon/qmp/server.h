// SPDX-License-Identifier: LGPL-2.1-or-later
// All monitors of the daemon: they come through listening sockets, several at a time, and all are
// told of events. Control loop.
#pragma once

#include <jansson.h>

#include "chain-core/loop.h"
#include "command.h"
#include "peer.h"

typedef struct QmpServer QmpServer;

// `families` (ends with NULL) and `daemon` are borrowed.
QmpServer *qmp_server_new(Loop *loop, Daemon *daemon, const QmpFamily *const *families);
// After qmp_server_stop(). Accepts NULL.
void qmp_server_free(QmpServer *server);

const QmpTable *qmp_server_table(const QmpServer *server);

// Take `fd`, a listening socket, or a connected one, non-blocking. `name` and `policy` (NULL: all
// may do everything) are copied. 0 or -ENOMEM, and then `fd` is closed. Clients that may not use a
// socket are told so, and disconnected.
int qmp_server_add_listener(QmpServer *server, int fd, const char *name, const QmpPolicy *policy);
int qmp_server_add_client(QmpServer *server, int fd, const char *name, const QmpPolicy *policy);

// Clients now that came through the sockets of that name.
unsigned qmp_server_n_clients(const QmpServer *server, const char *name);

// Tells all monitors that have negotiated. Takes `data` (NULL: none).
void qmp_server_emit(QmpServer *server, const char *event, json_t *data);

// No more clients and no more commands; returns when those that run have ended.
void qmp_server_end_commands(Fiber *self, QmpServer *server);
// Sends what is unsent, in a bounded time, and ends all monitors.
void qmp_server_stop(Fiber *self, QmpServer *server);
