// SPDX-License-Identifier: LGPL-2.1-or-later
// What a client may cost: replies it does not take, requests it piles up, and what remains for the
// others. Every request is answered in the end. Nothing here is timed; measure-isolation.c is.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "chain-core/switch.h"
#include "client.h"
#include "connection.h"
#include "export.h"
#include "fixture.h"

static const ClientConfig simple = {.style = NBDS_STYLE_SIMPLE};

static void look(Fiber *self, void *arg)
{
    Fixture *f = ((void **)arg)[0];
    *(uint64_t *)((void **)arg)[1] = f->exports[0]->server_loop->pool.taken_bytes;
}

// Bytes of buffers in use on the exports' loop.
static uint64_t taken_bytes(Fixture *f)
{
    uint64_t bytes = 0;
    void *args[] = {f, &bytes};
    fixture_run(f, look, args);
    return bytes;
}

// Buffers are given back a moment after the last reply is there.
static void wait_for_little(Fixture *f)
{
    int64_t end = g_get_monotonic_time() + HANG_S * G_USEC_PER_SEC;
    while (taken_bytes(f) > 1 << 20)
        assert_true(g_get_monotonic_time() < end);
}

static void put_request(uint8_t *p, uint16_t type, uint64_t cookie, uint64_t offset,
                        uint32_t length)
{
    nbds_wire_put_u32(p, 0x25609513);
    nbds_wire_put_u16(p + 4, 0);
    nbds_wire_put_u16(p + 6, type);
    nbds_wire_put_u64(p + 8, cookie);
    nbds_wire_put_u64(p + 16, offset);
    nbds_wire_put_u32(p + 24, length);
}

// Sends up to `n` equal requests without waiting for room; returns how many went out whole.
static unsigned send_what_fits(Client *c, uint16_t type, uint32_t length, unsigned n)
{
    g_autofree uint8_t *all = g_malloc(n * 28);
    for (unsigned i = 0; i < n; i++)
        put_request(all + i * 28, type, i, 0, length);
    size_t sent = 0;
    while (sent < n * 28) {
        ssize_t r =
            TEMP_FAILURE_RETRY(send(c->fd, all + sent, n * 28 - sent, MSG_DONTWAIT | MSG_NOSIGNAL));
        if (r < 0) {
            assert_int_equal(errno, EAGAIN);
            break;
        }
        sent += r;
    }
    if (sent % 28) // the rest of a request that went out in part
        client_send(c, all + sent, 28 - sent % 28);
    return (sent + 27) / 28;
}

static void take_replies(Client *c, uint16_t type, uint32_t length, unsigned n, uint32_t error)
{
    for (unsigned i = 0; i < n; i++) {
        ClientReply reply;
        client_reply(c, type, 0, length, NULL, &reply);
        assert_int_equal(reply.error, error);
    }
}

static void replies_that_nobody_takes_cost_a_bounded_amount(void **state)
{
    enum { MAX = 4 << 20, EACH = 64 << 10 };
    FixtureConfig config = {.limits.max_bytes = MAX};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) bulk = client_new(f->socket_path, &simple);
    g_autoptr(Client) other = client_new(f->socket_path, &simple);
    unsigned n = send_what_fits(bulk, NBDS_CMD_READ, EACH, 2000);
    assert_in_range(n, 200, 2000);
    wait_at_least(&f->nodes[0]->n_reads, MAX / EACH - 1);
    uint8_t data[4096];
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(client_do(other, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
        assert_in_range(taken_bytes(f), 0, MAX + (1 << 20)); // and the receive buffers
    }
    // Some replies lie in the socket; the rest of the requests was not begun.
    assert_in_range(f->nodes[0]->n_reads, MAX / EACH - 1, 200 + MAX / EACH + 16);
    take_replies(bulk, NBDS_CMD_READ, EACH, n, 0);
}

static void no_more_requests_than_allowed_are_in_flight(void **state)
{
    FixtureConfig config = {.limits.max_requests = 16};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    fixture_hold(f, 0);
    unsigned n = send_what_fits(c, NBDS_CMD_READ, 512, 100);
    assert_int_equal(n, 100);
    wait_at_least(&f->nodes[0]->n_waiting, 16);
    for (unsigned i = 0; i < 100; i++) {
        taken_bytes(f); // a turn of the loop
        assert_int_equal(f->nodes[0]->n_waiting, 16);
    }
    NbdsExportStats stats;
    nbds_export_get_stats(f->exports[0], &stats);
    assert_int_equal(stats.n_in_flight, 16);
    fixture_release(f, 0);
    take_replies(c, NBDS_CMD_READ, 512, n, 0);
}

