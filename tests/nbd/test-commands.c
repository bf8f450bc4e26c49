// SPDX-License-Identifier: LGPL-2.1-or-later
// Every command through a real socket, in each style of headers: what it does to the node, what is
// answered, and that client and server stay in step after each refusal.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "client.h"
#include "connection.h"
#include "fixture.h"

enum { SIZE = 1 << 20 };

static Client *connect_to(Fixture *f, NbdsStyle style)
{
    ClientConfig config = {.style = style, .contexts = style != NBDS_STYLE_SIMPLE};
    return client_new(f->socket_path, &config);
}

static void fill(uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (i * 7 + i / 251 + seed) | 1; // never zero
}

static void assert_in_step(Client *c)
{
    uint8_t data[512];
    assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, sizeof data, data), NBDS_OK);
}

#define for_each_style(style)                                                                      \
    for (NbdsStyle style = NBDS_STYLE_SIMPLE; style <= NBDS_STYLE_EXTENDED; style++)

static void what_was_written_is_read_back(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    static const struct {
        uint64_t offset, length;
    } ranges[] = {{0, 1}, {511, 513}, {4096, 4096}, {SIZE - 1, 1}, {100000, 300001}, {0, SIZE}};
    g_autofree uint8_t *written = g_malloc(SIZE), *got = g_malloc(SIZE);
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        assert_int_equal(c->size_bytes, SIZE);
        for (unsigned i = 0; i < G_N_ELEMENTS(ranges); i++) {
            fill(written, ranges[i].length, style * 16 + i);
            assert_int_equal(
                client_do(c, NBDS_CMD_WRITE, 0, ranges[i].offset, ranges[i].length, written), 0);
            assert_memory_equal(f->nodes[0]->data + ranges[i].offset, written, ranges[i].length);
            assert_int_equal(
                client_do(c, NBDS_CMD_READ, 0, ranges[i].offset, ranges[i].length, got), 0);
            assert_memory_equal(got, written, ranges[i].length);
        }
    }
}

static void pipelined_requests_of_all_sizes_are_all_answered(void **state)
{
    enum { N = 400 };
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autofree uint8_t *data = g_malloc(SIZE);
    fill(data, SIZE, 3);
    for_each_style(style)
    {
        memset(f->nodes[0]->data, 0, SIZE);
        g_autoptr(Client) c = connect_to(f, style);
        uint64_t offset = 0, length = 0;
        unsigned n_sent = 0;
        // Sizes around the receiver's limits; at most 64 replies unread.
        for (unsigned i = 0; i < N; i++) {
            static const uint32_t sizes[] = {1, 4096, 28, 65536, 512, 32768 + 28, 200000, 16384};
            length = sizes[i % G_N_ELEMENTS(sizes)];
            offset = (i * 7919u) % (SIZE - length);
            client_request(c, NBDS_CMD_WRITE, 0, i, offset, length, data + offset, length);
            if (++n_sent % 64 == 0 || i == N - 1) {
                bool answered[N] = {false};
                for (; n_sent; n_sent--) {
                    ClientReply reply;
                    // Extended replies carry their own request's offset: look it up.
                    uint64_t of = 0;
                    if (style == NBDS_STYLE_EXTENDED) {
                        uint8_t head[32];
                        client_recv(c, head, 32);
                        reply = (ClientReply){.cookie = nbds_wire_get_u64(head + 8)};
                        of = nbds_wire_get_u64(head + 16);
                        uint32_t size = sizes[reply.cookie % G_N_ELEMENTS(sizes)];
                        assert_int_equal(of, (reply.cookie * 7919u) % (SIZE - size));
                    } else {
                        client_reply(c, NBDS_CMD_WRITE, 0, 0, NULL, &reply);
                    }
                    assert_int_equal(reply.error, 0);
                    assert_in_range(reply.cookie, 0, N - 1);
                    assert_false(answered[reply.cookie]);
                    answered[reply.cookie] = true;
                }
            }
        }
        for (unsigned i = 0; i < SIZE; i++) {
            if (f->nodes[0]->data[i])
                assert_int_equal(f->nodes[0]->data[i], data[i]);
        }
    }
}

