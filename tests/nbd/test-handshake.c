// SPDX-License-Identifier: LGPL-2.1-or-later
// The handshake through sockets: how long it may take, how much an option may carry, and what the
// options of some clients cost the others.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "fixture.h"

static const uint64_t MS = 1000000;

static const ClientConfig simple = {.style = NBDS_STYLE_SIMPLE};

// A client that has exchanged flags.
static Client begin(Fixture *f)
{
    Client c = {.fd = client_connect(f->socket_path)};
    uint8_t greeting[18];
    client_recv(&c, greeting, 18);
    client_send(&c, (const uint8_t[]){0, 0, 0, 3}, 4);
    return c;
}

static void an_unfinished_handshake_is_cut_off(void **state)
{
    FixtureConfig config = {.limits.handshake_timeout_ns = 50 * MS};
    g_autoptr(Fixture) f = fixture_new(&config);
    uint8_t greeting[18];
    Client silent = {.fd = client_connect(f->socket_path)};
    Client newcomer = {.fd = client_connect(f->socket_path)};
    client_recv(&silent, greeting, 18);
    client_recv(&newcomer, greeting, 18);
    send(newcomer.fd, "\0\0\0\3IH", 6, MSG_NOSIGNAL); // unless it is cut off already
    assert_true(client_at_end(&silent));
    assert_true(client_at_end(&newcomer));
    close(silent.fd);
    close(newcomer.fd);
    wait_for_clients(f, 0);
}

// Handshake and a READ of one byte, all sent at once; true when the READ waits in the held node.
// On a slow machine the handshake may be cut off: false.
static bool begin_read(Fixture *f, Client *c)
{
    static const char talk[] = "\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0"
                               "\x25\x60\x95\x13\0\0\0\0" // READ
                               "\0\0\0\0\0\0\0\1"         // cookie
                               "\0\0\0\0\0\0\0\0"         // offset
                               "\0\0\0\1";                // length
    *c = (Client){.fd = client_connect(f->socket_path), .style = NBDS_STYLE_SIMPLE};
    if (send(c->fd, talk, sizeof talk - 1, MSG_NOSIGNAL) != sizeof talk - 1)
        return false;
    struct pollfd p = {c->fd, POLLRDHUP, 0};
    while (!f->nodes[0]->n_waiting) {
        if (poll(&p, 1, 1) == 1) // the server closed
            return false;
    }
    return true;
}

static void the_limit_of_a_handshake_ends_with_it(void **state)
{
    FixtureConfig config = {.limits.handshake_timeout_ns = 50 * MS};
    g_autoptr(Fixture) f = fixture_new(&config);
    fixture_hold(f, 0);
    Client c;
    while (!begin_read(f, &c))
        close(c.fd);
    Client later = {.fd = client_connect(f->socket_path)};
    uint8_t greeting[18];
    client_recv(&later, greeting, 18);
    assert_true(client_at_end(&later)); // longer than the limit after the first one came
    close(later.fd);
    fixture_release(f, 0);
    uint8_t data[1024]; // the handshake's replies and that of the READ
    ssize_t n = 0, r;
    while (n < 17 || nbds_wire_get_u32(data + n - 17) != 0x67446698) {
        r = recv(c.fd, data + n, sizeof data - n, 0);
        assert_true(r > 0);
        n += r;
    }
    close(c.fd);
}

static void an_option_of_more_than_256_kib_ends_the_session(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    static const uint32_t lengths[] = {(256 << 10) + 1, 0xfffffff0};
    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
        uint8_t head[16] = "IHAVEOPT";
        Client c = begin(f);
        nbds_wire_put_u32(head + 8, 99);
        nbds_wire_put_u32(head + 12, lengths[i]);
        client_send(&c, head, 16);
        assert_true(client_at_end(&c));
        close(c.fd);
    }
    g_autoptr(Client) c G_GNUC_UNUSED = client_new(f->socket_path, &simple);
}

static void a_large_option_is_answered_and_the_next_one_served(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    static const struct {
        uint32_t len;
        NbdsRep reply;
    } rows[] = {
        {17 << 10, NBDS_REP_ERR_UNSUP},
        {64 << 10, NBDS_REP_ERR_UNSUP},
        {(64 << 10) + 1, NBDS_REP_ERR_TOO_BIG},
        {256 << 10, NBDS_REP_ERR_TOO_BIG},
    };
    g_autofree uint8_t *data = g_malloc0(256 << 10);
    Client c = begin(f);
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        client_send_option(&c, 99, data, rows[i].len);
        assert_int_equal(client_recv_option_reply(&c, 99, NULL), rows[i].reply);
    }
    client_send_option(&c, NBDS_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(client_recv_option_reply(&c, NBDS_OPT_STRUCTURED_REPLY, NULL), NBDS_REP_ACK);
    close(c.fd);
}

