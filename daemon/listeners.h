// SPDX-License-Identifier: LGPL-2.1-or-later
// Where clients knock: the addresses of --nbd, sockets handed in by socket activation, or a
// private unix socket. Main thread.
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "loops.h"
#include "nbd/server.h"
#include "socket-files.h"

typedef struct Listeners Listeners;

// Binds everything: `given` sockets (int; taken, also on failure; NULL: none), then `addresses`
// (NULL-terminated), and a private socket when there is neither, unless `addresses` is NULL. NULL
// with a sentence on failure.
Listeners *listeners_open(const GArray *given, char *const *addresses, GError **error);
// Binds one address; the access is of a unix socket. NULL with a sentence.
Listeners *listeners_open_at(const char *address, const SocketAccess *access, GError **error);
// That address; NULL: they came otherwise.
const char *listeners_address(const Listeners *listeners);
// From now on, of a unix socket. -errno with a sentence.
int listeners_set_access(const Listeners *listeners, const SocketAccess *access, GError **error);
// A socket that is there already, non-blocking; taken, also on failure: NULL with a sentence.
Listeners *listeners_open_fd(int fd, GError **error);
// Removes the sockets that listeners_open() made in the file system. Any thread; accepts NULL.
void listeners_remove_files(const Listeners *listeners);
// Removes them too. Accepts NULL.
void listeners_free(Listeners *listeners);

// Before they serve: clients use TLS as `tls` says; references are taken. `certificates` and
// `psk_file` go into the URIs, for clients on this machine; NULL: none.
void listeners_set_tls(Listeners *listeners, const NbdsTls *tls, const char *certificates,
                       const char *psk_file);

// While they serve: for clients that connect from now on. Control loop.
void listeners_change_tls(Fiber *self, Listeners *listeners, const NbdsTls *tls,
                          const char *certificates, const char *psk_file);

// All were there already.
bool listeners_are_only_given(const Listeners *listeners);

// From now on clients are served; they were queued since listeners_open(). Once.
void listeners_serve(Listeners *listeners, NbdsServer *server, const Loops *loops);

// They accept no more, and are freed; their clients stay. Control loop; not while the server stops.
void listeners_end(Fiber *self, Listeners *listeners, NbdsServer *server);

// The NBD URIs of an export, one per address; owned, NULL-terminated.
char **listeners_uris(const Listeners *listeners, const char *export_name);
