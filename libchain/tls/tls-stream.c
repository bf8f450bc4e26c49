// SPDX-License-Identifier: LGPL-2.1-or-later
// Transfers over TLS. As many records as one send may have are encrypted into one buffer, and then
// sent together; small pieces share a record. What the plain stream gives in one receive is
// decrypted as it is asked for.
//
// Sender and receiver are two fibers, and gnutls allows for one of each. The receiver may leave
// bytes in `out`, too (an answer to a peer that changes its keys), also while the sender waits for
// `plain`, which has the bytes before them: so `out` keeps some room, and is not moved then. They
// go with the next send. On the stream's loop.
#include "tls/tls-stream-private.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "io/iov.h"

enum {
    RECORD_BYTES = 16384,    // of TLS, at most
    RECORD_OVERHEAD = 256,   // what a record may have besides, at most (RFC 8446 5.4)
    RESERVE_BYTES = 1024,    // of `out`, for what the receiver leaves there
    MIN_BUFFER_BYTES = 4096, // of the handshake
    MAX_IN_BYTES = 256 << 10,
    MAX_OUT_BYTES = 128 << 10, // encrypted before they are sent: the peer can begin with them
};

// --- Buffers ---

int tls_buffer_fit(TlsBuffer *buffer, size_t want)
{
    want = MAX(want, MIN_BUFFER_BYTES);
    buffer->pos = buffer->end = 0;
    if (want <= buffer->capacity && want >= buffer->capacity / 4)
        return 0;
    g_free(buffer->bytes);
    buffer->bytes = g_try_malloc(want);
    buffer->capacity = buffer->bytes ? want : 0;
    return buffer->bytes ? 0 : -ENOMEM;
}

static ssize_t pull(gnutls_transport_ptr_t ptr, void *data, size_t len)
{
    TlsStream *t = ptr;
    size_t n = MIN(len, tls_buffer_bytes(&t->in));
    if (!n) {
        gnutls_transport_set_errno(t->session, EAGAIN);
        return -1;
    }
    memcpy(data, t->in.bytes + t->in.pos, n);
    t->in.pos += n;
    return (ssize_t)n;
}

static int pull_timeout(gnutls_transport_ptr_t ptr, unsigned ms)
{
    const TlsStream *t = ptr;
    return tls_buffer_bytes(&t->in) > 0;
}

// While somebody sends what is in `out` it only takes what fits behind it.
static int make_room(TlsStream *t, size_t len)
{
    bool is_sending = t->plain->sender;
    if (!is_sending && !tls_buffer_bytes(&t->out))
        t->out.pos = t->out.end = 0;
    if (t->out.end + len <= t->out.capacity)
        return 0;
    if (is_sending)
        return -ENOBUFS;
    size_t have = tls_buffer_bytes(&t->out), want = have + len;
    uint8_t *bytes = g_try_malloc(want);
    if (!bytes)
        return -ENOMEM;
    if (have)
        memcpy(bytes, t->out.bytes + t->out.pos, have);
    g_free(t->out.bytes);
    t->out = (TlsBuffer){.bytes = bytes, .capacity = want, .end = have};
    return 0;
}

static ssize_t push(gnutls_transport_ptr_t ptr, const void *data, size_t len)
{
    TlsStream *t = ptr;
    int r = make_room(t, len);
    if (r < 0) {
        gnutls_transport_set_errno(t->session, -r);
        return -1;
    }
    memcpy(t->out.bytes + t->out.end, data, len);
    t->out.end += len;
    return (ssize_t)len;
}

int tls_stream_flush(Fiber *self, TlsStream *t)
{
    size_t n = tls_buffer_bytes(&t->out);
    if (!n)
        return 0;
    struct iovec iov = {t->out.bytes + t->out.pos, n};
    int r = stream_send(self, t->plain, &iov, 1);
    t->out.pos += n;
    return r;
}

void tls_stream_try_flush(TlsStream *t)
{
    ssize_t n = 0;
    for (; tls_buffer_bytes(&t->out) && n >= 0; t->out.pos += (size_t)MAX(n, 0))
        n = stream_try_send(t->plain, t->out.bytes + t->out.pos, tls_buffer_bytes(&t->out));
    if (n < 0 && n != -EAGAIN)
        t->send_error = (int)n;
}

