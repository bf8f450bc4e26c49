// SPDX-License-Identifier: LGPL-2.1-or-later
// BLOCK_STATUS of many metadata contexts through sockets: a kind of context that only this file
// knows stands for dirty bitmaps.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "context.h"
#include "export.h"
#include "fixture.h"

enum { SIZE = 1 << 20, MAX_CONTEXTS = 256 };

// Flags alternate between 0 and its id from block to block.
typedef struct Stripes {
    NbdsContext context;
    uint64_t block_bytes;
    atomic_uint *n_released;
} Stripes;

static int walk_stripes(Fiber *self, Node *node, NbdsWalk *walk)
{
    for (unsigned n = 0; n < NBDS_WALK_STEPS && walk->offset < walk->end; n++) {
        uint64_t length = walk->end - walk->offset;
        for (unsigned i = 0; i < walk->n; i++) {
            uint64_t block_bytes = ((Stripes *)walk->contexts[i])->block_bytes;
            length = MIN(length, block_bytes - walk->offset % block_bytes);
        }
        bool is_wanted = false;
        for (unsigned i = 0; i < walk->n; i++) {
            const Stripes *s = (Stripes *)walk->contexts[i];
            uint64_t flags = walk->offset / s->block_bytes % 2 ? s->context.id : 0;
            is_wanted |= nbds_extent_list_add(&walk->lists[i], length, flags);
        }
        if (is_wanted)
            walk->offset += length;
        else
            walk->end = walk->offset;
    }
    return 0;
}

static void release_stripes(Fiber *self, NbdsContext *context)
{
    (*((Stripes *)context)->n_released)++;
}

static const NbdsContextKind stripes_kind = {walk_stripes, release_stripes};

// The i-th has blocks of (i % 8 + 1) * 512 bytes.
static void add_stripes(Fixture *f, unsigned n, atomic_uint *n_released)
{
    GPtrArray *contexts = (GPtrArray *)f->exports[0]->info.contexts;
    for (unsigned i = 0; i < n; i++) {
        Stripes *s = g_new0(Stripes, 1);
        g_autofree char *name = g_strdup_printf("qemu:dirty-bitmap:stripes%u", i);
        s->block_bytes = 512 * (i % 8 + 1);
        s->n_released = n_released;
        nbds_context_init(&s->context, &stripes_kind, name, contexts);
    }
}

// --- A client that selects every context ---

typedef struct Answer {
    uint32_t id;
    GArray *extents; // of ClientExtent
} Answer;

static void answer_clear(void *p)
{
    g_array_unref(((Answer *)p)->extents);
}

typedef struct Selected {
    Client c;
    unsigned n;
    uint32_t ids[MAX_CONTEXTS];
} Selected;

static void append_string(GByteArray *a, const char *s)
{
    uint8_t len[4];
    nbds_wire_put_u32(len, strlen(s));
    g_byte_array_append(a, len, 4);
    g_byte_array_append(a, (const uint8_t *)s, strlen(s));
}

static void select_all(Selected *s, const GPtrArray *contexts)
{
    g_autoptr(GByteArray) option = g_byte_array_new();
    uint8_t n[4];
    append_string(option, "");
    nbds_wire_put_u32(n, contexts->len);
    g_byte_array_append(option, n, 4);
    for (unsigned i = 0; i < contexts->len; i++)
        append_string(option, ((NbdsContext *)contexts->pdata[i])->name);
    client_send_option(&s->c, NBDS_OPT_SET_META_CONTEXT, option->data, option->len);
    for (;;) {
        g_autoptr(GByteArray) data = NULL;
        uint32_t type = client_recv_option_reply(&s->c, NBDS_OPT_SET_META_CONTEXT, &data);
        if (type == NBDS_REP_ACK)
            return;
        assert_int_equal(type, NBDS_REP_META_CONTEXT);
        s->ids[s->n++] = nbds_wire_get_u32(data->data);
    }
}

