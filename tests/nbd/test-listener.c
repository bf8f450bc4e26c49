// SPDX-License-Identifier: LGPL-2.1-or-later
// Room for clients: the limit of connections, the pool of unfinished handshakes, and who has to
// make room for whom.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "fixture.h"

static const uint64_t HOUR_NS = 3600 * 1000000000ull, SHORT_NS = 1000000;

static const ClientConfig simple = {.style = NBDS_STYLE_SIMPLE};

static Client silent(Fixture *f)
{
    return (Client){.fd = client_connect(f->socket_path)};
}

static void take_greeting(Client *c)
{
    uint8_t greeting[18];
    client_recv(c, greeting, sizeof greeting);
}

// After the loop had some turns.
static void assert_not_greeted(Fixture *f, const Client *waiting, Client *served)
{
    uint8_t data[512];
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(client_do(served, NBDS_CMD_READ, 0, 0, 512, data), 0);
    assert_int_equal(recv(waiting->fd, data, 1, MSG_DONTWAIT), -1);
}

static void a_client_above_the_limit_waits_until_another_leaves(void **state)
{
    FixtureConfig config = {.limits.max_connections = 2};
    g_autoptr(Fixture) f = fixture_new(&config);
    Client third;
    {
        g_autoptr(Client) a = client_new(f->socket_path, &simple);
        g_autoptr(Client) b G_GNUC_UNUSED = client_new(f->socket_path, &simple);
        third = silent(f);
        wait_at_least(&f->n_full[NBDS_FULL_CONNECTIONS], 1);
        assert_not_greeted(f, &third, a);
        assert_int_equal(nbds_server_n_clients(f->server), 2);
    }
    take_greeting(&third);
    close(third.fd);
}

static void a_limit_that_is_met_again_and_again_is_told_once(void **state)
{
    FixtureConfig config = {.limits.max_connections = 1};
    g_autoptr(Fixture) f = fixture_new(&config);
    for (unsigned i = 0; i < 20; i++) {
        g_autoptr(Client) a = client_new(f->socket_path, &simple);
        Client next = silent(f);
        wait_at_least(&f->n_full[NBDS_FULL_CONNECTIONS], 1);
        g_clear_pointer(&a, client_free);
        take_greeting(&next);
        close(next.fd);
    }
    assert_int_equal(f->n_full[NBDS_FULL_CONNECTIONS], 1);
}

// A client that waited on one loop for another loop's clients to leave.
static void room_is_found_across_loops(void **state)
{
    FixtureConfig config = {.two_loops = true, .limits.max_connections = 1};
    g_autoptr(Fixture) f = fixture_new(&config);
    for (unsigned i = 0; i < 200; i++) {
        g_autoptr(Client) c = client_new(f->socket_path, &simple);
        uint8_t data[512];
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, 512, data), 0);
    }
}

static void clients_that_say_nothing_do_not_lock_others_out(void **state)
{
    enum { MAX = 4, N = 10 };
    FixtureConfig config = {
        .limits = {.max_handshakes = MAX,
                   .handshake_timeout_ns = HOUR_NS,
                   .handshake_grace_ns = SHORT_NS},
    };
    g_autoptr(Fixture) f = fixture_new(&config);
    Client crowd[N];
    for (unsigned i = 0; i < N; i++)
        crowd[i] = silent(f);
    g_autoptr(Client) c G_GNUC_UNUSED = client_new(f->socket_path, &simple);
    take_greeting(&crowd[0]);
    assert_true(client_at_end(&crowd[0])); // the oldest
    assert_int_equal(f->n_full[NBDS_FULL_HANDSHAKES], 1);
    for (unsigned i = 0; i < N; i++)
        close(crowd[i].fd);
}

static void clients_that_say_nothing_make_room_at_the_limit_of_connections(void **state)
{
    FixtureConfig config = {
        .limits = {.max_connections = 3,
                   .handshake_timeout_ns = HOUR_NS,
                   .handshake_grace_ns = SHORT_NS},
    };
    g_autoptr(Fixture) f = fixture_new(&config);
    Client crowd[] = {silent(f), silent(f), silent(f)};
    for (unsigned i = 0; i < 3; i++) {
        g_autoptr(Client) c G_GNUC_UNUSED = client_new(f->socket_path, &simple);
    }
    for (unsigned i = 0; i < 3; i++)
        close(crowd[i].fd);
}

static void a_handshake_under_way_is_not_dropped_within_its_grace(void **state)
{
    FixtureConfig config = {
        .limits = {.max_handshakes = 2,
                   .handshake_timeout_ns = HOUR_NS,
                   .handshake_grace_ns = HOUR_NS},
    };
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) served = client_new(f->socket_path, &simple);
    Client a = silent(f), b = silent(f);
    take_greeting(&a);
    take_greeting(&b);
    Client third = silent(f);
    assert_not_greeted(f, &third, served);
    client_send(&a, (const uint8_t[]){0, 0, 0, 3}, 4);
    client_send_option(&a, NBDS_OPT_GO, "\0\0\0\0\0\0", 6);
    take_greeting(&third);
    close(a.fd);
    close(b.fd);
    close(third.fd);
}

// The listener holds one client that waits for room; others are in the backlog.
static void stopping_ends_clients_that_wait_for_room(void **state)
{
    FixtureConfig config = {.limits.max_connections = 1};
    Fixture *f = fixture_new(&config);
    g_autoptr(Client) c G_GNUC_UNUSED = client_new(f->socket_path, &simple);
    Client waiting[] = {silent(f), silent(f)};
    wait_at_least(&f->n_full[NBDS_FULL_CONNECTIONS], 1);
    fixture_free(f); // returns
    for (unsigned i = 0; i < 2; i++) {
        assert_true(client_at_end(&waiting[i]));
        close(waiting[i].fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_above_the_limit_waits_until_another_leaves),
        cmocka_unit_test(a_limit_that_is_met_again_and_again_is_told_once),
        cmocka_unit_test(room_is_found_across_loops),
        cmocka_unit_test(clients_that_say_nothing_do_not_lock_others_out),
        cmocka_unit_test(clients_that_say_nothing_make_room_at_the_limit_of_connections),
        cmocka_unit_test(a_handshake_under_way_is_not_dropped_within_its_grace),
        cmocka_unit_test(stopping_ends_clients_that_wait_for_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
