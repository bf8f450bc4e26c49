// SPDX-License-Identifier: LGPL-2.1-or-later
// TLS between two simulated streams, whose seed decides how bytes are cut: transfers of every size
// both ways at once, ends told and not told, peers that are refused, that leave after each byte of
// the handshake, that change keys, and a stream that is detached between two requests.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/sim.h"
#include "chain-core/tls-stream.h"
#include "pki.h"
#include "tls/tls-stream-private.h"

enum { N_SEEDS = 10, MESSAGE_BYTES = 100 * 1000 };

static Pki *pki;
static TlsCreds *server_creds, *client_creds, *psk_server, *psk_client;

static TlsCreds *x509(TlsEnd end, const char *dir, bool verifies_peer)
{
    TlsCreds *creds = tls_creds_new_x509(
        &(TlsCredsConfig){
            .end = end, .dir = dir, .verifies_peer = verifies_peer, .skips_sanity = true},
        NULL);
    assert_non_null(creds);
    return creds;
}

static TlsCreds *psk(TlsEnd end, const char *dir, const char *user)
{
    TlsCreds *creds =
        tls_creds_new_psk(&(TlsCredsConfig){.end = end, .dir = dir, .username = user}, NULL);
    assert_non_null(creds);
    return creds;
}

static int make_creds(void **state)
{
    pki = pki_new();
    g_autofree char *dir = pki_make_dir(pki, "good"), *keys = NULL;
    pki_issue(pki, dir, &(PkiCertificate){"server", "host.example", 0, 0, false});
    pki_issue(pki, dir, &(PkiCertificate){"client", "client-1", 0, 0, false});
    server_creds = x509(TLS_SERVER, dir, true);
    client_creds = x509(TLS_CLIENT, dir, true);
    keys = pki_make_psk(pki, "psk", "alice:00112233445566778899aabbccddeeff\n");
    psk_server = psk(TLS_SERVER, keys, NULL);
    psk_client = psk(TLS_CLIENT, keys, "alice");
    return 0;
}

static int free_creds(void **state)
{
    tls_creds_unref(server_creds);
    tls_creds_unref(client_creds);
    tls_creds_unref(psk_server);
    tls_creds_unref(psk_client);
    pki_free(pki);
    return 0;
}

// Both ends of a connection, and how their handshakes went.
typedef struct Talk {
    TlsStreamConfig server_config, client_config;
    Stream *server, *client;
    int server_result, client_result;
    GError *server_error, *client_error;
    FiberWaitGroup group;
    void (*then)(Fiber *self, struct Talk *talk);
} Talk;

static void run_client_handshake(Fiber *self, void *arg)
{
    Talk *talk = arg;
    talk->client_result = tls_stream_handshake(self, talk->client, &talk->client_error);
    fiber_wait_group_done(&talk->group);
}

static void spawn(Fiber *self, Talk *talk, FiberFn *fn)
{
    fiber_wait_group_add(&talk->group, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "peer", fn, talk, NULL), 0);
}

static void talk_main(Fiber *self, void *arg)
{
    Talk *talk = arg;
    Stream *a, *b;
    sim_stream_pair(fiber_loop(self), &a, &b);
    talk->server = tls_stream_new(a, &talk->server_config, NULL);
    talk->client = tls_stream_new(b, &talk->client_config, NULL);
    assert_true(talk->server && talk->client);
    spawn(self, talk, run_client_handshake);
    talk->server_result = tls_stream_handshake(self, talk->server, &talk->server_error);
    if (talk->server_result < 0)
        stream_shutdown(talk->server);
    fiber_wait_group_wait(self, &talk->group);
    if (talk->then)
        talk->then(self, talk);
    stream_free(talk->server);
    stream_free(talk->client);
}

static void talk_done(Talk *talk)
{
    g_clear_error(&talk->server_error);
    g_clear_error(&talk->client_error);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Talk, talk_done)

static void run(Talk *talk, uint64_t seed)
{
    Sim *sim = sim_new(&(SimConfig){.seed = seed});
    assert_true(sim_run(sim, talk_main, talk));
    sim_free(sim);
}