static void put_query(GByteArray *option, const char *query)
{
    uint8_t len[4];
    nbds_wire_put_u32(len, strlen(query));
    g_byte_array_append(option, len, 4);
    g_byte_array_append(option, (const uint8_t *)query, strlen(query));
}

static void sixteen_bitmaps_with_the_longest_names_can_be_asked_for(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    Client c = begin(f);
    client_send_option(&c, NBDS_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(client_recv_option_reply(&c, NBDS_OPT_STRUCTURED_REPLY, NULL), NBDS_REP_ACK);
    g_autoptr(GByteArray) option = g_byte_array_new();
    g_autofree char *name = g_strnfill(1023, 'n');
    g_autofree char *query = g_strconcat("qemu:dirty-bitmap:", name, NULL);
    g_byte_array_append(option, (const uint8_t[]){0, 0, 0, 0, 0, 0, 0, 17}, 8);
    for (unsigned i = 0; i < 16; i++)
        put_query(option, query);
    put_query(option, "base:allocation");
    client_send_option(&c, NBDS_OPT_SET_META_CONTEXT, option->data, option->len);
    g_autoptr(GByteArray) context = NULL;
    assert_int_equal(client_recv_option_reply(&c, NBDS_OPT_SET_META_CONTEXT, &context),
                     NBDS_REP_META_CONTEXT);
    assert_memory_equal(context->data + 4, "base:allocation", context->len - 4);
    assert_int_equal(client_recv_option_reply(&c, NBDS_OPT_SET_META_CONTEXT, NULL), NBDS_REP_ACK);
    close(c.fd);
}

// --- Floods ---

enum { N_LISTERS = 128, N_LISTS = 512, TURN_KIB = 256 };

typedef struct Listers {
    Client clients[N_LISTERS];
    uint64_t listed_bytes;
    unsigned n_turns;
} Listers;

static uint64_t unread_bytes(const Listers *l)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < N_LISTERS; i++) {
        int n = 0;
        assert_int_equal(ioctl(l->clients[i].fd, FIONREAD, &n), 0);
        sum += (unsigned)n;
    }
    return sum;
}

// On the server's loop: all clients ask at once, and take nothing. Counts the loop's turns until
// the sockets are full.
static void list_without_pause(Fiber *self, void *arg)
{
    Listers *l = arg;
    g_autofree uint8_t *lists = g_malloc(N_LISTS * 16);
    for (unsigned i = 0; i < N_LISTS; i++) {
        memcpy(lists + 16 * i, "IHAVEOPT", 8);
        nbds_wire_put_u32(lists + 16 * i + 8, NBDS_OPT_LIST);
        nbds_wire_put_u32(lists + 16 * i + 12, 0);
    }
    for (unsigned i = 0; i < N_LISTERS; i++)
        client_send(&l->clients[i], lists, N_LISTS * 16);
    for (unsigned n_idle = 0; n_idle < 200; n_idle++) {
        fiber_sleep(self, 0);
        uint64_t bytes = unread_bytes(l);
        if (bytes == l->listed_bytes)
            continue;
        l->listed_bytes = bytes;
        l->n_turns += n_idle + 1;
        n_idle = 0;
    }
}

static void clients_that_list_without_pause_leave_the_loop_its_turns(void **state)
{
    char *names[4];
    FixtureConfig config = {.n_exports = 4, .limits.handshake_timeout_ns = 60000 * MS};
    for (unsigned i = 0; i < 4; i++)
        config.names[i] = names[i] = g_strnfill(4096, 'a' + i);
    g_autoptr(Fixture) f = fixture_new(&config);
    Listers listers = {0};
    for (unsigned i = 0; i < N_LISTERS; i++)
        listers.clients[i] = begin(f);
    fixture_run(f, list_without_pause, &listers);
    unsigned kib = listers.listed_bytes >> 10;
    print_message("# %u KiB in %u turns\n", kib, listers.n_turns);
    // Other clients are served in each turn; between two, no more than so much was copied.
    assert_in_range(kib, 4096, UINT32_MAX);
    assert_in_range(kib, 0, (listers.n_turns + 8) * TURN_KIB);
    for (unsigned i = 0; i < N_LISTERS; i++)
        close(listers.clients[i].fd);
    for (unsigned i = 0; i < 4; i++)
        g_free(names[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_unfinished_handshake_is_cut_off),
        cmocka_unit_test(the_limit_of_a_handshake_ends_with_it),
        cmocka_unit_test(an_option_of_more_than_256_kib_ends_the_session),
        cmocka_unit_test(a_large_option_is_answered_and_the_next_one_served),
        cmocka_unit_test(sixteen_bitmaps_with_the_longest_names_can_be_asked_for),
        cmocka_unit_test(clients_that_list_without_pause_leave_the_loop_its_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
