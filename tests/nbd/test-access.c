// SPDX-License-Identifier: LGPL-2.1-or-later
// Exports that are not for everybody, and listeners that go while clients are there.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client.h"
#include "fixture.h"
#include "wire.h"

static const char *_Atomic hidden; // from all clients; NULL: nothing
static uid_t seen_uid;
static unsigned seen_family;

static bool is_not_hidden(void *arg, const NbdsPeer *peer, const char *name)
{
    const char *now = hidden;
    seen_uid = peer->process->uid;
    seen_family = peer->address.ss_family;
    return !now || strcmp(name, now) != 0;
}

static const FixtureConfig two_exports = {
    .n_exports = 2, .names = {"a", "b"}, .may_use = is_not_hidden, .two_loops = true};

// A client that has exchanged flags.
static Client begin(Fixture *f)
{
    Client c = {.fd = client_connect(f->socket_path)};
    uint8_t greeting[18];
    client_recv(&c, greeting, 18);
    client_send(&c, (const uint8_t[]){0, 0, 0, 3}, 4);
    return c;
}

// The names that LIST tells, one after the other.
static char *list(Client *c)
{
    GString *names = g_string_new(NULL);
    client_send_option(c, NBDS_OPT_LIST, NULL, 0);
    for (;;) {
        g_autoptr(GByteArray) data = NULL;
        uint32_t type = client_recv_option_reply(c, NBDS_OPT_LIST, &data);
        if (type == NBDS_REP_ACK)
            return g_string_free(names, false);
        assert_int_equal(type, NBDS_REP_SERVER);
        uint32_t len = nbds_wire_get_u32(data->data);
        g_string_append_len(names, (const char *)data->data + 4, len);
    }
}

static uint32_t ask(Client *c, uint32_t option, const char *data, uint32_t len)
{
    client_send_option(c, option, data, len);
    return client_recv_option_reply(c, option, NULL);
}

static void what_a_client_may_not_use_is_not_listed_and_refused(void **state)
{
    hidden = "b";
    g_autoptr(Fixture) f = fixture_new(&two_exports);
    Client c = begin(f);
    g_autofree char *names = list(&c);
    assert_string_equal(names, "a");
    assert_int_equal(seen_family, AF_UNIX);
    assert_int_equal(seen_uid, getuid());
    assert_int_equal(ask(&c, NBDS_OPT_INFO, "\0\0\0\1b\0\0", 7), NBDS_REP_ERR_POLICY);
    assert_int_equal(ask(&c, NBDS_OPT_GO, "\0\0\0\1b\0\0", 7), NBDS_REP_ERR_POLICY);
    assert_int_equal(ask(&c, NBDS_OPT_GO, "\0\0\0\1x\0\0", 7), NBDS_REP_ERR_UNKNOWN);
    assert_int_equal(ask(&c, NBDS_OPT_STRUCTURED_REPLY, NULL, 0), NBDS_REP_ACK);
    assert_int_equal(ask(&c, NBDS_OPT_LIST_META_CONTEXT, "\0\0\0\1b\0\0\0\0", 9),
                     NBDS_REP_ERR_POLICY);
    client_send_option(&c, NBDS_OPT_EXPORT_NAME, "b", 1);
    assert_true(client_at_end(&c));
    close(c.fd);
}

static void the_only_export_that_a_client_may_use_is_its_default(void **state)
{
    hidden = "a";
    g_autoptr(Fixture) f = fixture_new(&two_exports);
    ClientConfig unnamed = {.style = NBDS_STYLE_STRUCTURED, .contexts = true};
    g_autoptr(Client) c = client_new(f->socket_path, &unnamed);
    uint8_t data[512];
    assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, 512, data), 0);
    NbdsExportStats a, b;
    nbds_export_get_stats(f->exports[0], &a);
    nbds_export_get_stats(f->exports[1], &b);
    assert_int_equal(a.n_clients, 0);
    assert_int_equal(b.n_clients, 1);
}

static void a_changed_policy_holds_in_handshakes_under_way(void **state)
{
    hidden = NULL;
    g_autoptr(Fixture) f = fixture_new(&two_exports);
    Client c = begin(f);
    g_autofree char *before = list(&c);
    assert_string_equal(before, "ab");
    hidden = "a";
    nbds_server_refresh_access(f->server);
    g_autofree char *after = list(&c);
    assert_string_equal(after, "b");
    assert_int_equal(ask(&c, NBDS_OPT_INFO, "\0\0\0\1a\0\0", 7), NBDS_REP_ERR_POLICY);
    close(c.fd);
}

static void remove_listener(Fiber *self, void *arg)
{
    Fixture *f = arg;
    nbds_server_remove_listener(self, f->server, f->listener);
}

static void assert_refuses_connections(const Fixture *f)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, f->socket_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), -1);
    assert_int_equal(errno, ECONNREFUSED);
    close(fd);
}

static void clients_stay_when_their_listener_goes(void **state)
{
    FixtureConfig config = {.two_loops = true};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig simple = {.style = NBDS_STYLE_SIMPLE};
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    Client newcomer = begin(f);
    fixture_run(f, remove_listener, f);
    assert_refuses_connections(f);
    uint8_t data[512];
    assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, 512, data), 0);
    // One that had not chosen yet goes on, too.
    client_send_option(&newcomer, NBDS_OPT_EXPORT_NAME, "", 0);
    uint8_t reply[10];
    client_recv(&newcomer, reply, sizeof reply);
    close(newcomer.fd);
}

static void a_listener_that_waits_for_room_can_go(void **state)
{
    FixtureConfig config = {.limits.max_connections = 1};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig simple = {.style = NBDS_STYLE_SIMPLE};
    g_autoptr(Client) c G_GNUC_UNUSED = client_new(f->socket_path, &simple);
    Client waiting = {.fd = client_connect(f->socket_path)};
    wait_at_least(&f->n_full[NBDS_FULL_CONNECTIONS], 1);
    fixture_run(f, remove_listener, f);
    assert_true(client_at_end(&waiting));
    assert_refuses_connections(f);
    close(waiting.fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_client_may_not_use_is_not_listed_and_refused),
        cmocka_unit_test(the_only_export_that_a_client_may_use_is_its_default),
        cmocka_unit_test(a_changed_policy_holds_in_handshakes_under_way),
        cmocka_unit_test(clients_stay_when_their_listener_goes),
        cmocka_unit_test(a_listener_that_waits_for_room_can_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
