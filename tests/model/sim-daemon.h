// SPDX-License-Identifier: LGPL-2.1-or-later
// The daemon's nodes, jobs and commands in a simulation, all on one loop: commands as monitors send
// them. There are no threads, sockets or exports. Test code only.
#pragma once

#include "chain-core/port.h"
#include "daemon/daemon.h"

typedef struct SimDaemon SimDaemon;

SimDaemon *sim_daemon_new(Fiber *self);
// Deletes all nodes. No port may be there any more.
void sim_daemon_close(Fiber *self, SimDaemon *d);
// After that, and after the simulation's run: fibers of the daemon's have ended.
void sim_daemon_free(SimDaemon *d);

// Runs a command, whose arguments are JSON with single quotes. NULL, or why it is refused (owned).
char *sim_daemon_run(Fiber *self, SimDaemon *d, const char *command, const char *arguments);
// Waits until a job that is not dismissed by itself has concluded (is asked to complete once it is
// ready), and dismisses it. NULL, or why it failed (owned).
char *sim_daemon_end_job(Fiber *self, SimDaemon *d, const char *id);

// NULL: there is none of that name. Borrowed.
Node *sim_daemon_node(const SimDaemon *d, const char *name);
