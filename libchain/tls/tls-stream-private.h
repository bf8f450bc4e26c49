// SPDX-License-Identifier: LGPL-2.1-or-later
// What the handshake and the transfers of a TLS stream share. gnutls takes and leaves encrypted
// bytes in two buffers, and never waits:
//
//     peer ──▶ plain ──▶ [in] ──▶ gnutls ──▶ stream_recv()
//     peer ◀── plain ◀── [out] ◀── gnutls ◀── stream_send()
//
// For libchain/tls. On the stream's loop, or, while a step of the handshake runs, on its worker.
#pragma once

#include <gnutls/gnutls.h>

#include "chain-core/tls-stream.h"
#include "io/stream-private.h"
#include "tls/tls-creds-private.h"

// [pos, end) is there. As large as the last transfer needed, about: peers may be quiet for long.
typedef struct TlsBuffer {
    uint8_t *bytes;
    size_t capacity, pos, end;
} TlsBuffer;

typedef struct TlsStream {
    Stream stream;
    Stream *plain; // owned
    TlsCreds *creds;
    TlsAuthz *authz;  // NULL: none
    FiberMutex *turn; // NULL: none
    char *hostname;   // NULL: any
    char *peer;       // its identity; NULL: not known
    char *refusal;    // why the peer was not taken
    gnutls_session_t session;
    TlsBuffer in, out;
    size_t ahead_bytes;            // of the next send: encrypted already
    bool may_say_bye;              // established, and not yet said
    int receive_error, send_error; // sticky
} TlsStream;

static inline size_t tls_buffer_bytes(const TlsBuffer *buffer)
{
    return buffer->end - buffer->pos;
}

// Makes an empty buffer one of `want` bytes, about. -ENOMEM.
int tls_buffer_fit(TlsBuffer *buffer, size_t want);

// Sends what is in `out`. 0 or -errno.
int tls_stream_flush(Fiber *self, TlsStream *t);
// The same without waiting: as much as `plain` takes.
void tls_stream_try_flush(TlsStream *t);
// Receives into `in`, which is empty, up to about `want` bytes. 0, -ECONNRESET at the end of
// `plain`, or another -errno.
int tls_stream_fill(Fiber *self, TlsStream *t, size_t want);