static void requests_in_dribbles_are_understood(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_SIMPLE);
    uint8_t request[28 + 100] = {0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1};
    nbds_wire_put_u32(request + 24, 100);
    fill(request + 28, 100, 9);
    for (size_t i = 0; i < sizeof request; i++)
        client_send(c, request + i, 1);
    ClientReply reply;
    client_reply(c, NBDS_CMD_WRITE, 0, 100, NULL, &reply);
    assert_int_equal(reply.error, 0);
    assert_memory_equal(f->nodes[0]->data, request + 28, 100);
}

static void zeroes_trim_flush_and_cache_reach_the_node(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    MemoryNode *m = f->nodes[0];
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        unsigned n_zeroes = m->n_zeroes, n_discards = m->n_discards, n_flushes = m->n_flushes;
        memset(m->data, 1, SIZE);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, 4096, 8192, NULL), 0);
        assert_int_equal(m->data[4096], 0);
        assert_int_equal(m->data[12287], 0);
        assert_int_equal(m->data[12288], 1);
        assert_int_equal(client_do(c, NBDS_CMD_TRIM, 0, 65536, 65536, NULL), 0);
        assert_int_equal(client_do(c, NBDS_CMD_FLUSH, 0, 0, 0, NULL), 0);
        unsigned n_reads = m->n_reads;
        assert_int_equal(client_do(c, NBDS_CMD_CACHE, 0, 0, SIZE, NULL), 0);
        assert_true(m->n_reads > n_reads);
        assert_int_equal(m->n_zeroes, n_zeroes + 1);
        assert_int_equal(m->n_discards, n_discards + 1);
        assert_int_equal(m->n_flushes, n_flushes + 1);
    }
}

static void fua_is_passed_on_with_everything_that_writes(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_STRUCTURED);
    uint8_t data[512] = {1};
    assert_int_equal(client_do(c, NBDS_CMD_WRITE, NBDS_CMD_FLAG_FUA, 0, 512, data), 0);
    assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, NBDS_CMD_FLAG_FUA, 0, 512, NULL), 0);
    assert_int_equal(client_do(c, NBDS_CMD_TRIM, NBDS_CMD_FLAG_FUA, 0, 512, NULL), 0);
    assert_int_equal(f->nodes[0]->n_fua, 3);
    assert_int_equal(client_do(c, NBDS_CMD_READ, NBDS_CMD_FLAG_FUA, 0, 512, data), 0);
    assert_int_equal(client_do(c, NBDS_CMD_FLUSH, NBDS_CMD_FLAG_FUA, 0, 0, NULL), 0);
    assert_int_equal(client_do(c, NBDS_CMD_CACHE, NBDS_CMD_FLAG_FUA, 0, 512, NULL), 0);
    assert_int_equal(client_do(c, NBDS_CMD_BLOCK_STATUS, NBDS_CMD_FLAG_FUA, 0, 512, NULL), 0);
}

static void requests_of_no_bytes_are_answered(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, SIZE, 0, NULL), 0);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, 0, 0, NULL), 0);
        assert_int_equal(client_do(c, NBDS_CMD_TRIM, 0, 0, 0, NULL), 0);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, SIZE, 0, NULL), 0);
        assert_int_equal(client_do(c, NBDS_CMD_CACHE, 0, 0, 0, NULL), 0);
        assert_int_equal(client_do(c, NBDS_CMD_BLOCK_STATUS, 0, 0, 0, NULL), NBDS_EINVAL);
        assert_in_step(c);
    }
}

static void an_extended_write_without_the_payload_flag_is_served(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_EXTENDED);
    uint8_t data[512];
    fill(data, sizeof data, 1);
    client_request(c, NBDS_CMD_WRITE, NBDS_CMD_FLAG_FUA, 7, 0, sizeof data, NULL, 0);
    client_send(c, data, sizeof data);
    ClientReply reply;
    client_reply(c, NBDS_CMD_WRITE, 0, sizeof data, NULL, &reply);
    assert_int_equal(reply.error, 0);
    assert_memory_equal(f->nodes[0]->data, data, sizeof data);
    assert_in_step(c);
}

