// SPDX-License-Identifier: LGPL-2.1-or-later
// How connections begin and end: every way a client can leave, stop, removal of an export,
// hand-over between loops.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "connection.h"
#include "fixture.h"

enum { SIZE = 1 << 20 };
static const uint64_t MS = 1000000;

static const ClientConfig simple = {.style = NBDS_STYLE_SIMPLE};
static const ClientConfig structured = {.style = NBDS_STYLE_STRUCTURED};

static void assert_serves(Fixture *f)
{
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    uint8_t data[512];
    assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, 512, data), 0);
}

static void export_name_enters_transmission_too(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig old = {.style = NBDS_STYLE_SIMPLE, .use_export_name = true};
    g_autoptr(Client) c = client_new(f->socket_path, &old);
    assert_int_equal(c->size_bytes, SIZE);
    uint8_t data[512];
    assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, 512, data), 0);
}

static void a_client_is_handed_to_its_exports_loop(void **state)
{
    FixtureConfig config = {.two_loops = true, .n_exports = 2, .names = {"a", "b"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig a = {.style = NBDS_STYLE_EXTENDED, .export_name = "a"};
    ClientConfig b = {.style = NBDS_STYLE_SIMPLE, .export_name = "b", .use_export_name = true};
    for (unsigned i = 0; i < 20; i++) {
        g_autoptr(Client) ca = client_new(f->socket_path, &a);
        g_autoptr(Client) cb = client_new(f->socket_path, &b);
        uint8_t data[512] = {i + 1}, got[512];
        assert_int_equal(client_do(ca, NBDS_CMD_WRITE, 0, 0, 512, data), 0);
        assert_int_equal(client_do(ca, NBDS_CMD_READ, 0, 0, 512, got), 0);
        assert_memory_equal(got, data, 512);
        assert_int_equal(client_do(cb, NBDS_CMD_READ, 0, 0, 512, got), 0);
        assert_int_equal(got[0], 0);
    }
}

// --- Leaving ---

// Everything a client may send in one go, from flags to DISC, in one style.
static GByteArray *record_session(NbdsStyle style)
{
    GByteArray *a = g_byte_array_new();
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    Client c = {.fd = fds[0], .style = style};
    uint8_t data[1024] = {1};
    client_send(&c, (const uint8_t[]){0, 0, 0, 3}, 4);
    client_send_option(&c, NBDS_OPT_LIST, NULL, 0);
    if (style != NBDS_STYLE_SIMPLE) {
        client_send_option(&c,
                           style == NBDS_STYLE_EXTENDED ? NBDS_OPT_EXTENDED_HEADERS
                                                        : NBDS_OPT_STRUCTURED_REPLY,
                           NULL, 0);
        client_send_option(&c, NBDS_OPT_SET_META_CONTEXT,
                           "\0\0\0\0\0\0\0\1\0\0\0\17base:allocation", 27);
    }
    client_send_option(&c, NBDS_OPT_GO, "\0\0\0\0\0\0", 6);
    client_request(&c, NBDS_CMD_READ, 0, 1, 0, 100000, NULL, 0);
    client_request(&c, NBDS_CMD_WRITE, 0, 2, 4096, 700, data, 700);
    if (style != NBDS_STYLE_SIMPLE)
        client_request(&c, NBDS_CMD_BLOCK_STATUS, 0, 3, 0, SIZE, NULL, 0);
    client_request(&c, NBDS_CMD_FLUSH, 0, 4, 0, 0, NULL, 0);
    client_request(&c, NBDS_CMD_WRITE, 0, 5, SIZE, 100, data, 100); // refused
    client_request(&c, NBDS_CMD_DISC, 0, 6, 0, 0, NULL, 0);
    close(fds[0]);
    ssize_t n;
    while ((n = read(fds[1], data, sizeof data)) > 0)
        g_byte_array_append(a, data, n);
    close(fds[1]);
    return a;
}

static void leaving_at_any_byte_harms_nobody(void **state)
{
    FixtureConfig config = {.limits.max_connections = 4096};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) other = client_new(f->socket_path, &simple);
    uint8_t data[512];
    for (NbdsStyle style = NBDS_STYLE_SIMPLE; style <= NBDS_STYLE_EXTENDED; style++) {
        g_autoptr(GByteArray) session = record_session(style);
        unsigned step = style == NBDS_STYLE_SIMPLE ? 1 : 3; // each byte once, then samples
        for (unsigned n = 0; n <= session->len; n += step) {
            int fd = client_connect(f->socket_path);
            if (n)
                assert_int_equal(send(fd, session->data, n, MSG_NOSIGNAL), n);
            if (n % 2)
                shutdown(fd, SHUT_WR);
            close(fd);
        }
        assert_int_equal(client_do(other, NBDS_CMD_READ, 0, 0, 512, data), 0);
    }
    wait_for_clients(f, 1);
}

static void leaving_at_any_byte_after_two_loops_were_involved(void **state)
{
    FixtureConfig config = {.two_loops = true, .limits.max_connections = 4096};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(GByteArray) session = record_session(NBDS_STYLE_STRUCTURED);
    for (unsigned n = 0; n <= session->len; n += 2) {
        int fd = client_connect(f->socket_path);
        if (n)
            assert_int_equal(send(fd, session->data, n, MSG_NOSIGNAL), n);
        close(fd);
    }
    wait_for_clients(f, 0);
    assert_serves(f);
}

static void a_half_received_write_is_not_applied(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    static const uint32_t lengths[] = {512, 100000, 600000};
    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
        g_autofree uint8_t *data = g_malloc(lengths[i]);
        memset(data, 0xab, lengths[i]);
        g_autoptr(Client) c = client_new(f->socket_path, &simple);
        client_request(c, NBDS_CMD_WRITE, 0, 1, 0, lengths[i], data, lengths[i] - 1);
        shutdown(c->fd, SHUT_WR);
        assert_true(client_at_end(c));
        assert_int_equal(f->nodes[0]->n_writes, 0);
    }
}

