// SPDX-License-Identifier: LGPL-2.1-or-later
// Connections that are parked and go on on another loop, back and forth, while their clients keep
// many requests in flight: reads, writes of up to 256 KiB, and refused ones whose payload is
// dropped. Two exports on two loops have the same content; or one moves, with its node and all who
// are connected.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "chain-core/component.h"
#include "chain-core/remote-call.h"
#include "connection-life.h"
#include "fixture.h"

enum { HEAD = 28, SIZE = 1 << 20, DEPTH = 16, N_MOVES = 300, MAX_BYTES = 256 << 10 };
static const uint64_t SECOND_NS = 1000000000;
static const ClientConfig simple = {.style = NBDS_STYLE_SIMPLE, .export_name = "a"};

typedef struct Moves {
    Fixture *f;
    unsigned from;
    atomic_uint n_moves;
    atomic_bool is_done;
} Moves;

static void fill(uint8_t *data, uint64_t offset, size_t len)
{
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)((offset + i) * 2654435761u >> 13);
}

static void fill_node(Fiber *self, void *arg)
{
    MemoryNode *m = arg;
    fill(m->data, 0, SIZE);
    memset(m->kinds, NODE_EXTENT_DATA, SIZE / MEMORY_NODE_BLOCK);
}

static void move_all(Fiber *self, void *arg)
{
    Moves *m = arg;
    NbdsExport *to = m->f->exports[!m->from];
    for (GList *l = m->f->exports[m->from]->server_loop->connections.head; l; l = l->next) {
        NbdsConnection *c = l->data;
        if (c->state != NBDS_STATE_TRANSMISSION || c->destination)
            continue;
        nbds_connection_move(c, to, 100 * SECOND_NS);
        m->n_moves++;
    }
}

static void *mover(void *arg)
{
    Moves *m = arg;
    for (; !m->is_done; m->from = !m->from)
        assert_int_equal(remote_call(nbds_export_loop(m->f->exports[m->from]), move_all, m), 0);
    return NULL;
}

typedef struct Asked {
    uint16_t type;
    uint64_t offset;
    uint32_t length;
    atomic_bool is_pending;
} Asked;

// A client that goes on taking replies while it sends.
typedef struct Session {
    Client *client;
    Asked asked[DEPTH];
    atomic_uint n_asked, n_answered;
    atomic_bool has_asked_all;
} Session;

// The `n`th request in the place `cookie`, which is free.
static void ask(Session *s, uint64_t cookie, unsigned n)
{
    static const uint32_t lengths[] = {512, 4096, 65536, MAX_BYTES};
    static uint8_t payload[MAX_BYTES];
    Asked *a = &s->asked[cookie];
    a->type = n % 3 ? NBDS_CMD_READ : NBDS_CMD_WRITE;
    a->length = lengths[n % 4];
    a->offset = n * 7919 * 512 % (SIZE - MAX_BYTES);
    if (n % 21 == 0) // past the end
        a->offset = SIZE;
    bool writes = a->type == NBDS_CMD_WRITE;
    if (writes)
        fill(payload, a->offset, a->length);
    a->is_pending = true;
    s->n_asked++;
    client_request(s->client, a->type, 0, cookie, a->offset, a->length, payload,
                   writes ? a->length : 0);
}

static void expect_one(Session *s)
{
    Client *c = s->client;
    uint8_t head[NBDS_SIMPLE_REPLY_BYTES];
    static uint8_t got[MAX_BYTES], expected[MAX_BYTES];
    client_recv(c, head, sizeof head);
    assert_int_equal(nbds_wire_get_u32(head), 0x67446698);
    uint64_t cookie = nbds_wire_get_u64(head + 8);
    assert_in_range(cookie, 0, DEPTH - 1);
    Asked *a = &s->asked[cookie];
    assert_true(a->is_pending);
    bool is_inside = a->offset < SIZE;
    assert_int_equal(nbds_wire_get_u32(head + 4) == 0, is_inside);
    if (is_inside && a->type == NBDS_CMD_READ) {
        client_recv(c, got, a->length);
        fill(expected, a->offset, a->length);
        assert_memory_equal(got, expected, a->length);
    }
    s->n_answered++;
    a->is_pending = false;
}

static void *take_replies(void *arg)
{
    Session *s = arg;
    while (!s->has_asked_all || s->n_answered < s->n_asked) {
        if (s->n_answered < s->n_asked)
            expect_one(s);
    }
    return NULL;
}

