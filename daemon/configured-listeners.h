// SPDX-License-Identifier: LGPL-2.1-or-later
// The [listen] sections of the configuration as sockets, at the start and with a reload. Any
// thread, blocking, unless said otherwise.
#pragma once

#include "daemon/config/config.h"
#include "listeners.h"
#include "nbd-server.h"

// What the settings say of TLS; reads the files. nbds_tls_clear(). -EINVAL with a sentence.
int configured_tls_read(const ListenSettings *listen, NbdsTls *ret_tls, GError **error);
// Whether the files that a [listen] section names for TLS can be used. -EINVAL with a sentence that
// begins with the place of the key.
int configured_tls_check(const ConfigEntry *entry, GError **error);

// Binds all sections, and reads their credentials: appends Listeners to `ret_listeners`. -EINVAL
// with a sentence that begins with the section's place.
int configured_listeners_open(const Config *config, GPtrArray *ret_listeners, GError **error);

// A change of the sockets of a server that runs, in two steps: what can fail, and the rest.
typedef struct ListenChange ListenChange;
// What is at the addresses of `now` stays. -EINVAL with a sentence, as above. Control loop;
// suspends.
ListenChange *listen_change_prepare(Fiber *self, const NbdServer *server, const Config *now,
                                    GError **error);
// Then listens where `now` says, and where `before` said and `now` does not no more. Sentences are
// appended to `done` and `failed` (char *). Control loop.
void listen_change_commit(Fiber *self, ListenChange *change, NbdServer *server,
                          const Config *before, GPtrArray *done, GPtrArray *failed);
void listen_change_free(ListenChange *change); // accepts NULL