static Talk good_talk(void (*then)(Fiber *, Talk *))
{
    return (Talk){.server_config = {.creds = server_creds},
                  .client_config = {.creds = client_creds, .hostname = "host.example"},
                  .then = then};
}

// --- Transfers ---

static uint8_t byte_at(size_t i)
{
    return (uint8_t)(i * 7 + i / 251);
}

static void send_message(Fiber *self, Stream *stream)
{
    g_autofree uint8_t *data = g_malloc(MESSAGE_BYTES);
    for (size_t i = 0; i < MESSAGE_BYTES; i++)
        data[i] = byte_at(i);
    // Small ones first, then one of several records, and some of odd sizes.
    static const size_t sizes[] = {1, 4, 28, 16384, 16385, 5000, 60000};
    size_t at = 0;
    for (unsigned i = 0; at < MESSAGE_BYTES; i++) {
        size_t n = MIN(sizes[i % G_N_ELEMENTS(sizes)], MESSAGE_BYTES - at), third = n / 3;
        struct iovec iov[] = {
            {data + at, third}, {data + at + third, 0}, {data + at + third, n - third}};
        assert_int_equal(stream_send(self, stream, iov, 3), 0);
        at += n;
    }
}

static void expect_message(Fiber *self, Stream *stream)
{
    uint8_t buf[40000];
    for (size_t at = 0; at < MESSAGE_BYTES;) {
        size_t len = MIN(1 + at % sizeof buf, MESSAGE_BYTES - at);
        ssize_t n = stream_recv(self, stream, buf, len);
        assert_true(n > 0);
        for (ssize_t i = 0; i < n; i++, at++)
            assert_int_equal(buf[i], byte_at(at));
    }
}

static void client_sends(Fiber *self, void *arg)
{
    Talk *talk = arg;
    send_message(self, talk->client);
    fiber_wait_group_done(&talk->group);
}

static void server_sends(Fiber *self, void *arg)
{
    Talk *talk = arg;
    send_message(self, talk->server);
    fiber_wait_group_done(&talk->group);
}

static void client_receives(Fiber *self, void *arg)
{
    Talk *talk = arg;
    expect_message(self, talk->client);
    fiber_wait_group_done(&talk->group);
}

static void both_send(Fiber *self, Talk *talk)
{
    assert_int_equal(talk->server_result, 0);
    assert_int_equal(talk->client_result, 0);
    spawn(self, talk, client_sends);
    spawn(self, talk, server_sends);
    spawn(self, talk, client_receives);
    expect_message(self, talk->server);
    fiber_wait_group_wait(self, &talk->group);
}

static void bytes_arrive_both_ways_at_once(void **state)
{
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        g_auto(Talk) talk = good_talk(both_send);
        run(&talk, seed);
    }
}

static void bytes_arrive_with_a_shared_key(void **state)
{
    g_auto(Talk) talk = {.server_config = {.creds = psk_server},
                         .client_config = {.creds = psk_client},
                         .then = both_send};
    run(&talk, 1);
}

enum { TRIED_BYTES = 100000 };

static void client_receives_tried(Fiber *self, void *arg)
{
    Talk *talk = arg;
    g_autofree uint8_t *got = g_malloc(TRIED_BYTES);
    assert_int_equal(stream_recv_all(self, talk->client, got, TRIED_BYTES), 0);
    for (size_t i = 0; i < TRIED_BYTES; i++)
        assert_int_equal(got[i], byte_at(i));
    fiber_wait_group_done(&talk->group);
}

// Until nothing more is taken: then the same bytes are sent, in pieces of another size.
static void tries_to_send(Fiber *self, Talk *talk)
{
    g_autofree uint8_t *data = g_malloc(TRIED_BYTES);
    for (size_t i = 0; i < TRIED_BYTES; i++)
        data[i] = byte_at(i);
    size_t sent = 0;
    ssize_t n = 0;
    while (sent < TRIED_BYTES &&
           (n = stream_try_send(talk->server, data + sent, MIN(9000, TRIED_BYTES - sent))) > 0)
        sent += (size_t)n;
    assert_true(sent == TRIED_BYTES || n == -EAGAIN);
    if (n == -EAGAIN)
        assert_int_equal(stream_try_send(talk->server, data + sent, 10), -EAGAIN);
    spawn(self, talk, client_receives_tried);
    struct iovec few = {data + sent, MIN(100, TRIED_BYTES - sent)};
    size_t left = TRIED_BYTES - sent - few.iov_len;
    struct iovec rest = {data + TRIED_BYTES - left, left};
    assert_int_equal(stream_send(self, talk->server, &few, 1), 0);
    assert_int_equal(stream_send(self, talk->server, &rest, 1), 0);
    fiber_wait_group_wait(self, &talk->group);
}