static void refusals_leave_client_and_server_in_step(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autofree uint8_t *data = g_malloc0(NBDS_MAX_PAYLOAD + 4096);
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, SIZE - 1, 2, NULL), NBDS_EINVAL);
        assert_in_step(c);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, SIZE - 1, 4096, data), NBDS_ENOSPC);
        assert_in_step(c);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, UINT64_MAX - 5, 4096, data), NBDS_ENOSPC);
        assert_in_step(c);
        assert_int_equal(client_do(c, 77, 0, 0, 0, NULL), NBDS_EINVAL);
        assert_in_step(c);
        assert_int_equal(client_do(c, NBDS_CMD_TRIM, 1 << 9, 0, 512, NULL), NBDS_EINVAL);
        assert_in_step(c);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 1 << 9, 0, 100000, data), NBDS_EINVAL);
        assert_in_step(c);
        assert_int_equal(f->nodes[0]->n_writes, 0);
        if (style == NBDS_STYLE_EXTENDED)
            continue; // an oversized payload ends the connection there
        uint32_t error = client_do(c, NBDS_CMD_WRITE, 0, 0, NBDS_MAX_PAYLOAD + 4096, data);
        assert_true(error == NBDS_ENOSPC || error == NBDS_EINVAL);
        assert_in_step(c);
    }
}

static void abuse_ends_the_connection_only(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) other = connect_to(f, NBDS_STYLE_SIMPLE);
    {
        g_autoptr(Client) c = connect_to(f, NBDS_STYLE_SIMPLE);
        client_request(c, NBDS_CMD_WRITE, 0, 1, 0, UINT32_MAX, NULL, 0); // 4 GiB to come
        assert_true(client_at_end(c));
    }
    {
        g_autoptr(Client) c = connect_to(f, NBDS_STYLE_EXTENDED);
        client_request(c, NBDS_CMD_READ, NBDS_CMD_FLAG_PAYLOAD_LEN, 1, 0, UINT64_MAX, NULL, 0);
        assert_true(client_at_end(c));
    }
    {
        g_autoptr(Client) c = connect_to(f, NBDS_STYLE_STRUCTURED);
        client_send(c, "this is not a request of any kind", 33);
        assert_true(client_at_end(c));
    }
    assert_in_step(other);
}

static void errors_of_the_node_reach_the_client(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    uint8_t data[4096] = {0};
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        f->nodes[0]->fail_with = -EIO;
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, 4096, data), NBDS_EIO);
        assert_int_equal(client_do(c, NBDS_CMD_FLUSH, 0, 0, 0, NULL), NBDS_EIO);
        assert_int_equal(client_do(c, NBDS_CMD_CACHE, 0, 0, 512, NULL), NBDS_EIO);
        if (style != NBDS_STYLE_SIMPLE)
            assert_int_equal(client_do(c, NBDS_CMD_BLOCK_STATUS, 0, 0, 512, NULL), NBDS_EIO);
        f->nodes[0]->fail_with = -ENOSPC;
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, 0, 4096, data), NBDS_ENOSPC);
        f->nodes[0]->fail_with = -EDQUOT;
        assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, 0, 4096, NULL), NBDS_ENOSPC);
        f->nodes[0]->fail_with = -ENOTSUP; // nobody asked for speed
        assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, 0, 4096, NULL), NBDS_EIO);
        f->nodes[0]->fail_with = 0;
        assert_in_step(c);
    }
}

static void fast_zero_is_fast_or_not_supported(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_SIMPLE);
    MemoryNode *m = f->nodes[0];
    memset(m->data, 5, SIZE);
    m->no_fast_zero = true;
    assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, NBDS_CMD_FLAG_FAST_ZERO, 0, 4096, NULL),
                     NBDS_ENOTSUP);
    assert_int_equal(m->data[0], 5); // untouched
    assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, 0, 4096, NULL), 0);
    assert_int_equal(m->data[0], 0);
    m->no_fast_zero = false;
    assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, NBDS_CMD_FLAG_FAST_ZERO, 4096, 4096, NULL),
                     0);
    assert_int_equal(m->data[4096], 0);
}

static void look_at_its_turn(Fiber *self, void *arg)
{
    void **args = arg;
    const Fixture *f = args[0];
    const NbdsConnection *c = g_queue_peek_head(&f->exports[0]->server_loop->connections);
    *(int64_t *)args[1] = c->flow.deficit_bytes;
}

static void a_fast_zero_that_is_not_supported_costs_no_turns(void **state)
{
    FixtureConfig config = {.size_bytes = 256 << 20};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_SIMPLE);
    f->nodes[0]->no_fast_zero = true;
    assert_int_equal(
        client_do(c, NBDS_CMD_WRITE_ZEROES, NBDS_CMD_FLAG_FAST_ZERO, 0, 256 << 20, NULL),
        NBDS_ENOTSUP);
    int64_t left = 0;
    fixture_run(f, look_at_its_turn, (void *[]){f, &left});
    assert_true(left > 0);
}

