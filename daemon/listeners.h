// SPDX-License-Identifier: LGPL-2.1-or-later
// Where clients knock: the addresses of --nbd, sockets handed in by socket activation, or a
// private unix socket. Main thread.
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "loops.h"
#include "nbd/server.h"

typedef struct Listeners Listeners;

// Is `address` one that could be listened on? -EINVAL with a sentence if not. Opens nothing.
int listeners_check_address(const char *address, GError **error);

// How many sockets the environment says were handed to this process; forgets that, so that no
// child takes it for its own. -EINVAL with a sentence. Once, while there is no other thread: it
// changes the environment.
int listeners_take_activation(GError **error);

// Binds everything: `n_activated` sockets from activation, then `addresses` (NULL-terminated), and
// a private socket when there is neither, unless `addresses` is NULL. NULL with a sentence on failure.
Listeners *listeners_open(unsigned n_activated, char *const *addresses, GError **error);
// A socket that is there already, non-blocking; taken, also on failure: NULL with a sentence.
Listeners *listeners_open_fd(int fd, GError **error);
// Removes the sockets that listeners_open() made in the file system. Any thread; accepts NULL.
void listeners_remove_files(const Listeners *listeners);
// Removes them too. Accepts NULL.
void listeners_free(Listeners *listeners);

// The daemon was started for a client, and ends with the last one.
bool listeners_are_activated(const Listeners *listeners);

// From now on clients are served; they were queued since listeners_open(). Once.
void listeners_serve(Listeners *listeners, NbdsServer *server, const Loops *loops);

// The NBD URIs of an export, one per address; owned, NULL-terminated; empty under activation.
char **listeners_uris(const Listeners *listeners, const char *export_name);