static Selected *selected_new(Fixture *f)
{
    Selected *s = g_new0(Selected, 1);
    uint8_t greeting[18];
    s->c = (Client){.fd = client_connect(f->socket_path), .style = NBDS_STYLE_EXTENDED};
    client_recv(&s->c, greeting, 18);
    client_send(&s->c, (const uint8_t[]){0, 0, 0, 3}, 4);
    client_send_option(&s->c, NBDS_OPT_EXTENDED_HEADERS, NULL, 0);
    assert_int_equal(client_recv_option_reply(&s->c, NBDS_OPT_EXTENDED_HEADERS, NULL),
                     NBDS_REP_ACK);
    select_all(s, f->exports[0]->info.contexts);
    client_send_option(&s->c, NBDS_OPT_GO, "\0\0\0\0\0\0", 6);
    while (client_recv_option_reply(&s->c, NBDS_OPT_GO, NULL) != NBDS_REP_ACK)
        continue;
    return s;
}

static void selected_free(Selected *s)
{
    close(s->c.fd);
    g_free(s);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Selected, selected_free)

static Answer recv_chunk(Client *c, bool *ret_is_last)
{
    uint8_t head[32];
    client_recv(c, head, 32);
    assert_int_equal(nbds_wire_get_u16(head + 6), NBDS_CHUNK_BLOCK_STATUS_EXT);
    *ret_is_last = nbds_wire_get_u16(head + 4) & NBDS_REPLY_FLAG_DONE;
    uint64_t bytes = nbds_wire_get_u64(head + 24);
    g_autofree uint8_t *payload = g_malloc(bytes);
    client_recv(c, payload, bytes);
    Answer answer = {nbds_wire_get_u32(payload), g_array_new(false, false, sizeof(ClientExtent))};
    assert_int_equal(bytes, 8 + 16 * nbds_wire_get_u32(payload + 4));
    for (uint64_t at = 8; at < bytes; at += 16) {
        ClientExtent e = {nbds_wire_get_u64(payload + at), nbds_wire_get_u64(payload + at + 8)};
        assert_true(e.length > 0);
        g_array_append_val(answer.extents, e);
    }
    return answer;
}

static GArray *recv_answers(Selected *s)
{
    GArray *answers = g_array_new(false, false, sizeof(Answer));
    g_array_set_clear_func(answers, answer_clear);
    for (bool is_last = false; !is_last;) {
        Answer answer = recv_chunk(&s->c, &is_last);
        g_array_append_val(answers, answer);
    }
    return answers;
}

// What the stripes of `answer` should be; `i` is their number.
static void assert_stripes(const Answer *answer, unsigned i, uint64_t offset)
{
    uint64_t block_bytes = 512 * (i % 8 + 1);
    for (unsigned k = 0; k < answer->extents->len; k++) {
        ClientExtent e = g_array_index(answer->extents, ClientExtent, k);
        assert_int_equal(e.flags, offset / block_bytes % 2 ? answer->id : 0);
        bool is_last = k + 1 == answer->extents->len;
        assert_true(is_last || (offset + e.length) % block_bytes == 0);
        assert_in_range(e.length, 1, block_bytes);
        offset += e.length;
    }
}

// --- Tests ---

static void each_context_is_answered_in_a_chunk_of_its_own(void **state)
{
    enum { N = 20 };
    atomic_uint n_released = 0;
    FixtureConfig config = {.size_bytes = SIZE};
    g_autoptr(Fixture) f = fixture_new(&config);
    add_stripes(f, N, &n_released);
    g_autoptr(Selected) s = selected_new(f);
    assert_int_equal(s->n, N + 2);
    client_request(&s->c, NBDS_CMD_BLOCK_STATUS, 0, 1, 700, SIZE - 700, NULL, 0);
    g_autoptr(GArray) answers = recv_answers(s);
    assert_int_equal(answers->len, N + 2);
    for (unsigned i = 0; i < N + 2; i++) {
        const Answer *answer = &g_array_index(answers, Answer, i);
        assert_int_equal(answer->id, s->ids[i]);
        assert_in_range(answer->extents->len, 1, UINT32_MAX);
        if (i >= 2)
            assert_stripes(answer, i - 2, 700);
    }
}

