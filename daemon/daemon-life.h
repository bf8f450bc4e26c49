// SPDX-License-Identifier: LGPL-2.1-or-later
// How the daemon begins and ends, on the main thread.
#pragma once

#include "daemon.h"

// Opens and starts everything that the options, the configuration and the state directory ask for,
// from the sockets to the monitors. On failure a negative errno with a sentence, and daemon_end()
// is still to be called.
int daemon_begin(Daemon *daemon, GError **error);
// Says what is served: on stdout for scripts, in the log for people.
void daemon_announce(const Daemon *daemon);
// Undoes daemon_begin(), however far it came, and frees all that `daemon` has but for `stop`:
// requests in flight end, disks are flushed and unlocked. What cannot be stopped is left as it is:
// the process ends all the same. -ENOMEM or the first error of a flush.
int daemon_end(Daemon *daemon);
// Of NBD and of monitors, from the file system. Also on the way out in a hurry (stop.h): any
// thread.
void daemon_remove_sockets(const Daemon *daemon);