int tls_stream_fill(Fiber *self, TlsStream *t, size_t want)
{
    const Stream *s = &t->stream;
    int r = tls_buffer_fit(&t->in, want);
    if (r < 0)
        return r;
    ssize_t n = s->is_coalescing ? stream_recv_coalesced(self, t->plain, t->in.bytes,
                                                         t->in.capacity, s->unsent_bytes)
                                 : stream_recv(self, t->plain, t->in.bytes, t->in.capacity);
    if (n <= 0)
        return n < 0 ? (int)n : -ECONNRESET;
    t->in.end = (size_t)n;
    return 0;
}

// --- Receiving ---

static int error_of(ssize_t result)
{
    return result == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EPROTO;
}

// Of what is in `in`: bytes, 0 at the end that the peer told, -EAGAIN: more is needed for a byte.
static ssize_t decrypt(TlsStream *t, uint8_t *buf, size_t len)
{
    size_t done = 0;
    while (done < len && !t->receive_error) {
        size_t pos = t->in.pos;
        ssize_t n = gnutls_record_recv(t->session, buf + done, len - done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0)
            return (ssize_t)done; // asked again, it says so again
        else if (n == GNUTLS_E_AGAIN && t->in.pos == pos)
            return done ? (ssize_t)done : -EAGAIN;
        else if (n == GNUTLS_E_REHANDSHAKE || gnutls_error_is_fatal((int)n))
            t->receive_error = error_of(n);
        // Else it was no data: other keys, a warning.
    }
    return done ? (ssize_t)done : t->receive_error;
}

static ssize_t tls_recv(Fiber *self, Stream *stream, void *buf, size_t len)
{
    TlsStream *t = (TlsStream *)stream;
    for (;;) {
        ssize_t n = decrypt(t, buf, len);
        if (n != -EAGAIN)
            return n;
        size_t want = len + len / 16 + RECORD_OVERHEAD;
        int r = tls_stream_fill(self, t, CLAMP(want, RECORD_BYTES + RECORD_OVERHEAD, MAX_IN_BYTES));
        if (r < 0)
            return r;
    }
}

// --- Sending ---

// The next piece for a record of `max` bytes: of one entry in place, of several in `shared`.
static struct iovec next_piece(const struct iovec *iov, unsigned n_iov, size_t skip,
                               uint8_t *shared, size_t max)
{
    const struct iovec first = {(uint8_t *)iov->iov_base + skip, MIN(iov->iov_len - skip, max)};
    if (first.iov_len == max || n_iov == 1)
        return first;
    size_t n = 0;
    for (unsigned i = 0; i < n_iov && n < max; i++) {
        size_t part = MIN(iov[i].iov_len - skip, max - n);
        memcpy(shared + n, (uint8_t *)iov[i].iov_base + skip, part);
        n += part;
        skip = 0;
    }
    return (struct iovec){shared, n};
}

// As much of it as fits into `out`, which is empty but for what the receiver left: bytes, or
// -errno.
static ssize_t encrypt(TlsStream *t, const struct iovec *iov, unsigned n_iov)
{
    static _Thread_local uint8_t shared[RECORD_BYTES]; // nobody suspends while it is used
    size_t max = MIN(gnutls_record_get_max_size(t->session), RECORD_BYTES), done = 0, skip = 0;
    size_t total = iov_bytes(iov, n_iov);
    size_t want = total + (total / max + 1) * RECORD_OVERHEAD + RESERVE_BYTES;
    if (!tls_buffer_bytes(&t->out) && tls_buffer_fit(&t->out, MIN(want, MAX_OUT_BYTES)) < 0)
        return -ENOMEM;
    while (n_iov &&
           (!done || t->out.end + MIN(max, total - done) + RECORD_OVERHEAD + RESERVE_BYTES <=
                         t->out.capacity)) {
        struct iovec piece = next_piece(iov, n_iov, skip, shared, max);
        ssize_t n = gnutls_record_send(t->session, piece.iov_base, piece.iov_len);
        if (n < 0)
            return t->send_error = error_of(n);
        done += (size_t)n;
        for (skip += (size_t)n; n_iov && skip >= iov->iov_len; n_iov--)
            skip -= (iov++)->iov_len;
    }
    return (ssize_t)done;
}

static ssize_t tls_send(Fiber *self, Stream *stream, struct iovec *iov, unsigned n_iov)
{
    TlsStream *t = (TlsStream *)stream;
    ssize_t n = t->send_error;
    if (!n && t->ahead_bytes) {
        n = (ssize_t)MIN(t->ahead_bytes, iov_bytes(iov, n_iov));
        t->ahead_bytes -= (size_t)n;
    } else if (!n) {
        n = encrypt(t, iov, n_iov);
    }
    int r = n < 0 ? (int)n : tls_stream_flush(self, t);
    if (r < 0)
        t->send_error = r; // nobody knows how far a record got
    return r < 0 ? r : n;
}

