// SPDX-License-Identifier: LGPL-2.1-or-later
// The handshake with one client, from the greeting to the choice of an export: receives options,
// has them executed (options.h), sends the answers. On the connection's loop, in its receiver.
#pragma once

#include "chain-core/stream.h"
#include "export.h"
#include "request-check.h"
#include "server-loop.h"

// What a handshake ends with.
typedef struct NbdsAgreement {
    NbdsExport *export;  // a reference; the client counts as one of its (nbds_export_client_left())
    NbdsSession session; // nbds_session_done()
} NbdsAgreement;

// 0 with an agreement, or negative: the connection shall be closed. Reads exact sizes, so that
// nothing is buffered when it returns, or when TLS begins: then `*stream`, which the caller still
// owns, becomes the encrypted one. `peer` says who the client is, where exports are not for
// everybody (NbdsServerConfig's may_use); it gets TLS's identity, while this runs.
int nbds_handshake_run(Fiber *self, NbdsServerLoop *server_loop, const NbdsTls *tls, NbdsPeer *peer,
                       Stream **stream, NbdsAgreement *ret_agreement);