static void what_a_try_left_is_sent_once(void **state)
{
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        g_auto(Talk) talk = good_talk(tries_to_send);
        run(&talk, seed);
    }
}

// --- Between requests ---

enum { ASKED_BYTES = 5000 };

static void asks(Fiber *self, void *arg)
{
    Talk *talk = arg;
    char request[ASKED_BYTES] = {'a'}, answer[ASKED_BYTES] = {'b'}, got[ASKED_BYTES];
    struct iovec iov = {request, sizeof request};
    assert_int_equal(stream_send(self, talk->client, &iov, 1), 0);
    assert_int_equal(stream_recv_all(self, talk->client, got, sizeof got), 0);
    assert_memory_equal(got, answer, sizeof got);
    fiber_wait_group_done(&talk->group);
}

// With `moves` the server is detached while it has a part of the request.
static void answer(Fiber *self, Talk *talk, bool moves)
{
    char request[ASKED_BYTES] = {'a'}, answer[ASKED_BYTES] = {'b'}, got[ASKED_BYTES];
    struct iovec iov = {answer, sizeof answer};
    spawn(self, talk, asks);
    assert_int_equal(stream_recv_all(self, talk->server, got, 1), 0);
    if (moves) {
        stream_detach(talk->server);
        stream_attach(talk->server, fiber_loop(self));
    }
    assert_int_equal(stream_recv_all(self, talk->server, got + 1, sizeof got - 1), 0);
    assert_memory_equal(got, request, sizeof got);
    assert_int_equal(stream_send(self, talk->server, &iov, 1), 0);
    fiber_wait_group_wait(self, &talk->group);
}

static void is_detached(Fiber *self, Talk *talk)
{
    for (unsigned i = 0; i < 6; i++) {
        stream_detach(talk->server);
        stream_attach(talk->server, fiber_loop(self));
        answer(self, talk, i % 2);
    }
}

static void a_detached_stream_keeps_its_session(void **state)
{
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        g_auto(Talk) talk = good_talk(is_detached);
        run(&talk, seed);
    }
}

enum { LARGE_BYTES = 250000 };

static void client_receives_large(Fiber *self, void *arg)
{
    Talk *talk = arg;
    g_autofree uint8_t *got = g_malloc(LARGE_BYTES);
    for (size_t at = 0; at < LARGE_BYTES;)
        at += (size_t)stream_recv(self, talk->client, got + at, LARGE_BYTES - at);
    fiber_wait_group_done(&talk->group);
}

static void becomes_quiet(Fiber *self, Talk *talk)
{
    g_autofree uint8_t *data = g_malloc0(LARGE_BYTES);
    struct iovec iov = {data, LARGE_BYTES};
    spawn(self, talk, client_receives_large);
    assert_int_equal(stream_send(self, talk->server, &iov, 1), 0);
    fiber_wait_group_wait(self, &talk->group);
    answer(self, talk, false);
    assert_in_range(((TlsStream *)talk->server)->out.capacity, 1, 32 << 10);
    assert_in_range(((TlsStream *)talk->client)->in.capacity, 1, 66 << 10);
}

static void who_became_quiet_keeps_no_large_buffers(void **state)
{
    g_auto(Talk) talk = good_talk(becomes_quiet);
    run(&talk, 1);
}

static void client_sends_with_new_keys(Fiber *self, void *arg)
{
    Talk *talk = arg;
    gnutls_session_t session = ((TlsStream *)talk->client)->session;
    assert_int_equal(gnutls_protocol_get_version(session), GNUTLS_TLS1_3);
    assert_int_equal(gnutls_session_key_update(session, GNUTLS_KU_PEER), 0);
    send_message(self, talk->client);
    assert_int_equal(gnutls_session_key_update(session, 0), 0);
    struct iovec iov = {"end", 3};
    assert_int_equal(stream_send(self, talk->client, &iov, 1), 0);
    fiber_wait_group_done(&talk->group);
}