// On a slow machine the connection may pass over a loop without a request.
static bool both_have_read(Fixture *f)
{
    NbdsExportStats stats[2];
    for (unsigned i = 0; i < 2; i++)
        nbds_export_get_stats(f->exports[i], &stats[i]);
    return stats[0].n_requests[NBDS_OPERATION_READ] && stats[1].n_requests[NBDS_OPERATION_READ];
}

// While it moves it is nobody's.
static unsigned wait_for_end_of_move(Fixture *f)
{
    NbdsExportStats stats[2];
    do {
        for (unsigned i = 0; i < 2; i++)
            nbds_export_get_stats(f->exports[i], &stats[i]);
    } while (stats[0].n_clients + stats[1].n_clients == 0);
    return stats[0].n_clients + stats[1].n_clients;
}

static void a_connection_moves_under_load_and_nothing_is_lost(void **state)
{
    FixtureConfig config = {
        .two_loops = true, .spreads_exports = true, .n_exports = 2, .names = {"a", "b"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(remote_call(nbds_export_loop(f->exports[i]), fill_node, f->nodes[i]), 0);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    Moves moves = {.f = f};
    GThread *thread = g_thread_new("mover", mover, &moves);
    Session s = {.client = c};
    GThread *taker = g_thread_new("replies", take_replies, &s);
    while (moves.n_moves < N_MOVES || s.n_asked < 5000 || !both_have_read(f)) {
        for (unsigned i = 0; i < DEPTH; i++) {
            if (!s.asked[i].is_pending)
                ask(&s, i, s.n_asked);
        }
    }
    s.has_asked_all = true;
    g_thread_join(taker);
    moves.is_done = true;
    g_thread_join(thread);
    uint8_t data[512];
    assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
    NbdsExportStats stats[2];
    for (unsigned i = 0; i < 2; i++) {
        nbds_export_get_stats(f->exports[i], &stats[i]);
        assert_int_equal(stats[i].n_in_flight, 0);
        assert_true(stats[i].n_requests[NBDS_OPERATION_READ] > 0);
        g_autofree uint8_t *expected = g_malloc(SIZE);
        fill(expected, 0, SIZE);
        assert_memory_equal(f->nodes[i]->data, expected, SIZE);
    }
    assert_int_equal(wait_for_end_of_move(f), 1);
}

static void a_request_cut_in_two_by_a_move_is_done_once(void **state)
{
    FixtureConfig config = {
        .two_loops = true, .spreads_exports = true, .n_exports = 2, .names = {"a", "b"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    Moves moves = {.f = f};
    uint8_t request[HEAD + 4096] = {0x25, 0x60, 0x95, 0x13, 0, 0, 0, NBDS_CMD_WRITE};
    request[HEAD - 2] = 4096 >> 8;
    memset(request + HEAD, 0xab, 4096);
    for (size_t at = 1; at < sizeof request; at = at < 40 ? at + 1 : at + 500) {
        client_send(c, request, at);
        Loop *loop = nbds_export_loop(f->exports[moves.from]);
        unsigned n = moves.n_moves;
        while (moves.n_moves == n) // it may still be on its way here
            assert_int_equal(remote_call(loop, move_all, &moves), 0);
        moves.from = !moves.from;
        client_send(c, request + at, sizeof request - at);
        uint8_t head[NBDS_SIMPLE_REPLY_BYTES];
        client_recv(c, head, sizeof head);
        assert_int_equal(nbds_wire_get_u32(head + 4), 0);
        assert_int_equal(f->nodes[0]->n_writes + f->nodes[1]->n_writes, moves.n_moves);
    }
}

static void a_connection_under_way_is_closed_when_the_server_stops(void **state)
{
    for (unsigned i = 0; i < 20; i++) {
        FixtureConfig config = {
            .two_loops = true, .spreads_exports = true, .n_exports = 2, .names = {"a", "b"}};
        g_autoptr(Fixture) f = fixture_new(&config);
        g_autoptr(Client) c = client_new(f->socket_path, &simple);
        uint8_t data[512];
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
        Moves moves = {.f = f};
        assert_int_equal(remote_call(nbds_export_loop(f->exports[0]), move_all, &moves), 0);
        fixture_begin_stop(f);
        assert_true(client_at_end(c));
    }
}

// --- exports that move ---

typedef struct ExportMove {
    Fixture *f;
    unsigned to; // which loop
    int result;
    unsigned n_moves;
    atomic_bool is_done;
} ExportMove;

static void move_export(Fiber *self, void *arg)
{
    ExportMove *m = arg;
    g_autoptr(GError) error = NULL;
    Node *node = &m->f->nodes[0]->node;
    m->result = component_move(self, &(ComponentMove){&node, 1, m->f->loops[m->to]}, &error);
    if (m->result < 0)
        assert_non_null(strstr(error->message, "does not take its replies"));
}

// Between two moves at least one request is answered.
static void *export_mover(void *arg)
{
    ExportMove *m = arg;
    for (; !m->is_done; m->to = !m->to) {
        NbdsExportStats before, now;
        nbds_export_get_stats(m->f->exports[0], &before);
        assert_int_equal(remote_call(m->f->loops[0], move_export, m), 0);
        assert_int_equal(m->result, 0);
        m->n_moves++;
        do
            nbds_export_get_stats(m->f->exports[0], &now);
        while (!m->is_done &&
               now.n_requests[NBDS_OPERATION_READ] == before.n_requests[NBDS_OPERATION_READ]);
    }
    return NULL;
}

// Clients that come, read and go, so that some come in the middle of a move.
static void *visitors(void *arg)
{
    ExportMove *m = arg;
    while (!m->is_done) {
        uint8_t data[512], expected[512];
        g_autoptr(Client) c = client_new(m->f->socket_path, &simple);
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 4096, sizeof data, data), 0);
        fill(expected, 4096, sizeof expected);
        assert_memory_equal(data, expected, sizeof data);
    }
    return NULL;
}

static void an_export_moves_under_load_and_nothing_is_lost(void **state)
{
    FixtureConfig config = {.two_loops = true, .names = {"a"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    fixture_run(f, fill_node, f->nodes[0]);
    g_autoptr(Client) c = client_new(f->socket_path, &simple);
    ExportMove move = {.f = f};
    GThread *thread = g_thread_new("mover", export_mover, &move);
    GThread *others = g_thread_new("visitors", visitors, &move);
    Session s = {.client = c};
    GThread *taker = g_thread_new("replies", take_replies, &s);
    while (move.n_moves < N_MOVES || s.n_asked < 5000) {
        for (unsigned i = 0; i < DEPTH; i++) {
            if (!s.asked[i].is_pending)
                ask(&s, i, s.n_asked);
        }
    }
    s.has_asked_all = true;
    g_thread_join(taker);
    move.is_done = true;
    g_thread_join(thread);
    g_thread_join(others);
    g_autofree uint8_t *expected = g_malloc(SIZE);
    fill(expected, 0, SIZE);
    assert_memory_equal(f->nodes[0]->data, expected, SIZE);
    NbdsExportStats stats;
    nbds_export_get_stats(f->exports[0], &stats);
    assert_int_equal(stats.n_in_flight, 0);
}

static void a_client_that_takes_no_replies_keeps_its_export_from_moving(void **state)
{
    FixtureConfig config = {.two_loops = true, .names = {"a"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    fixture_run(f, fill_node, f->nodes[0]);
    g_autoptr(Client) slow = client_new(f->socket_path, &simple);
    g_autoptr(Client) other = client_new(f->socket_path, &simple);
    Session s = {.client = slow};
    for (unsigned i = 0; i < DEPTH; i++) { // more than sockets hold
        Asked *a = &s.asked[i];
        *a = (Asked){NBDS_CMD_READ, 0, MAX_BYTES, true};
        client_request(slow, a->type, 0, i, a->offset, a->length, NULL, 0);
        s.n_asked++;
    }
    NbdsExportStats stats;
    do // until all are under way: it may be parked after a few, whose replies sockets hold
        nbds_export_get_stats(f->exports[0], &stats);
    while (stats.n_requests[NBDS_OPERATION_READ] < DEPTH);
    ExportMove move = {.f = f, .to = 0};
    assert_int_equal(remote_call(f->loops[0], move_export, &move), 0);
    assert_int_equal(move.result, -EBUSY);
    assert_ptr_equal(nbds_export_loop(f->exports[0]), f->loops[1]);
    uint8_t data[512];
    assert_int_equal(client_do(other, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
    while (s.n_answered < s.n_asked)
        expect_one(&s);
    assert_int_equal(client_do(slow, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
    assert_int_equal(remote_call(f->loops[0], move_export, &move), 0);
    assert_int_equal(move.result, 0);
    assert_ptr_equal(nbds_export_loop(f->exports[0]), f->loops[0]);
    assert_int_equal(client_do(slow, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
    assert_int_equal(client_do(other, NBDS_CMD_READ, 0, 0, sizeof data, data), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_connection_moves_under_load_and_nothing_is_lost),
        cmocka_unit_test(a_request_cut_in_two_by_a_move_is_done_once),
        cmocka_unit_test(a_connection_under_way_is_closed_when_the_server_stops),
        cmocka_unit_test(an_export_moves_under_load_and_nothing_is_lost),
        cmocka_unit_test(a_client_that_takes_no_replies_keeps_its_export_from_moving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
