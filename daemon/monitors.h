// SPDX-License-Identifier: LGPL-2.1-or-later
// Character devices, and which of them QMP clients are served on. Main thread until
// monitors_serve(), control loop from then on, and main thread again at the end.
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "activation.h"
#include "chardev.h"
#include "daemon/qmp/server.h"
#include "options.h"

typedef struct Monitors Monitors;

// Opens everything that `options` names, or else `config`, and takes the sockets of `activation`
// for control and queries out of `fds`; clients wait. NULL with a sentence.
Monitors *monitors_open(const Options *options, const Config *config, const Activation *activation,
                        InheritedFds *fds, GError **error);
// Removes the sockets from the file system. Any thread; accepts NULL.
void monitors_remove_files(Monitors *monitors);
// Removes them too. Accepts NULL.
void monitors_free(Monitors *monitors);

// One of them speaks through standard input and output, which are for nothing else then.
bool monitors_use_stdio(const Monitors *monitors);

// From now on clients are served. Once. 0, or a negative errno with a sentence.
int monitors_serve(Monitors *monitors, QmpServer *server, GError **error);

// Those with an id, Chardev, in the order in which they came.
const GPtrArray *monitors_chardevs(const Monitors *monitors);
// NULL: there is none of that id.
Chardev *monitors_find_chardev(const Monitors *monitors, const char *id);
// Takes `chardev`, of whose id there is none.
void monitors_add_chardev(Monitors *monitors, Chardev *chardev);
// Closes one that is not used.
void monitors_remove_chardev(Monitors *monitors, Chardev *chardev);
