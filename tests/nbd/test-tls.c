// SPDX-License-Identifier: LGPL-2.1-or-later
// TLS as clients meet it: libnbd with certificates and with keys; a raw client that injects, leaves
// and stays silent; connections and exports that move between loops in the middle of a session.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "chain-core/component.h"
#include "chain-core/remote-call.h"
#include "client.h"
#include "connection-life.h"
#include "fixture.h"
#include "pki.h"

enum { SIZE = 1 << 20 };
static const uint64_t SECOND_NS = 1000000000;

typedef struct nbd_handle Handle;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Handle, nbd_close)

#define ok(call)                                                                                   \
    do {                                                                                           \
        if ((call) < 0)                                                                            \
            fail_msg("%s: %s", #call, nbd_get_error());                                            \
    } while (0)

static Pki *pki, *other_pki;
static char *dir, *other_dir, *keys, *other_keys;
static TlsCreds *creds, *psk_creds;

static int make_creds(void **state)
{
    pki = pki_new();
    other_pki = pki_new();
    dir = pki_make_dir(pki, "x509");
    other_dir = pki_make_dir(other_pki, "x509");
    pki_issue(pki, dir, &(PkiCertificate){"server", "localhost", 0, 0, false});
    pki_issue(pki, dir, &(PkiCertificate){"client", "client", 0, 0, false});
    pki_issue(other_pki, other_dir, &(PkiCertificate){"client", "client", 0, 0, false});
    keys = pki_make_psk(pki, "psk", "alice:00112233445566778899aabbccddeeff\n");
    other_keys = pki_make_psk(other_pki, "psk", "alice:ffffffffffffffff\n");
    TlsCredsConfig config = {.end = TLS_SERVER, .dir = dir, .verifies_peer = true};
    creds = tls_creds_new_x509(&config, NULL);
    config.dir = keys;
    psk_creds = tls_creds_new_psk(&config, NULL);
    return creds && psk_creds ? 0 : -1;
}

static int free_creds(void **state)
{
    tls_creds_unref(creds);
    tls_creds_unref(psk_creds);
    g_free(dir);
    g_free(other_dir);
    g_free(keys);
    g_free(other_keys);
    pki_free(pki);
    pki_free(other_pki);
    return 0;
}

static Handle *new_handle(const char *certificates)
{
    Handle *h = nbd_create();
    ok(nbd_set_tls(h, LIBNBD_TLS_REQUIRE));
    ok(nbd_set_tls_certificates(h, certificates));
    ok(nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION));
    return h;
}

static Handle *new_psk_handle(const char *in)
{
    g_autofree char *file = g_build_filename(in, "keys.psk", NULL);
    Handle *h = nbd_create();
    ok(nbd_set_tls(h, LIBNBD_TLS_REQUIRE));
    ok(nbd_set_tls_psk_file(h, file));
    ok(nbd_set_tls_username(h, "alice"));
    return h;
}

static void write_and_read(Handle *h)
{
    g_autofree uint8_t *out = g_malloc(SIZE), *in = g_malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        out[i] = (uint8_t)(i * 2654435761u >> 13);
    ok(nbd_pwrite(h, out, SIZE, 0, 0));
    ok(nbd_pread(h, in, SIZE, 0, 0));
    assert_memory_equal(in, out, SIZE);
    for (size_t off = 0; off < SIZE; off += 77777) {
        ok(nbd_pread(h, in, MIN(4096, SIZE - off), off, 0));
        assert_memory_equal(in, out + off, MIN(4096, SIZE - off));
    }
}

// --- Whom a server takes ---