static void disc_finishes_what_is_in_flight(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &structured);
    uint8_t data[4096];
    memset(data, 7, sizeof data);
    fixture_hold(f, 0);
    client_request(c, NBDS_CMD_WRITE, 0, 1, 0, 4096, data, 4096);
    client_request(c, NBDS_CMD_FLUSH, 0, 2, 0, 0, NULL, 0);
    client_request(c, NBDS_CMD_DISC, 0, 3, 0, 0, NULL, 0);
    wait_at_least(&f->nodes[0]->n_waiting, 2);
    fixture_release(f, 0);
    for (unsigned i = 0; i < 2; i++) {
        ClientReply reply;
        client_reply(c, NBDS_CMD_WRITE, 0, 0, NULL, &reply);
        assert_int_equal(reply.error, 0);
    }
    assert_true(client_at_end(c)); // and no reply to DISC
    assert_int_equal(f->nodes[0]->data[4095], 7);
}

static void a_client_that_vanishes_with_requests_in_flight_is_cleaned_up(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    fixture_hold(f, 0);
    {
        g_autoptr(Client) c = client_new(f->socket_path, &structured);
        for (unsigned i = 0; i < 50; i++)
            client_request(c, NBDS_CMD_READ, 0, i, 0, 4096, NULL, 0);
        wait_at_least(&f->nodes[0]->n_waiting, 50);
    }
    fixture_release(f, 0);
    wait_for_clients(f, 0);
    assert_serves(f);
}

static void the_last_client_leaving_is_told(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    {
        g_autoptr(Client) a G_GNUC_UNUSED = client_new(f->socket_path, &simple);
        {
            g_autoptr(Client) b G_GNUC_UNUSED = client_new(f->socket_path, &simple);
        }
        wait_for_clients(f, 1);
        assert_int_equal(f->n_times_empty, 0);
    }
    wait_at_least(&f->n_times_empty, 1);
}

// --- Stop ---

static void stopping_ends_idle_clients_and_handshakes(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) idle = client_new(f->socket_path, &simple);
    Client newcomer = {.fd = client_connect(f->socket_path)};
    uint8_t greeting[18];
    client_recv(&newcomer, greeting, 18);
    fixture_begin_stop(f);
    assert_true(client_at_end(idle));
    assert_true(client_at_end(&newcomer));
    close(newcomer.fd);
}