static void a_read_only_export_cannot_be_changed(void **state)
{
    FixtureConfig config = {.read_only = true};
    g_autoptr(Fixture) f = fixture_new(&config);
    uint8_t data[512] = {1};
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        assert_true(c->flags & NBDS_FLAG_READ_ONLY);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, 0, 512, data), NBDS_EPERM);
        assert_int_equal(client_do(c, NBDS_CMD_TRIM, 0, 0, 512, NULL), NBDS_EPERM);
        assert_int_equal(client_do(c, NBDS_CMD_WRITE_ZEROES, 0, 0, 512, NULL), NBDS_EPERM);
        assert_int_equal(client_do(c, NBDS_CMD_FLUSH, 0, 0, 0, NULL), 0);
        assert_in_step(c);
    }
    assert_int_equal(f->nodes[0]->n_writes + f->nodes[0]->n_discards + f->nodes[0]->n_zeroes, 0);
}

static void large_reads_send_holes_and_cover_everything(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autofree uint8_t *data = g_malloc(65536), *got = g_malloc(SIZE);
    fill(data, 65536, 1);
    g_autoptr(Client) writer = connect_to(f, NBDS_STYLE_SIMPLE);
    assert_int_equal(client_do(writer, NBDS_CMD_WRITE, 0, 300 << 10, 65536, data), 0);
    assert_int_equal(client_do(writer, NBDS_CMD_WRITE, 0, 700001, 1, data), 0);
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        ClientReply reply;
        memset(got, 0xee, SIZE);
        client_request(c, NBDS_CMD_READ, 0, 1, 1, SIZE - 2, NULL, 0);
        client_reply(c, NBDS_CMD_READ, 1, SIZE - 2, got + 1, &reply);
        assert_memory_equal(got + 1, f->nodes[0]->data + 1, SIZE - 2);
        if (style != NBDS_STYLE_SIMPLE) {
            assert_int_equal(reply.n_holes, 3);
            assert_int_equal(reply.n_data, 2);
            memset(got, 0xee, SIZE);
            client_request(c, NBDS_CMD_READ, NBDS_CMD_FLAG_DF, 2, 0, SIZE, NULL, 0);
            client_reply(c, NBDS_CMD_READ, 0, SIZE, got, &reply);
            assert_memory_equal(got, f->nodes[0]->data, SIZE);
            assert_int_equal(reply.n_chunks, 1);
        }
        client_request(c, NBDS_CMD_READ, 0, 3, 0, 4096, NULL, 0); // small: one chunk, no look-up
        client_reply(c, NBDS_CMD_READ, 0, 4096, got, &reply);
        assert_int_equal(reply.n_data, style == NBDS_STYLE_SIMPLE ? 0 : 1);
        assert_int_equal(reply.n_holes, 0);
    }
}

static void very_fragmented_reads_still_cover_everything(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_STRUCTURED);
    uint8_t byte = 1;
    for (unsigned i = 0; i < SIZE; i += 8192)
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, i, 1, &byte), 0);
    g_autofree uint8_t *got = g_malloc(SIZE);
    ClientReply reply;
    client_request(c, NBDS_CMD_READ, 0, 1, 0, SIZE, NULL, 0);
    client_reply(c, NBDS_CMD_READ, 0, SIZE, got, &reply);
    assert_true(reply.n_holes > 4);
    assert_in_range(reply.n_chunks, 5, 64);
    assert_memory_equal(got, f->nodes[0]->data, SIZE);
}

static void reads_and_writes_of_the_maximum_size_work(void **state)
{
    FixtureConfig config = {.size_bytes = NBDS_MAX_PAYLOAD + 4096};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autofree uint8_t *data = g_malloc(NBDS_MAX_PAYLOAD), *got = g_malloc(NBDS_MAX_PAYLOAD);
    fill(data, NBDS_MAX_PAYLOAD, 77);
    for_each_style(style)
    {
        g_autoptr(Client) c = connect_to(f, style);
        uint64_t offset = style * 512;
        assert_int_equal(client_do(c, NBDS_CMD_WRITE, 0, offset, NBDS_MAX_PAYLOAD, data), 0);
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, offset, NBDS_MAX_PAYLOAD, got), 0);
        assert_memory_equal(got, data, NBDS_MAX_PAYLOAD);
        NbdsErrorCode too_big = style == NBDS_STYLE_SIMPLE ? NBDS_EINVAL : NBDS_EOVERFLOW;
        assert_int_equal(client_do(c, NBDS_CMD_READ, 0, 0, NBDS_MAX_PAYLOAD + 1, NULL), too_big);
        assert_in_step(c);
    }
}