static void certificates_and_keys_are_taken(void **state)
{
    FixtureConfig config = {.tls = {NBDS_TLS_REQUIRED, creds, NULL}, .two_loops = true};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) h = new_handle(dir);
    ok(nbd_connect_unix(h, f->socket_path));
    assert_int_equal(nbd_get_tls_negotiated(h), 1);
    assert_int_equal(nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION), 1);
    write_and_read(h);
    ok(nbd_shutdown(h, 0));
    FixtureConfig psk_config = {.tls = {NBDS_TLS_REQUIRED, psk_creds, NULL}};
    g_autoptr(Fixture) g = fixture_new(&psk_config);
    g_autoptr(Handle) k = new_psk_handle(keys);
    ok(nbd_connect_unix(k, g->socket_path));
    write_and_read(k);
    assert_int_equal(f->n_tls_failures + g->n_tls_failures, 0);
}

static void others_are_refused_and_told_of(void **state)
{
    FixtureConfig config = {.tls = {NBDS_TLS_REQUIRED, creds, NULL}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) stranger = new_handle(other_dir);
    ok(nbd_set_tls_verify_peer(stranger, false));
    assert_int_equal(nbd_connect_unix(stranger, f->socket_path), -1);
    wait_at_least(&f->n_tls_failures, 1);
    g_autoptr(Handle) plain = nbd_create();
    assert_int_equal(nbd_connect_unix(plain, f->socket_path), -1);
    FixtureConfig psk_config = {.tls = {NBDS_TLS_REQUIRED, psk_creds, NULL}};
    g_autoptr(Fixture) g = fixture_new(&psk_config);
    g_autoptr(Handle) k = new_psk_handle(other_keys);
    assert_int_equal(nbd_connect_unix(k, g->socket_path), -1);
    wait_at_least(&g->n_tls_failures, 1);
    assert_int_equal(f->n_tls_failures, 1); // who speaks no TLS is no failure of it
}

static void only_the_authorized_come_in(void **state)
{
    g_autoptr(TlsAuthz) authz = tls_authz_new_simple("CN=client");
    g_autoptr(TlsAuthz) nobody = tls_authz_new_simple("CN=nobody");
    FixtureConfig config = {.tls = {NBDS_TLS_REQUIRED, creds, authz}};
    FixtureConfig closed = {.tls = {NBDS_TLS_REQUIRED, creds, nobody}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Fixture) g = fixture_new(&closed);
    g_autoptr(Handle) h = new_handle(dir);
    ok(nbd_connect_unix(h, f->socket_path));
    g_autoptr(Handle) k = new_handle(dir);
    assert_int_equal(nbd_connect_unix(k, g->socket_path), -1);
    wait_at_least(&g->n_tls_failures, 1);
}

static void optional_tls_serves_both(void **state)
{
    FixtureConfig config = {.tls = {NBDS_TLS_OPTIONAL, creds, NULL}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) secure = new_handle(dir);
    g_autoptr(Handle) plain = nbd_create();
    ok(nbd_connect_unix(secure, f->socket_path));
    ok(nbd_connect_unix(plain, f->socket_path));
    assert_int_equal(nbd_get_tls_negotiated(plain), 0);
    write_and_read(plain);
    write_and_read(secure);
}

// --- Raw clients ---

static Client *starting_tls(Fixture *f, const char *before, size_t before_bytes)
{
    Client *c = g_new0(Client, 1);
    uint8_t greeting[NBDS_GREETING_BYTES], flags[4] = {0, 0, 0, 3};
    c->fd = client_connect(f->socket_path);
    client_recv(c, greeting, sizeof greeting);
    client_send(c, flags, sizeof flags);
    g_autoptr(GByteArray) all = g_byte_array_new();
    static const uint8_t option[] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T',
                                     0,   0,   0,   5,   0,   0,   0,   0};
    g_byte_array_append(all, option, sizeof option);
    if (before_bytes)
        g_byte_array_append(all, (const uint8_t *)before, before_bytes);
    client_send(c, all->data, all->len);
    assert_int_equal(client_recv_option_reply(c, NBDS_OPT_STARTTLS, NULL), NBDS_REP_ACK);
    return c;
}