static void refusals_that_nobody_takes_are_bounded_too(void **state)
{
    FixtureConfig config = {.limits.max_requests = 64};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    unsigned n = 0;
    struct pollfd p = {c->fd, POLLOUT, 0};
    do { // until the server has stopped reading for good
        n += send_what_fits(c, 99, 0, 1000);
        assert_in_range(taken_bytes(f), 0, 1 << 20);
    } while (n < 200000 && poll(&p, 1, 500) == 1);
    assert_in_range(n, 1000, 199999);
    take_replies(c, 99, 0, n, NBDS_EINVAL);
}

static void the_budget_of_a_loop_holds_and_leaves_room_for_others(void **state)
{
    enum { LOOP = 64 << 20, EACH = 1 << 20 };
    FixtureConfig config = {.limits.max_loop_bytes = LOOP};
    g_autoptr(Fixture) f = fixture_new(&config);
    Client *bulk[3];
    unsigned n[3];
    for (unsigned i = 0; i < 3; i++) {
        bulk[i] = client_new(f->socket_path, &simple);
        n[i] = send_what_fits(bulk[i], NBDS_CMD_READ, EACH, 100);
    }
    wait_at_least(&f->nodes[0]->n_reads, LOOP / EACH - 4);
    g_autoptr(Client) other = client_new(f->socket_path, &simple);
    g_autofree uint8_t *data = g_malloc(EACH);
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(client_do(other, NBDS_CMD_READ, 0, 0, 4096, data), 0);
        assert_int_equal(client_do(other, NBDS_CMD_READ, 0, 0, EACH, data), 0);
        assert_in_range(taken_bytes(f), 0, LOOP + 8 * EACH);
    }
    for (unsigned i = 0; i < 3; i++) {
        take_replies(bulk[i], NBDS_CMD_READ, EACH, n[i], 0);
        client_free(bulk[i]);
    }
}

static void a_stalled_write_does_not_hold_others_up(void **state)
{
    FixtureConfig config = {.size_bytes = 64 << 20};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) stalled = client_new(f->socket_path, &simple);
    g_autoptr(Client) other = client_new(f->socket_path, &simple);
    uint8_t half[28 + 1000] = {0};
    put_request(half, NBDS_CMD_WRITE, 1, 0, NBDS_MAX_PAYLOAD);
    client_send(stalled, half, sizeof half);
    uint8_t data[4096];
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(client_do(other, NBDS_CMD_WRITE, 0, 8192, sizeof data, data), 0);
    assert_in_range(taken_bytes(f), 0, NBDS_MAX_PAYLOAD + (1 << 20));
}

enum { HUGE_WRITE = NBDS_MAX_PAYLOAD };

// The header of a large write and a little of its payload.
static void begin_huge_write(Client *c)
{
    uint8_t begun[28 + 1000] = {0};
    put_request(begun, NBDS_CMD_WRITE, 1, 0, HUGE_WRITE);
    client_send(c, begun, sizeof begun);
}

static void many_stalled_writes_hold_no_more_than_the_loop_may(void **state)
{
    enum { N = 12, LOOP = 2 * HUGE_WRITE };
    FixtureConfig config = {.size_bytes = HUGE_WRITE, .limits.max_loop_bytes = LOOP};
    g_autoptr(Fixture) f = fixture_new(&config);
    Client *stalled[N];
    for (unsigned i = 0; i < N; i++) {
        stalled[i] = client_new(f->socket_path, &simple);
        begin_huge_write(stalled[i]);
    }
    // Small requests of others go on; each is a turn of the loop for the stalled ones.
    g_autoptr(Client) other = client_new(f->socket_path, &simple);
    uint8_t data[4096];
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(client_do(other, NBDS_CMD_WRITE, 0, 8192, sizeof data, data), 0);
        assert_in_range(taken_bytes(f), 0, LOOP + HUGE_WRITE + (2 << 20));
    }
    assert_in_range(taken_bytes(f), HUGE_WRITE, UINT32_MAX); // it was not for want of trying
    for (unsigned i = 0; i < N; i++)
        client_free(stalled[i]);
    wait_for_clients(f, 1);
    wait_for_little(f);
}

typedef struct Hauler {
    Fixture *f;
    const ClientConfig *config;
    uint32_t length;
    atomic_uint n_done;
    atomic_bool is_over;
} Hauler;