static void keys_change(Fiber *self, Talk *talk)
{
    char end[3];
    spawn(self, talk, client_sends_with_new_keys);
    spawn(self, talk, server_sends);
    spawn(self, talk, client_receives);
    expect_message(self, talk->server);
    assert_int_equal(stream_recv_all(self, talk->server, end, 3), 0);
    assert_memory_equal(end, "end", 3);
    fiber_wait_group_wait(self, &talk->group);
    answer(self, talk, false);
}

static void keys_change_while_both_send(void **state)
{
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        g_auto(Talk) talk = good_talk(keys_change);
        run(&talk, seed);
    }
}

// Records of no bytes, which are no end (RFC 8446 5.1), and cost the receiver some time.
static void client_sends_nothing(Fiber *self, void *arg)
{
    Talk *talk = arg;
    TlsStream *client = (TlsStream *)talk->client;
    struct iovec iov = {"end", 3};
    for (unsigned i = 0; i < 2000; i++)
        assert_int_equal(gnutls_record_send2(client->session, "", 0, 1, 0), 0);
    assert_int_equal(stream_send(self, talk->client, &iov, 1), 0);
    fiber_wait_group_done(&talk->group);
}

static void receives_nothing(Fiber *self, Talk *talk)
{
    char end[3];
    spawn(self, talk, client_sends_nothing);
    assert_int_equal(stream_recv_all(self, talk->server, end, 3), 0);
    assert_memory_equal(end, "end", 3);
    fiber_wait_group_wait(self, &talk->group);
}

static void empty_records_are_no_end(void **state)
{
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        g_auto(Talk) talk = good_talk(receives_nothing);
        run(&talk, seed);
    }
}

static void asks_for_a_new_handshake(Fiber *self, Talk *talk)
{
    char byte;
    TlsStream *client = (TlsStream *)talk->client;
    assert_int_equal(gnutls_protocol_get_version(client->session), GNUTLS_TLS1_2);
    assert_int_equal(gnutls_handshake(client->session), GNUTLS_E_AGAIN);
    assert_int_equal(tls_stream_flush(self, client), 0);
    assert_int_equal(stream_recv(self, talk->server, &byte, 1), -EPROTO);
}

static void a_second_handshake_ends_the_stream(void **state)
{
    g_autofree char *dir = g_build_filename(pki->base, "good", NULL);
    g_autoptr(TlsCreds) old = tls_creds_new_x509(
        &(TlsCredsConfig){.end = TLS_CLIENT, .dir = dir, .algorithms = "NORMAL:-VERS-TLS1.3"},
        NULL);
    g_auto(Talk) talk = good_talk(asks_for_a_new_handshake);
    talk.client_config.creds = old;
    run(&talk, 1);
}

// --- Ends ---

static void client_says_bye(Fiber *self, Talk *talk)
{
    char got[3];
    struct iovec iov = {"end", 3}, answer = {"yes", 3};
    assert_int_equal(stream_send(self, talk->client, &iov, 1), 0);
    stream_end_sending(talk->client);
    assert_int_equal(stream_recv_all(self, talk->server, got, 3), 0);
    assert_int_equal(stream_recv(self, talk->server, got, 1), 0);
    assert_int_equal(stream_recv(self, talk->server, got, 1), 0); // again
    assert_int_equal(stream_send(self, talk->server, &answer, 1), 0);
    assert_int_equal(stream_recv_all(self, talk->client, got, 3), 0);
    assert_memory_equal(got, "yes", 3);
}

static void an_end_that_was_told_is_an_end(void **state)
{
    g_auto(Talk) talk = good_talk(client_says_bye);
    run(&talk, 1);
}

