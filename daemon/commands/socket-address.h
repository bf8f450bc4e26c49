// SPDX-License-Identifier: LGPL-2.1-or-later
// Addresses of sockets as QMP writes them, and sockets that listen there. Control loop.
#pragma once

#include "chain-core/fiber.h"
#include "daemon/inherited-fds.h"
#include "daemon/listeners.h"
#include "daemon/qmp/type.h"

extern const QmpType socket_address;        // {"type": "unix", "path": …}
extern const QmpType socket_address_legacy; // {"type": "unix", "data": {"path": …}}

// Listens at `address`, of either type: name look-ups happen on a worker meanwhile. Owned; NULL
// with a sentence.
Listeners *socket_address_listen(Fiber *self, InheritedFds *fds, const json_t *address,
                                 GError **error);