// Large reads, many in flight.
static void *haul(void *arg)
{
    enum { IN_FLIGHT = 16 };
    Hauler *h = arg;
    g_autoptr(Client) c = client_new(h->f->socket_path, h->config);
    unsigned n_in_flight = send_what_fits(c, NBDS_CMD_READ, h->length, IN_FLIGHT);
    for (; n_in_flight; n_in_flight--) {
        take_replies(c, NBDS_CMD_READ, h->length, 1, 0);
        h->n_done++;
        if (!h->is_over)
            n_in_flight += send_what_fits(c, NBDS_CMD_READ, h->length, 1);
    }
    return NULL;
}

// Busy clients rest beside one that waits for each answer; that one may leave at any moment.
static void who_rests_goes_on_when_the_one_that_waits_leaves(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    Hauler h = {.f = f, .config = &simple, .length = 256 << 10};
    GThread *thread = g_thread_new("hauls", haul, &h);
    wait_at_least(&h.n_done, 20);
    for (unsigned i = 0; i < 300; i++) {
        g_autoptr(Client) c = client_new(f->socket_path, &simple);
        uint8_t data[4096];
        for (unsigned n = 0; n < 40; n++)
            assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
        g_clear_pointer(&c, client_free);
        wait_at_least(&h.n_done, h.n_done + 17); // all that were in flight
    }
    h.is_over = true;
    g_thread_join(thread);
}

static void replace_node(Fiber *self, void *arg)
{
    Fixture *f = arg;
    MemoryNode *m = memory_node_new(fiber_loop(self), 1 << 20);
    m->node.preferred_bytes = 64 << 10;
    port_replace(self, nbds_export_port(f->exports[0]), &m->node);
    node_unref_close(self, &m->node);
    f->nodes[0] = m;
}

static void look_at_charge(Fiber *self, void *arg)
{
    Fixture *f = ((void **)arg)[0];
    NbdsConnection *c = g_queue_peek_head(&f->exports[0]->server_loop->connections);
    *(uint64_t *)((void **)arg)[1] = c->admission.bytes;
}

static uint64_t charge_of_small_write(Fixture *f, Client *c)
{
    uint8_t data[512] = {0};
    uint64_t bytes;
    void *args[] = {f, &bytes};
    fixture_hold(f, 0);
    client_request(c, NBDS_CMD_WRITE, 0, 1, 512, sizeof data, data, sizeof data);
    wait_at_least(&f->nodes[0]->n_waiting, 1);
    fixture_run(f, look_at_charge, args);
    fixture_release(f, 0);
    ClientReply reply;
    client_reply(c, NBDS_CMD_WRITE, 512, sizeof data, NULL, &reply);
    client_reply_clear(&reply);
    return bytes;
}

static void charges_follow_the_block_size_of_the_node_that_is_there_now(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    uint64_t before = charge_of_small_write(f, c);
    fixture_run(f, replace_node, f);
    assert_int_equal(charge_of_small_write(f, c) - before, (64 << 10) - MEMORY_NODE_BLOCK);
}

// Does all that `c` does with its socket until `len` bytes went through; false when the server cut
// it off. That may happen to everybody whom a slow machine makes seem to stall.
static bool transfer(Client *c, bool is_send, uint8_t *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = TEMP_FAILURE_RETRY(is_send ? send(c->fd, data + done, len - done, MSG_NOSIGNAL)
                                               : recv(c->fd, data + done, len - done, 0));
        if (n <= 0) {
            assert_true(n == 0 || errno == EPIPE || errno == ECONNRESET);
            return false;
        }
        done += n;
    }
    return true;
}

static bool try_request(Client *c, uint16_t type, uint32_t length, uint8_t *data)
{
    put_request(data, type, 1, 0, length);
    if (!transfer(c, true, data, 28 + (type == NBDS_CMD_WRITE ? length : 0)) ||
        !transfer(c, false, data, 16))
        return false;
    assert_int_equal(nbds_wire_get_u32(data + 4), NBDS_OK);
    return type == NBDS_CMD_WRITE || transfer(c, false, data, length);
}

// By somebody who does not stall.
static void huge_write(Fixture *f, const ClientConfig *config)
{
    g_autofree uint8_t *data = g_malloc0(28 + HUGE_WRITE);
    for (bool is_done = false; !is_done;) {
        g_autoptr(Client) c = client_new(f->socket_path, config);
        is_done = try_request(c, NBDS_CMD_WRITE, HUGE_WRITE, data);
    }
}

