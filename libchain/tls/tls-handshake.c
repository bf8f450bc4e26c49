// SPDX-License-Identifier: LGPL-2.1-or-later
// The handshake of a TLS stream: steps on a worker, which take what was received and leave what is
// to be sent, and the transfers between them on the loop. Who the peer is gets decided inside the
// handshake, so that a peer that is refused is told by TLS. On the stream's loop, in a fiber.
#include <errno.h>
#include <gnutls/x509.h>
#include <string.h>

#include "base/error.h"
#include "tls/tls-stream-private.h"

enum { HANDSHAKE_BYTES = 4096 }; // received at a time: a client that says nothing holds no more

// --- Who the peer is: on the worker ---

// The subject of the peer's certificate; owned, NULL: it has none that can be read.
static char *certificate_name(gnutls_session_t session)
{
    unsigned n = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &n);
    gnutls_x509_crt_t certificate;
    char name[1024];
    size_t size = sizeof name;
    if (!n || gnutls_x509_crt_init(&certificate) < 0)
        return NULL;
    bool is_known = gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) >= 0 &&
                    gnutls_x509_crt_get_dn(certificate, name, &size) >= 0;
    gnutls_x509_crt_deinit(certificate);
    return is_known ? g_strndup(name, size) : NULL;
}

static int refuse(TlsStream *t, char *why)
{
    g_free(t->refusal);
    t->refusal = why;
    return GNUTLS_E_CERTIFICATE_ERROR;
}

static int check_authz(TlsStream *t)
{
    if (!t->authz || (t->peer && tls_authz_allows(t->authz, t->peer)))
        return 0;
    return refuse(t, g_strdup_printf("'%s' is not authorized", t->peer ? t->peer : ""));
}

static int check_certificate(gnutls_session_t session)
{
    TlsStream *t = gnutls_session_get_ptr(session);
    const char *purpose =
        t->creds->end == TLS_SERVER ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;
    gnutls_typed_vdata_st expected[2] = {
        {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)purpose},
        {.type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)t->hostname},
    };
    unsigned status = 0;
    int r = gnutls_certificate_verify_peers(session, expected, t->hostname ? 2 : 1, &status);
    if (r < 0)
        return refuse(t, g_strdup(gnutls_strerror(r)));
    if (status) {
        gnutls_datum_t text = {0};
        gnutls_certificate_verification_status_print(status, gnutls_certificate_type_get(session),
                                                     &text, 0);
        char *why = g_strdup(text.data ? (const char *)text.data : "it is not trusted");
        gnutls_free(text.data);
        return refuse(t, g_strchomp(why));
    }
    t->peer = certificate_name(session);
    return check_authz(t);
}

static void prepare(TlsStream *t)
{
    const TlsCreds *creds = t->creds;
    if (!creds->certificate)
        return;
    if (creds->end == TLS_SERVER)
        gnutls_certificate_server_set_request(
            t->session, creds->verifies_peer ? GNUTLS_CERT_REQUIRE : GNUTLS_CERT_IGNORE);
    if (creds->verifies_peer)
        gnutls_session_set_verify_function(t->session, check_certificate);
    bool is_address =
        t->hostname && (strchr(t->hostname, ':') || g_hostname_is_ip_address(t->hostname));
    if (creds->end == TLS_CLIENT && t->hostname && !is_address)
        gnutls_server_name_set(t->session, GNUTLS_NAME_DNS, t->hostname, strlen(t->hostname));
}

// The user of a shared key is known when the handshake has succeeded.
static int check_user(TlsStream *t)
{
    if (!t->creds->psk_server)
        return 0;
    t->peer = g_strdup(gnutls_psk_server_get_username(t->session));
    return check_authz(t);
}

typedef struct Step {
    TlsStream *t;
    int result; // gnutls's
} Step;

// On a worker.
static int step(void *arg)
{
    Step *s = arg;
    s->result = gnutls_handshake(s->t->session);
    if (s->result == GNUTLS_E_SUCCESS)
        s->result = check_user(s->t);
    if (s->result < 0 && gnutls_error_is_fatal(s->result))
        gnutls_alert_send_appropriate(s->t->session, s->result);
    return 0;
}

// --- On the loop ---

static int explain(const TlsStream *t, int result, GError **error)
{
    if (t->refusal)
        return error_set(error, -EACCES, "TLS: the peer is refused: %s", t->refusal);
    if (result == GNUTLS_E_FATAL_ALERT_RECEIVED)
        return error_set(error, -EACCES, "TLS: the peer refuses: %s",
                         gnutls_alert_get_name(gnutls_alert_get(t->session)));
    return error_set(error, -EPROTO, "TLS: %s", gnutls_strerror(result));
}

// A step and what it wants sent. 1 to go on, 0 when it was the last one.
static int advance(Fiber *self, TlsStream *t, GError **error)
{
    Step s = {t, 0};
    if (t->turn)
        fiber_mutex_lock(self, t->turn);
    int r = loop_work(self, step, &s);
    if (t->turn)
        fiber_mutex_unlock(self, t->turn);
    if (r < 0)
        return error_set(error, r, "TLS: %s", g_strerror(-r));
    bool has_failed = s.result < 0 && gnutls_error_is_fatal(s.result);
    r = tls_stream_flush(self, t);
    if (has_failed)
        return explain(t, s.result, error);
    if (r < 0)
        return error_set(error, r, "TLS: %s", g_strerror(-r));
    return s.result != GNUTLS_E_SUCCESS;
}

static int receive(Fiber *self, TlsStream *t, GError **error)
{
    if (tls_buffer_bytes(&t->in))
        return 0;
    int r = tls_stream_fill(self, t, HANDSHAKE_BYTES);
    if (r == -ECONNRESET)
        return error_set(error, r, "TLS: the peer left during the handshake");
    return r < 0 ? error_set(error, r, "TLS: %s", g_strerror(-r)) : 0;
}

int tls_stream_handshake(Fiber *self, Stream *stream, GError **error)
{
    TlsStream *t = (TlsStream *)stream;
    prepare(t);
    int r = t->creds->end == TLS_SERVER ? receive(self, t, error) : 0; // the client begins
    for (; r == 0 && (r = advance(self, t, error)) > 0;)
        r = receive(self, t, error);
    t->may_say_bye = r == 0;
    if (r < 0)
        t->receive_error = t->send_error = r;
    return r;
}