static void one_extent_each_when_one_is_asked_for(void **state)
{
    enum { N = 5 };
    atomic_uint n_released = 0;
    FixtureConfig config = {.size_bytes = SIZE};
    g_autoptr(Fixture) f = fixture_new(&config);
    add_stripes(f, N, &n_released);
    g_autoptr(Selected) s = selected_new(f);
    client_request(&s->c, NBDS_CMD_BLOCK_STATUS, NBDS_CMD_FLAG_REQ_ONE, 1, 0, SIZE, NULL, 0);
    g_autoptr(GArray) answers = recv_answers(s);
    assert_int_equal(answers->len, N + 2);
    for (unsigned i = 0; i < N + 2; i++)
        assert_int_equal(g_array_index(answers, Answer, i).extents->len, 1);
}

static void a_payload_asks_for_some_of_many_contexts(void **state)
{
    enum { N = 40 };
    atomic_uint n_released = 0;
    FixtureConfig config = {.size_bytes = SIZE};
    g_autoptr(Fixture) f = fixture_new(&config);
    add_stripes(f, N, &n_released);
    g_autoptr(Selected) s = selected_new(f);
    uint8_t payload[8 + 12];
    nbds_wire_put_u64(payload, SIZE);
    nbds_wire_put_u32(payload + 8, s->ids[2 + 33]);
    nbds_wire_put_u32(payload + 12, s->ids[1]);
    nbds_wire_put_u32(payload + 16, s->ids[2 + 7]);
    client_request(&s->c, NBDS_CMD_BLOCK_STATUS, 0, 1, 0, sizeof payload, payload, sizeof payload);
    g_autoptr(GArray) answers = recv_answers(s);
    assert_int_equal(answers->len, 3);
    assert_int_equal(g_array_index(answers, Answer, 0).id, s->ids[1]);
    assert_int_equal(g_array_index(answers, Answer, 1).id, s->ids[2 + 7]);
    assert_int_equal(g_array_index(answers, Answer, 2).id, s->ids[2 + 33]);
    assert_stripes(&g_array_index(answers, Answer, 1), 7, 0);
}

static void many_contexts_share_what_a_request_may_hold(void **state)
{
    enum { N = MAX_CONTEXTS - 2 };
    atomic_uint n_released = 0;
    FixtureConfig config = {.size_bytes = SIZE};
    g_autoptr(Fixture) f = fixture_new(&config);
    add_stripes(f, N, &n_released);
    g_autoptr(Selected) s = selected_new(f);
    assert_int_equal(s->n, MAX_CONTEXTS);
    client_request(&s->c, NBDS_CMD_BLOCK_STATUS, 0, 1, 0, SIZE, NULL, 0);
    g_autoptr(GArray) answers = recv_answers(s);
    unsigned n_extents = 0;
    for (unsigned i = 0; i < MAX_CONTEXTS; i++) {
        n_extents += g_array_index(answers, Answer, i).extents->len;
        if (i >= 2)
            assert_stripes(&g_array_index(answers, Answer, i), i - 2, 0);
    }
    assert_in_range(n_extents, MAX_CONTEXTS, 8192);
}

static void what_contexts_pin_is_released_when_the_last_client_has_left(void **state)
{
    enum { N = 3 };
    atomic_uint n_released = 0;
    FixtureConfig config = {.size_bytes = SIZE};
    g_autoptr(Fixture) f = fixture_new(&config);
    add_stripes(f, N, &n_released);
    {
        g_autoptr(Selected) s G_GNUC_UNUSED = selected_new(f);
        assert_int_equal(n_released, 0);
    }
    wait_for_clients(f, 0);
    assert_int_equal(n_released, 0); // others may come
    g_autoptr(Selected) s G_GNUC_UNUSED = selected_new(f);
    fixture_remove_export(f, 0);
    assert_int_equal(n_released, N);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_context_is_answered_in_a_chunk_of_its_own),
        cmocka_unit_test(one_extent_each_when_one_is_asked_for),
        cmocka_unit_test(a_payload_asks_for_some_of_many_contexts),
        cmocka_unit_test(many_contexts_share_what_a_request_may_hold),
        cmocka_unit_test(what_contexts_pin_is_released_when_the_last_client_has_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