static void who_stalls_with_what_others_wait_for_is_cut_off(void **state)
{
    enum { N = 4 };
    FixtureConfig config = {
        .size_bytes = HUGE_WRITE,
        .limits = {.max_loop_bytes = 2 * HUGE_WRITE, .stall_timeout_ns = 200000000},
    };
    g_autoptr(Fixture) f = fixture_new(&config);
    Client *stalled[N]; // three hold all there is, the fourth waits already
    for (unsigned i = 0; i < N; i++) {
        stalled[i] = client_new(f->socket_path, &simple);
        begin_huge_write(stalled[i]);
    }
    huge_write(f, &simple);
    for (unsigned i = 0; i < N; i++)
        client_free(stalled[i]);
}

// Requests that take and give back some of the budget all the time, on another export.
typedef struct Active {
    Fixture *f;
    atomic_bool is_over;
} Active;

static void *stay_active(void *arg)
{
    enum { LEN = 1 << 20 };
    Active *active = arg;
    ClientConfig config = {.style = NBDS_STYLE_SIMPLE, .export_name = "active"};
    g_autofree uint8_t *data = g_malloc(LEN);
    while (!active->is_over) {
        g_autoptr(Client) c = client_new(active->f->socket_path, &config);
        while (!active->is_over && try_request(c, NBDS_CMD_READ, LEN, data))
            continue;
    }
    return NULL;
}

static void who_stalls_is_cut_off_however_active_others_are(void **state)
{
    enum { N = 3 }; // hold all there is; the one that waits is alone
    FixtureConfig config = {
        .n_exports = 2,
        .names = {"stalled", "active"},
        .size_bytes = HUGE_WRITE,
        .limits = {.max_loop_bytes = 2 * HUGE_WRITE + (4 << 20), .stall_timeout_ns = 400000000},
    };
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig on_stalled = {.style = NBDS_STYLE_SIMPLE, .export_name = "stalled"};
    Client *stalled[N];
    for (unsigned i = 0; i < N; i++) {
        stalled[i] = client_new(f->socket_path, &on_stalled);
        begin_huge_write(stalled[i]);
    }
    Active active = {f, false};
    GThread *thread = g_thread_new("active", stay_active, &active);
    huge_write(f, &on_stalled);
    active.is_over = true;
    g_thread_join(thread);
    for (unsigned i = 0; i < N; i++)
        client_free(stalled[i]);
}

// Its reply is not taken here.
static void begin_huge_read(Client *c, uint32_t length)
{
    uint8_t request[28];
    put_request(request, NBDS_CMD_READ, 1, 0, length);
    client_send(c, request, sizeof request);
}

static void beyond_the_budget_those_of_one_export_take_turns(void **state)
{
    enum { N = 2, LENGTH = 2 << 20 }; // two hold all there is
    FixtureConfig config = {.n_exports = 2,
                            .names = {"hangs", "works"},
                            .size_bytes = HUGE_WRITE,
                            .limits.max_loop_bytes = N * HUGE_WRITE + (1 << 20)};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig hangs = {.style = NBDS_STYLE_SIMPLE, .export_name = "hangs"};
    ClientConfig works = {.style = NBDS_STYLE_SIMPLE, .export_name = "works"};
    fixture_hold(f, 0);
    Client *hung[N];
    for (unsigned i = 0; i < N; i++) {
        hung[i] = client_new(f->socket_path, &hangs);
        begin_huge_read(hung[i], HUGE_WRITE);
    }
    wait_at_least(&f->nodes[0]->n_waiting, N);
    Hauler h = {.f = f, .config = &works, .length = LENGTH};
    GThread *thread = g_thread_new("hauls", haul, &h);
    wait_at_least(&h.n_done, 3);
    g_autoptr(Client) other = client_new(f->socket_path, &works);
    g_autofree uint8_t *data = g_malloc(LENGTH);
    assert_int_equal(client_do(other, NBDS_CMD_READ, 0, 0, LENGTH, data), 0);
    h.is_over = true;
    g_thread_join(thread);
    fixture_release(f, 0);
    for (unsigned i = 0; i < N; i++)
        client_free(hung[i]);
}

static void who_waits_only_for_itself_is_not_cut_off(void **state)
{
    enum { EACH = 256 << 10 };
    FixtureConfig config = {.limits.stall_timeout_ns = 20000000};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    unsigned n = send_what_fits(c, NBDS_CMD_READ, EACH, 300); // more than may be in flight
    assert_int_equal(n, 300);
    wait_at_least(&f->nodes[0]->n_reads, 255);
    g_usleep(100000);
    take_replies(c, NBDS_CMD_READ, EACH, n, 0);
}