// --- BLOCK_STATUS ---

static void status(Client *c, uint16_t flags, uint64_t offset, uint64_t length, ClientReply *reply)
{
    client_request(c, NBDS_CMD_BLOCK_STATUS, flags, 5, offset, length, NULL, 0);
    client_reply(c, NBDS_CMD_BLOCK_STATUS, offset, length, NULL, reply);
}

static void assert_extents(GArray *extents, unsigned n, const ClientExtent *expected)
{
    assert_int_equal(extents->len, n);
    for (unsigned i = 0; i < n; i++) {
        ClientExtent *e = &g_array_index(extents, ClientExtent, i);
        assert_int_equal(e->length, expected[i].length);
        assert_int_equal(e->flags, expected[i].flags);
    }
}

static void status_tells_both_contexts(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    uint8_t data[8192] = {1};
    for (NbdsStyle style = NBDS_STYLE_STRUCTURED; style <= NBDS_STYLE_EXTENDED; style++) {
        g_autoptr(Client) c = connect_to(f, style);
        client_do(c, NBDS_CMD_TRIM, 0, 0, SIZE, NULL);
        client_do(c, NBDS_CMD_WRITE, 0, 65536, 8192, data);
        client_do(c, NBDS_CMD_WRITE_ZEROES, 0, 65536 + 8192, 4096, NULL);
        client_do(c, NBDS_CMD_WRITE_ZEROES, NBDS_CMD_FLAG_NO_HOLE, 65536 + 12288, 4096, NULL);
        ClientReply reply;
        status(c, 0, 0, SIZE, &reply);
        assert_int_equal(reply.n_chunks, 2);
        static const ClientExtent allocation[] = {{65536, 3}, {8192, 0}, {SIZE - 65536 - 8192, 3}};
        static const ClientExtent depth[] = {{65536, 0}, {16384, 1}, {SIZE - 65536 - 16384, 0}};
        assert_extents(reply.extents[0], 3, allocation);
        assert_extents(reply.extents[1], 3, depth);
        client_reply_clear(&reply);

        status(c, NBDS_CMD_FLAG_REQ_ONE, 65536 + 512, SIZE / 2, &reply);
        static const ClientExtent one_allocation[] = {{8192 - 512, 0}};
        static const ClientExtent one_depth[] = {{16384 - 512, 1}};
        assert_extents(reply.extents[0], 1, one_allocation);
        assert_extents(reply.extents[1], 1, one_depth);
        client_reply_clear(&reply);

        status(c, NBDS_CMD_FLAG_REQ_ONE, 100, 50, &reply); // never beyond the request
        static const ClientExtent inside[] = {{50, 3}};
        assert_extents(reply.extents[0], 1, inside);
        client_reply_clear(&reply);
    }
}

static void status_with_a_payload_answers_only_those_contexts(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_EXTENDED);
    assert_true(c->flags & NBDS_FLAG_BLOCK_STATUS_PAYLOAD);
    uint8_t payload[16];
    nbds_wire_put_u64(payload, 4096);
    nbds_wire_put_u32(payload + 8, c->context_ids[1]);
    ClientReply reply;
    client_request(c, NBDS_CMD_BLOCK_STATUS, 0, 5, 0, 12, payload, 12);
    client_reply(c, NBDS_CMD_BLOCK_STATUS, 0, 12, NULL, &reply);
    assert_int_equal(reply.error, 0);
    assert_null(reply.extents[0]);
    static const ClientExtent depth[] = {{4096, 0}};
    assert_extents(reply.extents[1], 1, depth);
    client_reply_clear(&reply);
    nbds_wire_put_u32(payload + 12, c->context_ids[1]); // twice
    client_request(c, NBDS_CMD_BLOCK_STATUS, 0, 6, 0, 16, payload, 16);
    client_reply(c, NBDS_CMD_BLOCK_STATUS, 0, 16, NULL, &reply);
    assert_int_equal(reply.error, NBDS_EINVAL);
    client_reply_clear(&reply);
    assert_in_step(c);
}