// What comes in the clear with STARTTLS, from whoever sits on the way, is never an option.
static void plain_bytes_behind_starttls_are_never_used(void **state)
{
    static const char list[] = "IHAVEOPT\0\0\0\3\0\0\0\0";
    FixtureConfig config = {.tls = {NBDS_TLS_OPTIONAL, creds, NULL}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = starting_tls(f, list, sizeof list - 1);
    uint8_t got[64];
    ssize_t n, total = 0;
    while ((n = recv(c->fd, got + total, sizeof got - (size_t)total, 0)) > 0)
        total += n;
    // At most an alert of TLS: 21, a version, two bytes.
    assert_in_range(total, 0, 7);
    assert_true(!total || got[0] == 21);
    wait_at_least(&f->n_tls_failures, 1);
}

static void a_client_may_leave_or_stay_silent_in_the_handshake(void **state)
{
    FixtureConfig config = {.tls = {NBDS_TLS_REQUIRED, creds, NULL},
                            .limits = {.handshake_timeout_ns = SECOND_NS / 2}};
    g_autoptr(Fixture) f = fixture_new(&config);
    static const char hello[] = "\x16\x03\x01\x01\x00\x01";
    for (size_t n = 0; n < sizeof hello; n++) {
        g_autoptr(Client) c = starting_tls(f, hello, n);
        wait_for_clients(f, 1);
        close(c->fd);
        c->fd = dup(0);
        wait_for_clients(f, 0);
    }
    g_autoptr(Client) silent = starting_tls(f, hello, sizeof hello - 1);
    assert_true(client_at_end(silent)); // of the time limit
    wait_for_clients(f, 0);
    assert_int_equal(f->n_tls_failures, 0);
}

static void a_server_stops_in_the_middle_of_handshakes(void **state)
{
    FixtureConfig config = {.tls = {NBDS_TLS_REQUIRED, creds, NULL}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) a = starting_tls(f, "\x16\x03", 2);
    g_autoptr(Client) b = starting_tls(f, "", 0);
    fixture_begin_stop(f);
    assert_true(client_at_end(a));
    assert_true(client_at_end(b));
}

// The system call may be interrupted, and is made again.
static ssize_t record_recv(gnutls_session_t session, void *buf, size_t len)
{
    ssize_t n;
    do
        n = gnutls_record_recv(session, buf, len);
    while (n == GNUTLS_E_INTERRUPTED);
    return n;
}

// A client can tell the end from a cut.
static void the_server_says_bye(void **state)
{
    FixtureConfig config = {.tls = {NBDS_TLS_REQUIRED, psk_creds, NULL}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = starting_tls(f, "", 0);
    gnutls_datum_t key = {(unsigned char *)"00112233445566778899aabbccddeeff", 32};
    gnutls_psk_client_credentials_t credentials;
    gnutls_session_t session;
    uint8_t got[NBDS_OPTION_REPLY_HEAD_BYTES];
    ok(gnutls_psk_allocate_client_credentials(&credentials));
    ok(gnutls_psk_set_client_credentials(credentials, "alice", &key, GNUTLS_PSK_KEY_HEX));
    ok(gnutls_init(&session, GNUTLS_CLIENT));
    ok(gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials));
    ok(gnutls_priority_set_direct(session, "NORMAL:+ECDHE-PSK:+PSK", NULL));
    gnutls_transport_set_int(session, c->fd);
    int result;
    while ((result = gnutls_handshake(session)) < 0 && !gnutls_error_is_fatal(result))
        continue;
    ok(result);
    static const uint8_t abort_option[] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T',
                                           0,   0,   0,   2,   0,   0,   0,   0};
    assert_int_equal(gnutls_record_send(session, abort_option, sizeof abort_option), 16);
    assert_int_equal(record_recv(session, got, sizeof got), sizeof got);
    assert_int_equal(record_recv(session, got, sizeof got), 0);
    gnutls_deinit(session);
    gnutls_psk_free_client_credentials(credentials);
}

// --- Sessions that move ---

enum { DEPTH = 16, MAX_BYTES = 256 << 10 };

static uint8_t content(uint64_t at)
{
    return (uint8_t)(at * 2654435761u >> 13);
}

