// SPDX-License-Identifier: LGPL-2.1-or-later
// A connection from accept to close. It starts on the loop that accepted it and is handed to its
// export's loop when an export was chosen. Two fibers serve it: the receiver (first the handshake)
// and the sender; each request has a fiber of its own. On its loop.
#pragma once

#include "connection.h"

// Takes `fd`, and references of `tls`. Starts the handshake; a failure closes it.
// Counted by the server until it is freed.
void nbds_connection_start(NbdsServerLoop *server_loop, int fd, const NbdsTls *tls);
// Goes on with one that was parked because its export was moving: at the export's loop. It is in no
// list. On the loop where it was parked.
void nbds_connection_resume(NbdsConnection *c);
// Parks it at a request boundary, once what is in flight was answered, and has it go on at `to`, an
// export of the same content on any loop: no request is lost, done twice or overtaken. Nothing
// happens unless it is in transmission. A client that does not take its replies within
// `timeout_ns` (UINT64_MAX: no limit) is cut off; nothing is received from it meanwhile. `to` may
// be its own export, which is moving.
void nbds_connection_move(NbdsConnection *c, NbdsExport *to, uint64_t timeout_ns);