// Returns once `c` is being drained: a request that comes then is refused. One that comes before is
// held with the node: returns their number.
static unsigned wait_for_draining(Client *c)
{
    ClientReply reply;
    for (unsigned n_held = 0;; n_held++) {
        client_request(c, NBDS_CMD_READ, 0, 2, 0, 512, NULL, 0);
        client_request(c, NBDS_CMD_READ, 0, 3, c->size_bytes, 512, NULL, 0); // answered in any case
        client_reply(c, NBDS_CMD_READ, 0, 512, NULL, &reply);
        if (reply.cookie != 2)
            continue;
        assert_int_equal(reply.error, NBDS_ESHUTDOWN);
        client_reply(c, NBDS_CMD_READ, c->size_bytes, 512, NULL, &reply);
        assert_int_equal(reply.cookie, 3);
        return n_held;
    }
}

static void a_stop_does_not_wait_for_the_end_of_a_huge_trim(void **state)
{
    enum { LEN = 600 << 20 };
    FixtureConfig config = {.size_bytes = LEN};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    fixture_hold(f, 0);
    client_request(c, NBDS_CMD_TRIM, 0, 1, 0, LEN, NULL, 0);
    wait_at_least(&f->nodes[0]->n_waiting, 1);
    fixture_begin_stop(f);
    unsigned n_held = wait_for_draining(c);
    fixture_release(f, 0);
    bool is_answered = false;
    for (unsigned i = 0; i <= n_held; i++) {
        ClientReply reply;
        client_reply(c, NBDS_CMD_READ, 0, 512, NULL, &reply);
        if (reply.cookie == 1) {
            assert_int_equal(reply.error, NBDS_ESHUTDOWN);
            is_answered = true;
        }
    }
    assert_true(is_answered);
    assert_int_equal(f->nodes[0]->n_discards, 1);
    assert_true(client_at_end(c));
}

typedef struct LookForState {
    Fixture *f;
    NbdsState state;
    bool is_found;
} LookForState;

static void look_for_state(Fiber *self, void *arg)
{
    LookForState *l = arg;
    const GList *i = l->f->exports[0]->server_loop->connections.head;
    for (l->is_found = false; i && !l->is_found; i = i->next)
        l->is_found = ((const NbdsConnection *)i->data)->state == l->state;
}

static void wait_for_state(Fixture *f, NbdsState state)
{
    LookForState l = {f, state, false};
    for (int64_t end = g_get_monotonic_time() + HANG_S * G_USEC_PER_SEC; !l.is_found;) {
        assert_true(g_get_monotonic_time() < end);
        fixture_run(f, look_for_state, &l);
    }
}

static void a_stop_does_not_wait_for_the_huge_trim_of_a_client_that_left(void **state)
{
    enum { LEN = 600 << 20 };
    FixtureConfig config = {.size_bytes = LEN};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) idle = client_new(f->socket_path, &simple);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    fixture_hold(f, 0);
    client_request(c, NBDS_CMD_TRIM, 0, 1, 0, LEN, NULL, 0);
    client_request(c, NBDS_CMD_DISC, 0, 2, 0, 0, NULL, 0);
    wait_for_state(f, NBDS_STATE_DRAINING);
    fixture_begin_stop(f);
    assert_true(client_at_end(idle)); // all were told
    fixture_release(f, 0);
    ClientReply reply;
    client_reply(c, NBDS_CMD_TRIM, 0, LEN, NULL, &reply);
    assert_int_equal(reply.error, NBDS_ESHUTDOWN);
    assert_int_equal(f->nodes[0]->n_discards, 1);
    assert_true(client_at_end(c));
}

static void a_huge_trim_is_finished_although_its_client_leaves(void **state)
{
    enum { LEN = 600 << 20 };
    FixtureConfig config = {.size_bytes = LEN};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    client_request(c, NBDS_CMD_TRIM, 0, 1, 0, LEN, NULL, 0);
    client_request(c, NBDS_CMD_DISC, 0, 2, 0, 0, NULL, 0);
    ClientReply reply;
    client_reply(c, NBDS_CMD_TRIM, 0, LEN, NULL, &reply);
    assert_int_equal(reply.error, 0);
    assert_int_equal(f->nodes[0]->n_discards, 3);
    assert_true(client_at_end(c));
}

static void shrink(Fiber *self, void *arg)
{
    Fixture *f = arg;
    f->nodes[0]->node.size_bytes = SIZE;
    nbds_server_refresh_size(f->exports[0]);
}