// What is encrypted and not taken cannot be taken back: it counts as sent when the same bytes are
// sent again.
static ssize_t tls_try_send(Stream *stream, const void *buf, size_t len)
{
    TlsStream *t = (TlsStream *)stream;
    struct iovec iov = {(void *)buf, len};
    if (t->ahead_bytes)
        return -EAGAIN;
    ssize_t n = t->send_error ? t->send_error : encrypt(t, &iov, 1);
    if (n < 0)
        return n;
    tls_stream_try_flush(t);
    if (!t->send_error && tls_buffer_bytes(&t->out))
        t->ahead_bytes = (size_t)n;
    return t->send_error ? t->send_error : t->ahead_bytes ? -EAGAIN : n;
}

// --- Life ---

static void tls_shutdown(Stream *stream)
{
    stream_shutdown(((TlsStream *)stream)->plain);
}

// As far as the socket takes it at once: a peer that does not read cannot tell.
static void tls_end_sending(Stream *stream)
{
    TlsStream *t = (TlsStream *)stream;
    if (t->may_say_bye && !t->send_error && gnutls_bye(t->session, GNUTLS_SHUT_WR) >= 0)
        tls_stream_try_flush(t);
    t->may_say_bye = false;
    stream_end_sending(t->plain);
}

static void tls_detach(Stream *stream)
{
    stream_detach(((TlsStream *)stream)->plain);
}

static void tls_attach(Stream *stream, Loop *loop)
{
    stream_attach(((TlsStream *)stream)->plain, loop);
}

static void tls_free(Stream *stream)
{
    TlsStream *t = (TlsStream *)stream;
    if (t->session)
        gnutls_deinit(t->session);
    stream_free(t->plain);
    tls_creds_unref(t->creds);
    tls_authz_unref(t->authz);
    g_free(t->hostname);
    g_free(t->peer);
    g_free(t->refusal);
    g_free(t->in.bytes);
    g_free(t->out.bytes);
    g_free(t);
}

static const StreamOps tls_ops = {
    .recv = tls_recv,
    .send = tls_send,
    .try_send = tls_try_send,
    .shutdown = tls_shutdown,
    .end_sending = tls_end_sending,
    .detach = tls_detach,
    .attach = tls_attach,
    .free = tls_free,
};

static int start_session(TlsStream *t)
{
    const TlsCreds *creds = t->creds;
    unsigned flags = (creds->end == TLS_SERVER ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK |
                     GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS;
    int r = gnutls_init(&t->session, flags);
    if (r < 0) {
        t->session = NULL;
        return r;
    }
    gnutls_session_set_ptr(t->session, t);
    gnutls_transport_set_ptr(t->session, t);
    gnutls_transport_set_pull_function(t->session, pull);
    gnutls_transport_set_pull_timeout_function(t->session, pull_timeout);
    gnutls_transport_set_push_function(t->session, push);
    r = gnutls_priority_set(t->session, creds->algorithms);
    if (r < 0)
        return r;
    if (creds->certificate)
        return gnutls_credentials_set(t->session, GNUTLS_CRD_CERTIFICATE, creds->certificate);
    return gnutls_credentials_set(t->session, GNUTLS_CRD_PSK,
                                  creds->psk_server ? (void *)creds->psk_server
                                                    : (void *)creds->psk_client);
}

Stream *tls_stream_new(Stream *plain, const TlsStreamConfig *config, GError **error)
{
    TlsStream *t = g_new0(TlsStream, 1);
    t->stream.ops = &tls_ops;
    t->stream.loop = plain->loop;
    t->plain = plain;
    t->creds = tls_creds_ref(config->creds);
    t->authz = config->authz ? tls_authz_ref(config->authz) : NULL;
    t->hostname = g_strdup(config->hostname);
    t->turn = config->turn;
    int r = start_session(t);
    if (r >= 0)
        return &t->stream;
    error_set(error, error_of(r), "cannot begin a TLS session: %s", gnutls_strerror(r));
    t->plain = NULL;
    stream_free(&t->stream);
    return NULL;
}

const char *tls_stream_peer(const Stream *stream)
{
    return ((const TlsStream *)stream)->peer;
}
