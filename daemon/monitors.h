// SPDX-License-Identifier: LGPL-2.1-or-later
// The sockets at which the command line wants QMP clients to be served. Main thread.
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "daemon/qmp/server.h"
#include "options.h"

typedef struct Monitors Monitors;

// Binds everything that `options` names; clients wait. NULL with a sentence.
Monitors *monitors_open(const Options *options, GError **error);
// Removes the sockets from the file system. Any thread; accepts NULL.
void monitors_remove_files(const Monitors *monitors);
// Removes them too. Accepts NULL.
void monitors_free(Monitors *monitors);

// One of them speaks through standard input and output, which are for nothing else then.
bool monitors_use_stdio(const Monitors *monitors);

// From now on clients are served. On the control loop, once. 0, or -ENOMEM with a sentence.
int monitors_serve(Monitors *monitors, QmpServer *server, GError **error);