static void grow(Fiber *self, void *arg)
{
    Fixture *f = arg;
    f->nodes[0]->node.size_bytes = 2 * SIZE;
    nbds_server_refresh_size(f->exports[0]);
}

static void a_resize_shows_to_new_connections(void **state)
{
    FixtureConfig config = {.size_bytes = 2 * SIZE};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) before = client_new(f->socket_path, &simple);
    fixture_run(f, shrink, f);
    g_autoptr(Client) small = client_new(f->socket_path, &simple);
    assert_int_equal(before->size_bytes, 2 * SIZE);
    assert_int_equal(small->size_bytes, SIZE);
    uint8_t data[512];
    // Past the new end: an error for the client that still knows the old one, and nothing worse.
    assert_int_equal(client_do(before, NBDS_CMD_READ, 0, SIZE, sizeof data, data), NBDS_EINVAL);
    assert_int_equal(client_do(before, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
    fixture_run(f, grow, f);
    g_autoptr(Client) large = client_new(f->socket_path, &simple);
    assert_int_equal(large->size_bytes, 2 * SIZE);
    assert_int_equal(client_do(large, NBDS_CMD_READ, 0, SIZE, sizeof data, data), 0);
    assert_int_equal(client_do(small, NBDS_CMD_READ, 0, SIZE, sizeof data, data), NBDS_EINVAL);
}

static void writes_past_a_shrunk_end_find_no_space(void **state)
{
    FixtureConfig config = {.size_bytes = 2 * SIZE};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    fixture_run(f, shrink, f);
    uint8_t data[512] = {0};
    for (uint64_t offset = SIZE - 256; offset <= SIZE; offset += 256) {
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, offset, 512, data), NBDS_ENOSPC);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, offset, 512, NULL), NBDS_ENOSPC);
        assert_int_equal(client_do(c, NBDS_CMD_TRIM, 0, offset, 512, NULL), NBDS_EINVAL);
        assert_int_equal(client_do(c, NBDS_CMD_CACHE, 0, offset, 512, NULL), NBDS_EINVAL);
    }
    assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, SIZE - 512, 512, data), 0);
}

static void stopping_answers_what_is_in_flight_and_refuses_the_rest(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    uint8_t data[4096];
    memset(data, 9, sizeof data);
    fixture_hold(f, 0);
    client_request(c, NBDS_CMD_WRITE, 0, 1, 0, 4096, data, 4096);
    wait_at_least(&f->nodes[0]->n_waiting, 1);
    fixture_begin_stop(f);
    unsigned n_held = wait_for_draining(c);
    fixture_release(f, 0);
    ClientReply reply;
    client_reply(c, NBDS_CMD_WRITE, 0, 4096, NULL, &reply); // in order of arrival
    assert_int_equal(reply.cookie, 1);
    assert_int_equal(reply.error, 0);
    assert_int_equal(f->nodes[0]->data[0], 9);
    for (; n_held; n_held--) {
        client_reply(c, NBDS_CMD_READ, 0, 512, NULL, &reply);
        assert_int_equal(reply.error, 0);
    }
    assert_true(client_at_end(c));
}

static void a_client_that_takes_no_replies_does_not_stop_the_stop(void **state)
{
    FixtureConfig config = {.limits.stop_timeout_ns = 100 * MS};
    Fixture *f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    for (unsigned i = 0; i < 8; i++)
        client_request(c, NBDS_CMD_READ, 0, i, 0, SIZE, NULL, 0);
    wait_at_least(&f->nodes[0]->n_reads, 8);
    fixture_free(f); // returns
}

static void stopping_under_load_loses_no_answered_write(void **state)
{
    FixtureConfig config = {.two_loops = true};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    uint8_t data[512];
    memset(data, 3, sizeof data);
    for (unsigned i = 0; i < 1000; i++)
        client_request(c, NBDS_CMD_WRITE, 0, i, i * 512, 512, data, 512);
    fixture_begin_stop(f);
    unsigned n_done = 0, n_refused = 0;
    for (;;) { // whole replies, then the end
        uint8_t reply[16];
        ssize_t n = TEMP_FAILURE_RETRY(recv(c->fd, reply, 16, MSG_WAITALL));
        if (n <= 0)
            break;
        assert_int_equal(n, 16);
        uint64_t cookie = nbds_wire_get_u64(reply + 8);
        if (nbds_wire_get_u32(reply + 4) == NBDS_OK) {
            n_done++;
            assert_int_equal(f->nodes[0]->data[cookie * 512 + 511], 3);
        } else {
            assert_int_equal(nbds_wire_get_u32(reply + 4), NBDS_ESHUTDOWN);
            n_refused++;
        }
    }
    assert_int_equal(f->nodes[0]->n_writes, n_done);
    print_message("# %u answered, %u refused, of 1000\n", n_done, n_refused);
}