static void who_stalls_while_nobody_waits_is_not_cut_off(void **state)
{
    FixtureConfig config = {.size_bytes = HUGE_WRITE, .limits.stall_timeout_ns = 20000000};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    begin_huge_write(c);
    g_usleep(100000);
    g_autofree uint8_t *rest = g_malloc0(HUGE_WRITE);
    client_send(c, rest, HUGE_WRITE - 1000);
    ClientReply reply;
    client_reply(c, NBDS_CMD_WRITE, 0, HUGE_WRITE, NULL, &reply);
    assert_int_equal(reply.error, 0);
}

static void a_client_that_became_quiet_keeps_no_large_buffer(void **state)
{
    enum { LEN = 17 << 20 };
    FixtureConfig config = {.size_bytes = LEN};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    g_autofree uint8_t *data = g_malloc0(28 + LEN);
    fixture_hold(f, 0);
    put_request(data, NBDS_CMD_WRITE, 1, 0, LEN);
    client_send(c, data, 28 + LEN);
    wait_at_least(&f->nodes[0]->n_waiting, 1);
    fixture_release(f, 0);
    ClientReply reply;
    client_reply(c, NBDS_CMD_WRITE, 0, LEN, NULL, &reply);
    assert_int_equal(reply.error, 0);
    wait_for_little(f);
}

static void what_hangs_on_one_export_leaves_fibers_for_the_others(void **state)
{
    enum { N = 8 };
    // 32 fibers for connections, 24 of the others for requests, a third of these for each export.
    FixtureConfig config = {.n_exports = 2,
                            .names = {"hangs", "works"},
                            .max_fibers = 64,
                            .limits.max_connections = 16};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig hangs = {.style = NBDS_STYLE_SIMPLE, .export_name = "hangs"};
    ClientConfig works = {.style = NBDS_STYLE_SIMPLE, .export_name = "works"};
    fixture_hold(f, 0);
    Client *hung[N];
    for (unsigned i = 0; i < N; i++) {
        hung[i] = client_new(f->socket_path, &hangs);
        assert_int_equal(send_what_fits(hung[i], NBDS_CMD_READ, 512, 50), 50);
    }
    wait_at_least(&f->nodes[0]->n_waiting, 8 + N); // and the receivers
    for (unsigned i = 0; i < 10; i++) {
        g_autoptr(Client) c = client_new(f->socket_path, &works);
        uint8_t data[512];
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
    }
    fixture_release(f, 0);
    for (unsigned i = 0; i < N; i++) {
        take_replies(hung[i], NBDS_CMD_READ, 512, 50, 0);
        client_free(hung[i]);
    }
}

static void without_fibers_requests_are_still_answered(void **state)
{
    // The listener, a receiver and a sender; two requests get fibers, the rest do without.
    FixtureConfig config = {.max_fibers = 5};
    g_autoptr(Fixture) f = fixture_new(&config);
    {
        g_autoptr(Client) c = client_new(f->socket_path, &simple);
        fixture_hold(f, 0);
        unsigned n = send_what_fits(c, NBDS_CMD_READ, 512, 50);
        assert_int_equal(n, 50);
        wait_at_least(&f->nodes[0]->n_waiting, 1);
        fixture_release(f, 0);
        take_replies(c, NBDS_CMD_READ, 512, n, 0);
    }
    wait_for_clients(f, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replies_that_nobody_takes_cost_a_bounded_amount),
        cmocka_unit_test(no_more_requests_than_allowed_are_in_flight),
        cmocka_unit_test(refusals_that_nobody_takes_are_bounded_too),
        cmocka_unit_test(the_budget_of_a_loop_holds_and_leaves_room_for_others),
        cmocka_unit_test(a_stalled_write_does_not_hold_others_up),
        cmocka_unit_test(many_stalled_writes_hold_no_more_than_the_loop_may),
        cmocka_unit_test(who_rests_goes_on_when_the_one_that_waits_leaves),
        cmocka_unit_test(charges_follow_the_block_size_of_the_node_that_is_there_now),
        cmocka_unit_test(who_stalls_with_what_others_wait_for_is_cut_off),
        cmocka_unit_test(who_stalls_is_cut_off_however_active_others_are),
        cmocka_unit_test(beyond_the_budget_those_of_one_export_take_turns),
        cmocka_unit_test(who_waits_only_for_itself_is_not_cut_off),
        cmocka_unit_test(who_stalls_while_nobody_waits_is_not_cut_off),
        cmocka_unit_test(a_client_that_became_quiet_keeps_no_large_buffer),
        cmocka_unit_test(what_hangs_on_one_export_leaves_fibers_for_the_others),
        cmocka_unit_test(without_fibers_requests_are_still_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