// Somebody on the way can cut a connection, and cannot say bye.
static void connection_is_cut(Fiber *self, Talk *talk)
{
    char got[3];
    struct iovec iov = {"end", 3};
    assert_int_equal(stream_send(self, talk->client, &iov, 1), 0);
    stream_end_sending(((TlsStream *)talk->client)->plain);
    assert_int_equal(stream_recv_all(self, talk->server, got, 3), 0);
    assert_int_equal(stream_recv(self, talk->server, got, 1), -ECONNRESET);
    // What was asked before is answered.
    assert_int_equal(stream_send(self, talk->server, &iov, 1), 0);
    assert_int_equal(stream_recv_all(self, talk->client, got, 3), 0);
}

static void a_cut_is_not_an_end(void **state)
{
    g_auto(Talk) talk = good_talk(connection_is_cut);
    run(&talk, 1);
}

static void bytes_are_forged(Fiber *self, Talk *talk)
{
    char got[3];
    struct iovec iov = {"\x17\x03\x03\x00\x20 forged forged forged forged forged", 37};
    assert_int_equal(stream_send(self, ((TlsStream *)talk->client)->plain, &iov, 1), 0);
    assert_int_equal(stream_recv(self, talk->server, got, 1), -EPROTO);
    assert_int_equal(stream_recv(self, talk->server, got, 1), -EPROTO);
}

static void forged_bytes_are_no_data(void **state)
{
    g_auto(Talk) talk = good_talk(bytes_are_forged);
    run(&talk, 1);
}

// --- Peers that are refused ---

static void assert_words(const GError *error, const char *words)
{
    assert_non_null(error);
    if (!strstr(error->message, words))
        fail_msg("'%s' has no '%s'", error->message, words);
}

static void refuses(const char *name, TlsStreamConfig server, TlsStreamConfig client,
                    const char *server_words, const char *client_words)
{
    print_message("# %s\n", name);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        g_auto(Talk) talk = {.server_config = server, .client_config = client};
        run(&talk, seed);
        if (server_words) {
            assert_true(talk.server_result < 0);
            assert_words(talk.server_error, server_words);
        }
        // In TLS 1.3 a client has finished before it can be refused.
        if (client_words) {
            assert_true(talk.client_result < 0);
            assert_words(talk.client_error, client_words);
        }
    }
}

static void who_is_not_trusted_is_told(void **state)
{
    g_autoptr(Pki) other = pki_new();
    g_autofree char *stranger_dir = pki_make_dir(other, "other"),
                    *old_dir = pki_make_dir(pki, "old"), *none_dir = pki_make_dir(pki, "none"),
                    *odd_dir = pki_make_dir(pki, "odd");
    pki_issue(other, stranger_dir, &(PkiCertificate){"server", "host.example", 0, 0, false});
    pki_issue(other, stranger_dir, &(PkiCertificate){"client", "client-1", 0, 0, false});
    pki_issue(pki, old_dir, &(PkiCertificate){"server", "host.example", -5, -1, false});
    pki_issue(pki, old_dir, &(PkiCertificate){"client", "client-1", -5, -1, false});
    pki_issue(pki, odd_dir, &(PkiCertificate){"server", "host.example", 0, 0, true});
    pki_issue(pki, odd_dir, &(PkiCertificate){"client", "client-1", 0, 0, true});
    g_autoptr(TlsCreds) stranger = x509(TLS_CLIENT, stranger_dir, false);
    g_autoptr(TlsCreds) false_server = x509(TLS_SERVER, stranger_dir, false);
    g_autoptr(TlsCreds) old_client = x509(TLS_CLIENT, old_dir, true);
    g_autoptr(TlsCreds) old_server = x509(TLS_SERVER, old_dir, false);
    g_autoptr(TlsCreds) nobody = x509(TLS_CLIENT, none_dir, true);
    g_autoptr(TlsCreds) odd_client = x509(TLS_CLIENT, odd_dir, true);
    g_autoptr(TlsCreds) odd_server = x509(TLS_SERVER, odd_dir, false);
    TlsStreamConfig server = {.creds = server_creds};
    TlsStreamConfig client = {.creds = client_creds, .hostname = "host.example"};
    refuses("a client of another authority", server, (TlsStreamConfig){.creds = stranger},
            "refused: ", NULL);
    refuses("a client whose certificate has expired", server,
            (TlsStreamConfig){.creds = old_client}, "expired", NULL);
    refuses("a client without a certificate", server, (TlsStreamConfig){.creds = nobody},
            "ertificate", NULL);
    refuses("a client with a server's certificate", server, (TlsStreamConfig){.creds = odd_client},
            "purpose", NULL);
    refuses("a server of another authority", (TlsStreamConfig){.creds = false_server}, client,
            "the peer refuses", "refused: ");
    refuses("a server whose certificate has expired", (TlsStreamConfig){.creds = old_server},
            client, "the peer refuses", "expired");
    refuses("a server with a client's certificate", (TlsStreamConfig){.creds = odd_server}, client,
            "the peer refuses", "purpose");
    refuses("another host", server,
            (TlsStreamConfig){.creds = client_creds, .hostname = "other.example"},
            "the peer refuses", "name in the certificate does not match");
}

