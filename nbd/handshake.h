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
    NbdsExport *export;  // a reference
    NbdsSession session; // nbds_session_done()
} NbdsAgreement;

// 0 with an agreement, or negative: the connection shall be closed. Reads exact sizes, so that
// nothing is buffered when it returns.
int nbds_handshake_run(Fiber *self, NbdsServerLoop *server_loop, Stream *stream,
                       NbdsAgreement *ret_agreement);