static void fill_node(Fiber *self, void *arg)
{
    MemoryNode *m = arg;
    for (size_t i = 0; i < SIZE; i++)
        m->data[i] = content(i);
    memset(m->kinds, NODE_EXTENT_DATA, SIZE / MEMORY_NODE_BLOCK);
}

// Many requests at once, of all sizes: reads are compared, writes write what is there.
static void load(Handle *h, unsigned round)
{
    static uint8_t buffers[DEPTH][MAX_BYTES];
    static const uint32_t lengths[] = {512, 4096, 65536, MAX_BYTES};
    int64_t cookies[DEPTH];
    uint64_t offsets[DEPTH];
    for (unsigned i = 0; i < DEPTH; i++) {
        unsigned n = round * DEPTH + i;
        uint32_t len = lengths[n % 4];
        offsets[i] = n * 7919ull * 512 % (SIZE - MAX_BYTES);
        for (uint32_t k = 0; n % 3 == 0 && k < len; k++)
            buffers[i][k] = content(offsets[i] + k);
        cookies[i] = n % 3 == 0
                         ? nbd_aio_pwrite(h, buffers[i], len, offsets[i], NBD_NULL_COMPLETION, 0)
                         : nbd_aio_pread(h, buffers[i], len, offsets[i], NBD_NULL_COMPLETION, 0);
        ok(cookies[i]);
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        int done;
        while ((done = nbd_aio_command_completed(h, (uint64_t)cookies[i])) == 0)
            ok(nbd_poll(h, HANG_S * 1000));
        ok(done);
        for (uint32_t k = 0; k < lengths[(round * DEPTH + i) % 4]; k += 61)
            assert_int_equal(buffers[i][k], content(offsets[i] + k));
    }
}

typedef struct ExportMove {
    Fixture *f;
    unsigned to, n_moves;
    int result;
    atomic_bool is_done;
} ExportMove;

static void move_export(Fiber *self, void *arg)
{
    ExportMove *m = arg;
    Node *node = &m->f->nodes[0]->node;
    m->result = component_move(self, &(ComponentMove){&node, 1, m->f->loops[m->to]}, NULL);
}

static void *export_mover(void *arg)
{
    ExportMove *m = arg;
    for (; !m->is_done; m->to = !m->to) {
        assert_int_equal(remote_call(m->f->loops[0], move_export, m), 0);
        assert_int_equal(m->result, 0);
        m->n_moves++;
        g_usleep(500);
    }
    return NULL;
}

static void a_session_goes_on_when_its_export_moves(void **state)
{
    FixtureConfig config = {.tls = {NBDS_TLS_REQUIRED, creds, NULL}, .two_loops = true};
    g_autoptr(Fixture) f = fixture_new(&config);
    fixture_run(f, fill_node, f->nodes[0]);
    g_autoptr(Handle) h = new_handle(dir);
    ok(nbd_connect_unix(h, f->socket_path));
    ExportMove move = {.f = f};
    GThread *thread = g_thread_new("mover", export_mover, &move);
    for (unsigned round = 0; round < 200 || move.n_moves < 100; round++)
        load(h, round);
    move.is_done = true;
    g_thread_join(thread);
    load(h, 0);
    assert_true(move.n_moves >= 100);
    ok(nbd_shutdown(h, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(certificates_and_keys_are_taken),
        cmocka_unit_test(others_are_refused_and_told_of),
        cmocka_unit_test(only_the_authorized_come_in),
        cmocka_unit_test(optional_tls_serves_both),
        cmocka_unit_test(plain_bytes_behind_starttls_are_never_used),
        cmocka_unit_test(a_client_may_leave_or_stay_silent_in_the_handshake),
        cmocka_unit_test(a_server_stops_in_the_middle_of_handshakes),
        cmocka_unit_test(the_server_says_bye),
        cmocka_unit_test(a_session_goes_on_when_its_export_moves),
    };
    return cmocka_run_group_tests(tests, make_creds, free_creds);
}
