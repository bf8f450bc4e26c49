// SPDX-License-Identifier: LGPL-2.1-or-later
// TLS on top of another stream. What is sent and received through it is encrypted on its loop; the
// handshake's arithmetic, which takes milliseconds, is a worker's. The peer's request for new keys
// is answered with the next bytes that are sent; a new handshake (TLS 1.2) is not taken part in:
// the stream ends. stream_recv() answers -ECONNRESET when a peer, or somebody on the way, ends the
// connection without saying so inside TLS. On the stream's loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/stream.h"
#include "chain-core/tls-authz.h"
#include "chain-core/tls-creds.h"

typedef struct TlsStreamConfig {
    TlsCreds *creds; // a reference is taken
    TlsAuthz *authz; // servers: who may connect; a reference is taken; NULL: whoever `creds` let
    const char *hostname; // clients: that the server's certificate must be for; NULL: for any
    // Borrowed, of the loop: handshakes that share it have one step at a time computed, and leave
    // the other workers to others. NULL: it waits for nobody.
    FiberMutex *turn;
} TlsStreamConfig;

// Takes `plain`, unless it fails: NULL with a sentence. What was sent and received before is no
// part of it. Only the handshake may use it first.
Stream *tls_stream_new(Stream *plain, const TlsStreamConfig *config, GError **error);
// Once. 0, -ECANCELED (also when it was shut down), or another -errno with a sentence: the peer was
// told why, and the stream is of no more use.
int tls_stream_handshake(Fiber *self, Stream *stream, GError **error);
// Who is at the other end, after the handshake; borrowed; NULL: that is not known.
const char *tls_stream_peer(const Stream *stream);