static void status_without_contexts_is_refused(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    ClientConfig plain = {.style = NBDS_STYLE_STRUCTURED};
    g_autoptr(Client) c = client_new(f->socket_path, &plain);
    assert_int_equal(client_do(c, NBDS_CMD_BLOCK_STATUS, 0, 0, 512, NULL), NBDS_EINVAL);
    assert_in_step(c);
}

static void statistics_count_what_was_answered(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_SIMPLE);
    uint8_t data[4096] = {0};
    client_do(c, NBDS_CMD_READ, 0, 0, 4096, data);
    client_do(c, NBDS_CMD_READ, 0, 0, 512, data);
    client_do(c, NBDS_CMD_READ, 0, SIZE, 512, data); // refused
    client_do(c, NBDS_CMD_WRITE, 0, 0, 1024, data);
    NbdsExportStats stats;
    nbds_export_get_stats(f->exports[0], &stats);
    assert_int_equal(stats.n_requests[NBDS_OPERATION_READ], 3);
    assert_int_equal(stats.n_errors[NBDS_OPERATION_READ], 1);
    assert_int_equal(stats.bytes[NBDS_OPERATION_READ], 4608);
    assert_int_equal(stats.bytes[NBDS_OPERATION_WRITE], 1024);
    assert_int_equal(stats.n_in_flight, 0);
    assert_int_equal(stats.n_clients, 1);
}

static uint64_t sum_of_latencies(const NbdsExportStats *stats, NbdsOperation o, unsigned from)
{
    uint64_t n = 0;
    for (unsigned i = from; i < NBDS_N_LATENCIES; i++)
        n += stats->latencies[o][i];
    return n;
}

static void latencies_are_counted_from_start_to_reply(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Client) c = connect_to(f, NBDS_STYLE_SIMPLE);
    uint8_t data[4096];
    client_do(c, NBDS_CMD_READ, 0, 0, 4096, data);
    client_do(c, NBDS_CMD_READ, 0, SIZE, 512, data); // refused: has none
    fixture_hold(f, 0);
    client_request(c, NBDS_CMD_READ, 0, 1, 0, 512, NULL, 0);
    wait_at_least(&f->nodes[0]->n_waiting, 1);
    g_usleep(1024); // at least so long
    fixture_release(f, 0);
    ClientReply reply;
    client_reply(c, NBDS_CMD_READ, 0, 512, data, &reply);
    client_reply_clear(&reply);
    NbdsExportStats stats;
    nbds_export_get_stats(f->exports[0], &stats);
    assert_int_equal(sum_of_latencies(&stats, NBDS_OPERATION_READ, 0), 2);
    assert_in_range(sum_of_latencies(&stats, NBDS_OPERATION_READ, 11), 1, 2);
    assert_int_equal(sum_of_latencies(&stats, NBDS_OPERATION_WRITE, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read_back),
        cmocka_unit_test(pipelined_requests_of_all_sizes_are_all_answered),
        cmocka_unit_test(requests_in_dribbles_are_understood),
        cmocka_unit_test(zeroes_trim_flush_and_cache_reach_the_node),
        cmocka_unit_test(fua_is_passed_on_with_everything_that_writes),
        cmocka_unit_test(requests_of_no_bytes_are_answered),
        cmocka_unit_test(an_extended_write_without_the_payload_flag_is_served),
        cmocka_unit_test(refusals_leave_client_and_server_in_step),
        cmocka_unit_test(abuse_ends_the_connection_only),
        cmocka_unit_test(errors_of_the_node_reach_the_client),
        cmocka_unit_test(fast_zero_is_fast_or_not_supported),
        cmocka_unit_test(a_fast_zero_that_is_not_supported_costs_no_turns),
        cmocka_unit_test(a_read_only_export_cannot_be_changed),
        cmocka_unit_test(large_reads_send_holes_and_cover_everything),
        cmocka_unit_test(very_fragmented_reads_still_cover_everything),
        cmocka_unit_test(reads_and_writes_of_the_maximum_size_work),
        cmocka_unit_test(status_tells_both_contexts),
        cmocka_unit_test(status_with_a_payload_answers_only_those_contexts),
        cmocka_unit_test(status_without_contexts_is_refused),
        cmocka_unit_test(statistics_count_what_was_answered),
        cmocka_unit_test(latencies_are_counted_from_start_to_reply),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
