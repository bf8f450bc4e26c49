// SPDX-License-Identifier: LGPL-2.1-or-later
// A connection to a daemon's control socket: one command at a time, and the events that come
// meanwhile. Blocks. Errors are CTL_ERROR.
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "fail.h"

typedef struct QmpClient QmpClient;

// NULL: nobody is there, or they do not speak QMP.
QmpClient *qmp_client_open(const char *path, GError **error);
void qmp_client_free(QmpClient *client); // accepts NULL
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QmpClient, qmp_client_free)

// Runs a command. `args` (taken) may be NULL. Its return, a new reference; NULL: `error`.
json_t *qmp_client_run(QmpClient *client, const char *command, json_t *args, GError **error);
// Does the daemon have this command? An error counts as no.
bool qmp_client_has(QmpClient *client, const char *command);

// The next event, {"event": …, "data": …, "timestamp": …}, a new reference. NULL without `error`:
// none came in time, or a signal did. `timeout_ms` <0: waits for ever.
json_t *qmp_client_next_event(QmpClient *client, int timeout_ms, GError **error);