// --- Exports ---

static void removing_an_export_ends_its_clients_only(void **state)
{
    FixtureConfig config = {.two_loops = true, .n_exports = 2, .names = {"a", "b"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig a = {.style = NBDS_STYLE_SIMPLE, .export_name = "a"};
    ClientConfig b = {.style = NBDS_STYLE_SIMPLE, .export_name = "b"};
    g_autoptr(Client) ca = client_new(f->socket_path, &a);
    g_autoptr(Client) cb = client_new(f->socket_path, &b);
    fixture_remove_export(f, 0);
    assert_true(client_at_end(ca));
    uint8_t data[512];
    assert_int_equal(client_do(cb, NBDS_CMD_READ, 0, 0, 512, data), 0);
    Client late = {.fd = client_connect(f->socket_path)};
    uint8_t greeting[18];
    client_recv(&late, greeting, 18);
    client_send(&late, (const uint8_t[]){0, 0, 0, 3}, 4);
    client_send_option(&late, NBDS_OPT_GO, "\0\0\0\1a\0\0", 7);
    assert_int_equal(client_recv_option_reply(&late, NBDS_OPT_GO, NULL), NBDS_REP_ERR_UNKNOWN);
    close(late.fd);
}

typedef struct AddAgain {
    Fixture *f;
    const char *name;
    int result;
} AddAgain;

static void add_again(Fiber *self, void *arg)
{
    AddAgain *a = arg;
    NbdsExportConfig config = {.name = a->name, .node = &a->f->nodes[0]->node};
    NbdsExport *export;
    g_autoptr(GError) error = NULL;
    a->result = nbds_server_add_export(a->f->server, &config, &export, &error);
    assert_int_equal(a->result < 0, error != NULL);
}

static void names_of_exports_are_unique_and_bounded(void **state)
{
    FixtureConfig config = {.names = {"a"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autofree char *long_name = g_strnfill(4097, 'x');
    const char *const bad[] = {"a", long_name, "\xff\xfe"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        AddAgain a = {f, bad[i], 0};
        fixture_run(f, add_again, &a);
        assert_true(a.result < 0);
    }
    assert_serves(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(export_name_enters_transmission_too),
        cmocka_unit_test(a_client_is_handed_to_its_exports_loop),
        cmocka_unit_test(leaving_at_any_byte_harms_nobody),
        cmocka_unit_test(leaving_at_any_byte_after_two_loops_were_involved),
        cmocka_unit_test(a_half_received_write_is_not_applied),
        cmocka_unit_test(disc_finishes_what_is_in_flight),
        cmocka_unit_test(a_client_that_vanishes_with_requests_in_flight_is_cleaned_up),
        cmocka_unit_test(the_last_client_leaving_is_told),
        cmocka_unit_test(stopping_ends_idle_clients_and_handshakes),
        cmocka_unit_test(stopping_answers_what_is_in_flight_and_refuses_the_rest),
        cmocka_unit_test(a_stop_does_not_wait_for_the_end_of_a_huge_trim),
        cmocka_unit_test(a_stop_does_not_wait_for_the_huge_trim_of_a_client_that_left),
        cmocka_unit_test(a_huge_trim_is_finished_although_its_client_leaves),
        cmocka_unit_test(a_resize_shows_to_new_connections),
        cmocka_unit_test(writes_past_a_shrunk_end_find_no_space),
        cmocka_unit_test(a_client_that_takes_no_replies_does_not_stop_the_stop),
        cmocka_unit_test(stopping_under_load_loses_no_answered_write),
        cmocka_unit_test(removing_an_export_ends_its_clients_only),
        cmocka_unit_test(names_of_exports_are_unique_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