static void who_has_another_key_is_refused(void **state)
{
    g_autofree char *dir = pki_make_psk(pki, "psk-2", "alice:ffffffff\nbob:00112233\n");
    g_autoptr(TlsCreds) wrong = psk(TLS_CLIENT, dir, "alice");
    g_autoptr(TlsCreds) bob = psk(TLS_CLIENT, dir, "bob");
    refuses("a wrong key", (TlsStreamConfig){.creds = psk_server},
            (TlsStreamConfig){.creds = wrong}, "TLS: ", "");
    refuses("an unknown user", (TlsStreamConfig){.creds = psk_server},
            (TlsStreamConfig){.creds = bob}, "TLS: ", "");
    refuses("no key", (TlsStreamConfig){.creds = psk_server},
            (TlsStreamConfig){.creds = client_creds}, "TLS: ", "");
}

static void peer_is_known(Fiber *self, Talk *talk)
{
    const char *who = talk->server_config.creds == psk_server ? "alice" : "CN=client-1";
    assert_int_equal(talk->server_result, 0);
    assert_string_equal(tls_stream_peer(talk->server), who);
}

static void only_who_is_authorized_connects(void **state)
{
    g_autoptr(TlsAuthz) certificates = tls_authz_new_simple("CN=client-1");
    g_autoptr(TlsAuthz) users = tls_authz_new_simple("alice");
    struct {
        TlsCreds *server, *client;
        TlsAuthz *good, *bad;
        const char *who;
    } kinds[] = {{server_creds, client_creds, certificates, users, "'CN=client-1'"},
                 {psk_server, psk_client, users, certificates, "'alice'"}};
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        TlsStreamConfig server = {.creds = kinds[i].server, .authz = kinds[i].good};
        TlsStreamConfig client = {.creds = kinds[i].client};
        g_auto(Talk)
            talk = {.server_config = server, .client_config = client, .then = peer_is_known};
        run(&talk, 1);
        server.authz = kinds[i].bad;
        refuses("an identity that is not on the list", server, client, kinds[i].who, NULL);
    }
}

// --- Clients that leave ---

// A client's end of the connection, which breaks once so many bytes were sent.
typedef struct BreakingStream {
    Stream stream;
    Stream *plain;
    size_t left;
} BreakingStream;

static ssize_t breaking_recv(Fiber *self, Stream *stream, void *buf, size_t len)
{
    return stream_recv(self, ((BreakingStream *)stream)->plain, buf, len);
}

static ssize_t breaking_send(Fiber *self, Stream *stream, struct iovec *iov, unsigned n_iov)
{
    BreakingStream *b = (BreakingStream *)stream;
    struct iovec part = {iov->iov_base, MIN(iov->iov_len, b->left)};
    size_t n = part.iov_len;
    int r = n ? stream_send(self, b->plain, &part, 1) : -EPIPE;
    b->left -= n;
    if (!b->left)
        stream_shutdown(b->plain);
    return r < 0 ? r : (ssize_t)n;
}

static ssize_t breaking_try_send(Stream *stream, const void *buf, size_t len)
{
    return -EAGAIN;
}

static void breaking_shutdown(Stream *stream)
{
    stream_shutdown(((BreakingStream *)stream)->plain);
}

static void breaking_free(Stream *stream)
{
    stream_free(((BreakingStream *)stream)->plain);
    g_free(stream);
}

static const StreamOps breaking_ops = {
    .recv = breaking_recv,
    .send = breaking_send,
    .try_send = breaking_try_send,
    .shutdown = breaking_shutdown,
    .end_sending = breaking_shutdown,
    .free = breaking_free,
};

typedef struct Leaving {
    size_t after_bytes;
    int server_result;
} Leaving;

static void leaving_client(Fiber *self, void *arg)
{
    tls_stream_handshake(self, arg, NULL);
}

static void leaving_main(Fiber *self, void *arg)
{
    Leaving *l = arg;
    Stream *a, *b;
    sim_stream_pair(fiber_loop(self), &a, &b);
    BreakingStream *breaking = g_new0(BreakingStream, 1);
    *breaking =
        (BreakingStream){{.ops = &breaking_ops, .loop = fiber_loop(self)}, b, l->after_bytes};
    Stream *server = tls_stream_new(a, &(TlsStreamConfig){.creds = server_creds}, NULL);
    Stream *client =
        tls_stream_new(&breaking->stream, &(TlsStreamConfig){.creds = client_creds}, NULL);
    Fiber *fiber;
    assert_int_equal(fiber_spawn(fiber_loop(self), "client", leaving_client, client, &fiber), 0);
    l->server_result = tls_stream_handshake(self, server, NULL);
    stream_shutdown(server);
    fiber_sleep(self, UINT64_C(1000000000)); // the client has ended, too
    stream_free(server);
    stream_free(client);
}

static void a_client_may_leave_after_any_byte_of_the_handshake(void **state)
{
    unsigned n_failed = 0;
    Leaving l = {.after_bytes = 1};
    for (l.server_result = -1; l.server_result != 0; l.after_bytes += 5) {
        Sim *sim = sim_new(&(SimConfig){.seed = l.after_bytes});
        assert_true(sim_run(sim, leaving_main, &l));
        sim_free(sim);
        if (l.server_result != 0)
            assert_int_equal(l.server_result, -ECONNRESET);
        n_failed += l.server_result != 0;
    }
    assert_true(n_failed > 100);
}

static void stops_a_silent_client(Fiber *self, void *arg)
{
    fiber_sleep(self, UINT64_C(10000000000));
    stream_shutdown(arg);
}

static void silent_main(Fiber *self, void *arg)
{
    Stream *a, *b;
    char byte;
    sim_stream_pair(fiber_loop(self), &a, &b);
    Stream *server = tls_stream_new(a, &(TlsStreamConfig){.creds = server_creds}, NULL);
    assert_int_equal(fiber_spawn(fiber_loop(self), "timer", stops_a_silent_client, server, NULL),
                     0);
    assert_int_equal(tls_stream_handshake(self, server, NULL), -ECANCELED);
    assert_int_equal(stream_recv(self, server, &byte, 1), -ECANCELED);
    stream_free(server);
    stream_free(b);
}

static void a_shutdown_ends_a_handshake(void **state)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    assert_true(sim_run(sim, silent_main, NULL));
    sim_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_arrive_both_ways_at_once),
        cmocka_unit_test(bytes_arrive_with_a_shared_key),
        cmocka_unit_test(what_a_try_left_is_sent_once),
        cmocka_unit_test(a_detached_stream_keeps_its_session),
        cmocka_unit_test(who_became_quiet_keeps_no_large_buffers),
        cmocka_unit_test(keys_change_while_both_send),
        cmocka_unit_test(empty_records_are_no_end),
        cmocka_unit_test(a_second_handshake_ends_the_stream),
        cmocka_unit_test(an_end_that_was_told_is_an_end),
        cmocka_unit_test(a_cut_is_not_an_end),
        cmocka_unit_test(forged_bytes_are_no_data),
        cmocka_unit_test(who_is_not_trusted_is_told),
        cmocka_unit_test(who_has_another_key_is_refused),
        cmocka_unit_test(only_who_is_authorized_connects),
        cmocka_unit_test(a_client_may_leave_after_any_byte_of_the_handshake),
        cmocka_unit_test(a_shutdown_ends_a_handshake),
    };
    return cmocka_run_group_tests(tests, make_creds, free_creds);
}
