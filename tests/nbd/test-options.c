// SPDX-License-Identifier: LGPL-2.1-or-later
// The options of the handshake, one at a time: what is answered, what is selected, and what an
// abusive option gets. No I/O.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "contexts.h"
#include "options.h"

typedef struct Reply {
    uint32_t type;
    const uint8_t *data;
    uint32_t len;
} Reply;

typedef struct Negotiation {
    NbdsOptions h;
    NbdsExportInfo *infos; // the table's
    NbdsExportTable *table;
    bool stopping;
    GPtrArray *contexts; // of every export
    GByteArray *data;    // of the option being built
    GByteArray *out;
    NbdsVerdict verdict;
    const NbdsExportInfo *chosen;
    Reply replies[16];
    unsigned n_replies;
} Negotiation;

static Negotiation *negotiation_new(unsigned n_exports)
{
    Negotiation *t = g_new0(Negotiation, 1);
    static const char *const names[] = {"web", "", "db"};
    t->contexts = nbds_contexts_new(NULL);
    t->infos = g_new0(NbdsExportInfo, n_exports);
    for (unsigned i = 0; i < n_exports; i++) {
        t->infos[i] = (NbdsExportInfo){.serial = i + 1,
                                       .name = names[i],
                                       .description = i ? "" : "web: 1 MiB raw",
                                       .size_bytes = 1 << 20,
                                       .preferred_bytes = 65536,
                                       .read_only = i == 2,
                                       .contexts = t->contexts};
    }
    t->table = nbds_export_table_new(t->infos, n_exports, NULL);
    t->data = g_byte_array_new();
    t->out = g_byte_array_new();
    return t;
}

static void negotiation_free(Negotiation *t)
{
    nbds_options_done(&t->h);
    nbds_export_table_unref(t->table);
    g_ptr_array_unref(t->contexts);
    g_byte_array_unref(t->data);
    g_byte_array_unref(t->out);
    g_free(t);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Negotiation, negotiation_free)

static void put_u32(Negotiation *t, uint32_t v)
{
    uint8_t p[4];
    nbds_wire_put_u32(p, v);
    g_byte_array_append(t->data, p, 4);
}

static void put_u16(Negotiation *t, uint16_t v)
{
    uint8_t p[2];
    nbds_wire_put_u16(p, v);
    g_byte_array_append(t->data, p, 2);
}

static void put_string(Negotiation *t, const char *s)
{
    put_u32(t, strlen(s));
    g_byte_array_append(t->data, (const uint8_t *)s, strlen(s));
}

static void parse_replies(Negotiation *t, const GByteArray *out, uint32_t option)
{
    t->n_replies = 0;
    for (uint32_t at = 0; at < out->len;) {
        assert_in_range(out->len - at, 20, UINT32_MAX);
        const uint8_t *p = out->data + at;
        assert_true(nbds_wire_get_u64(p) == 0x3e889045565a9);
        assert_int_equal(nbds_wire_get_u32(p + 8), option);
        uint32_t len = nbds_wire_get_u32(p + 16);
        assert_in_range(len, 0, out->len - at - 20);
        if (t->n_replies < G_N_ELEMENTS(t->replies))
            t->replies[t->n_replies++] = (Reply){nbds_wire_get_u32(p + 12), p + 20, len};
        at += 20 + len;
    }
}

// Sends the option with the data built so far.
static void option(Negotiation *t, uint32_t type)
{
    g_byte_array_set_size(t->out, 0);
    t->chosen = NULL;
    // An exact copy: a read past its end is seen by the sanitizer.
    g_autofree uint8_t *data = g_memdup2(t->data->data, t->data->len);
    t->verdict = nbds_options_execute(&t->h, t->table, t->stopping, type, data, t->data->len,
                                      t->out, &t->chosen);
    g_byte_array_set_size(t->data, 0);
    if (t->verdict == NBDS_VERDICT_LIST)
        parse_replies(t, t->table->list, type);
    else if (type != NBDS_OPT_EXPORT_NAME)
        parse_replies(t, t->out, type);
}

static void assert_single(Negotiation *t, NbdsRep type)
{
    assert_int_equal(t->verdict, NBDS_VERDICT_CONTINUE);
    assert_int_equal(t->n_replies, 1);
    assert_int_equal(t->replies[0].type, type);
}

static const Reply *find_info(const Negotiation *t, NbdsInfo type)
{
    for (unsigned i = 0; i < t->n_replies; i++) {
        if (t->replies[i].type == NBDS_REP_INFO && nbds_wire_get_u16(t->replies[i].data) == type)
            return &t->replies[i];
    }
    return NULL;
}

static void info(Negotiation *t, uint32_t type, const char *name)
{
    put_string(t, name);
    put_u16(t, 0);
    option(t, type);
}

static void meta(Negotiation *t, uint32_t type, const char *name, const char *query)
{
    put_string(t, name);
    put_u32(t, query ? 1 : 0);
    if (query)
        put_string(t, query);
    option(t, type);
}

// The only context that is selected, or "" when none is.
static const char *selected(const Negotiation *t)
{
    if (!t->h.contexts)
        return "";
    assert_int_equal(t->h.contexts->len, 1);
    return ((const NbdsContext *)t->h.contexts->pdata[0])->name;
}

static uint16_t flags_of(const Negotiation *t)
{
    return nbds_wire_get_u16(find_info(t, NBDS_INFO_EXPORT)->data + 10);
}

// --- Tests ---

static void unknown_client_flags_end_the_handshake(void **state)
{
    NbdsOptions h = {0};
    assert_true(nbds_options_client_flags(&h, 0));
    assert_false(h.no_zeroes);
    assert_true(nbds_options_client_flags(&h, 3));
    assert_true(h.no_zeroes);
    assert_false(nbds_options_client_flags(&h, 4));
    assert_false(nbds_options_client_flags(&h, 0x80000001));
}

static void go_describes_and_chooses_the_export(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    put_string(t, "web");
    put_u16(t, 3);
    put_u16(t, NBDS_INFO_NAME);
    put_u16(t, NBDS_INFO_DESCRIPTION);
    put_u16(t, 4711); // unknown requests are ignored
    option(t, NBDS_OPT_GO);
    assert_int_equal(t->verdict, NBDS_VERDICT_TRANSMIT);
    assert_ptr_equal(t->chosen, &t->infos[0]);
    const Reply *r = find_info(t, NBDS_INFO_EXPORT);
    assert_int_equal(r->len, 12);
    assert_int_equal(nbds_wire_get_u64(r->data + 2), 1 << 20);
    r = find_info(t, NBDS_INFO_NAME);
    assert_int_equal(r->len, 5);
    assert_memory_equal(r->data + 2, "web", 3);
    r = find_info(t, NBDS_INFO_DESCRIPTION);
    assert_memory_equal(r->data + 2, "web: 1 MiB raw", r->len - 2);
    r = find_info(t, NBDS_INFO_BLOCK_SIZE);
    assert_int_equal(r->len, 14);
    assert_int_equal(nbds_wire_get_u32(r->data + 2), 1);
    assert_int_equal(nbds_wire_get_u32(r->data + 6), 65536);
    assert_int_equal(nbds_wire_get_u32(r->data + 10), NBDS_MAX_PAYLOAD);
    assert_int_equal(t->replies[t->n_replies - 1].type, NBDS_REP_ACK);
}

static void only_who_asks_for_block_sizes_sees_a_size_without_padding(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    t->infos[0].padding_bytes = 24;
    info(t, NBDS_OPT_INFO, "web");
    assert_int_equal(nbds_wire_get_u64(find_info(t, NBDS_INFO_EXPORT)->data + 2), 1 << 20);
    put_string(t, "web");
    put_u16(t, 1);
    put_u16(t, NBDS_INFO_BLOCK_SIZE);
    option(t, NBDS_OPT_GO);
    assert_int_equal(nbds_wire_get_u64(find_info(t, NBDS_INFO_EXPORT)->data + 2), (1 << 20) - 24);
}

static void options_may_follow_an_info(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    info(t, NBDS_OPT_INFO, "db");
    assert_int_equal(t->verdict, NBDS_VERDICT_CONTINUE);
    assert_null(t->chosen);
    assert_int_equal(flags_of(t), NBDS_FLAG_HAS_FLAGS | NBDS_FLAG_READ_ONLY | NBDS_FLAG_SEND_FLUSH |
                                      NBDS_FLAG_SEND_FUA | NBDS_FLAG_CAN_MULTI_CONN |
                                      NBDS_FLAG_SEND_CACHE);
}

static void flags_follow_what_was_negotiated(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    info(t, NBDS_OPT_INFO, "web");
    assert_false(flags_of(t) & NBDS_FLAG_SEND_DF);
    assert_true(flags_of(t) & NBDS_FLAG_SEND_FAST_ZERO);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    assert_single(t, NBDS_REP_ACK);
    info(t, NBDS_OPT_INFO, "web");
    assert_true(flags_of(t) & NBDS_FLAG_SEND_DF);
    assert_false(flags_of(t) & NBDS_FLAG_BLOCK_STATUS_PAYLOAD);
    option(t, NBDS_OPT_EXTENDED_HEADERS);
    assert_single(t, NBDS_REP_ACK);
    info(t, NBDS_OPT_INFO, "web");
    assert_false(flags_of(t) & NBDS_FLAG_BLOCK_STATUS_PAYLOAD);
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:allocation");
    info(t, NBDS_OPT_INFO, "web");
    assert_true(flags_of(t) & NBDS_FLAG_BLOCK_STATUS_PAYLOAD);
    info(t, NBDS_OPT_INFO, "db");
    assert_false(flags_of(t) & NBDS_FLAG_BLOCK_STATUS_PAYLOAD);
}

static void the_empty_name_is_the_export_of_that_name(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    info(t, NBDS_OPT_GO, "");
    assert_ptr_equal(t->chosen, &t->infos[1]);
}

static void the_empty_name_is_the_only_export_and_tells_its_name(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(1);
    info(t, NBDS_OPT_GO, "");
    assert_ptr_equal(t->chosen, &t->infos[0]);
    assert_memory_equal(find_info(t, NBDS_INFO_NAME)->data + 2, "web", 3);
}

static void without_a_default_export_the_error_lists_names(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    t->infos[1].name = "mail";
    info(t, NBDS_OPT_GO, "");
    assert_single(t, NBDS_REP_ERR_UNKNOWN);
    g_autofree char *text = g_strndup((const char *)t->replies[0].data, t->replies[0].len);
    assert_string_equal(text, "there is no default export; choose one of 'web', 'mail', 'db'");
}

static void long_names_are_unknown_and_longer_ones_malformed(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    for (unsigned len = 255; len <= 4096; len += len < 260 ? 1 : 1918) {
        g_autofree char *name = g_strnfill(len, 'x');
        info(t, NBDS_OPT_GO, name);
        assert_single(t, NBDS_REP_ERR_UNKNOWN);
        assert_in_range(t->replies[0].len, 1, 4096);
        meta(t, NBDS_OPT_LIST_META_CONTEXT, name, NULL);
        assert_int_equal(t->verdict, NBDS_VERDICT_CONTINUE);
    }
    g_autofree char *name = g_strnfill(4097, 'x');
    info(t, NBDS_OPT_GO, name);
    assert_single(t, NBDS_REP_ERR_INVALID);
}

static void error_texts_stay_valid_utf8_and_short(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    g_autoptr(GString) name = g_string_new("x");
    while (name->len < 4090)
        g_string_append(name, "ü");
    for (unsigned i = 0; i < 3; i++)
        t->infos[i].name = name->str;
    g_autoptr(GString) asked = g_string_new("y");
    while (asked->len < 4090)
        g_string_append(asked, "€");
    info(t, NBDS_OPT_GO, asked->str);
    assert_single(t, NBDS_REP_ERR_UNKNOWN);
    assert_in_range(t->replies[0].len, 1, 4096);
    assert_true(g_utf8_validate((const char *)t->replies[0].data, t->replies[0].len, NULL));
}

static void a_name_length_beyond_the_option_is_malformed(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    static const uint32_t lengths[] = {0xffffffff, 0xfffffffa, 4, 100};
    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
        for (uint32_t type = NBDS_OPT_INFO; type <= NBDS_OPT_GO; type++) {
            put_u32(t, lengths[i]);
            g_byte_array_append(t->data, (const uint8_t *)"web", 3);
            put_u16(t, 0);
            option(t, type);
            assert_single(t, NBDS_REP_ERR_INVALID);
        }
    }
}

static void a_name_with_nul_is_malformed(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    put_u32(t, 3);
    g_byte_array_append(t->data, (const uint8_t *)"w\0b", 3);
    put_u16(t, 0);
    option(t, NBDS_OPT_INFO);
    assert_single(t, NBDS_REP_ERR_INVALID);
}

static void every_truncation_of_an_option_is_malformed(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    g_autoptr(GByteArray) whole = g_byte_array_new();
    put_string(t, "web");
    put_u16(t, 2);
    put_u16(t, 0);
    put_u16(t, 1);
    g_byte_array_append(whole, t->data->data, t->data->len);
    g_byte_array_set_size(t->data, 0);
    for (unsigned n = 0; n < whole->len; n++) {
        g_byte_array_append(t->data, whole->data, n);
        option(t, NBDS_OPT_GO);
        assert_single(t, NBDS_REP_ERR_INVALID);
    }
    g_byte_array_set_size(whole, 0);
    put_string(t, "web");
    put_u32(t, 2);
    put_string(t, "base:");
    put_string(t, "base:allocation");
    g_byte_array_append(whole, t->data->data, t->data->len);
    g_byte_array_set_size(t->data, 0);
    for (unsigned n = 0; n < whole->len; n++) {
        g_byte_array_append(t->data, whole->data, n);
        option(t, NBDS_OPT_LIST_META_CONTEXT);
        assert_single(t, NBDS_REP_ERR_INVALID);
    }
    put_string(t, "web");
    put_u16(t, 0);
    put_u16(t, 0); // one too many
    option(t, NBDS_OPT_GO);
    assert_single(t, NBDS_REP_ERR_INVALID);
}

static void list_names_and_describes_all(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    option(t, NBDS_OPT_LIST);
    assert_int_equal(t->n_replies, 4);
    assert_int_equal(t->replies[0].type, NBDS_REP_SERVER);
    assert_int_equal(nbds_wire_get_u32(t->replies[0].data), 3);
    assert_memory_equal(t->replies[0].data + 4, "webweb: 1 MiB raw", t->replies[0].len - 4);
    assert_int_equal(nbds_wire_get_u32(t->replies[1].data), 0);
    assert_int_equal(t->replies[3].type, NBDS_REP_ACK);
    put_u16(t, 0);
    option(t, NBDS_OPT_LIST);
    assert_single(t, NBDS_REP_ERR_INVALID);
}

static void a_server_without_exports_lists_none(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(0);
    option(t, NBDS_OPT_LIST);
    assert_int_equal(t->verdict, NBDS_VERDICT_LIST);
    assert_int_equal(t->n_replies, 1);
    assert_int_equal(t->replies[0].type, NBDS_REP_ACK);
    info(t, NBDS_OPT_GO, "");
    assert_single(t, NBDS_REP_ERR_UNKNOWN);
}

static void abort_is_acknowledged_whatever_it_carries(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    put_u32(t, 1);
    option(t, NBDS_OPT_ABORT);
    assert_int_equal(t->verdict, NBDS_VERDICT_CLOSE);
    assert_int_equal(t->n_replies, 1);
    assert_int_equal(t->replies[0].type, NBDS_REP_ACK);
}

static void unknown_options_and_starttls_are_unsupported(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    static const uint32_t types[] = {0, 4, NBDS_OPT_STARTTLS, 12, 0xffffffff};
    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        put_u32(t, i);
        option(t, types[i]);
        assert_single(t, NBDS_REP_ERR_UNSUP);
    }
}

// --- TLS ---

static void without_tls_nothing_but_starttls_is_answered(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    t->h.tls = NBDS_TLS_REQUIRED;
    static const uint32_t types[] = {NBDS_OPT_LIST,
                                     NBDS_OPT_INFO,
                                     NBDS_OPT_GO,
                                     NBDS_OPT_STRUCTURED_REPLY,
                                     NBDS_OPT_LIST_META_CONTEXT,
                                     NBDS_OPT_SET_META_CONTEXT,
                                     NBDS_OPT_EXTENDED_HEADERS,
                                     12,
                                     0xffffffff};
    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        option(t, types[i]);
        assert_single(t, NBDS_REP_ERR_TLS_REQD);
    }
    assert_int_equal(t->h.style, NBDS_STYLE_SIMPLE);
    option(t, NBDS_OPT_ABORT);
    assert_int_equal(t->replies[0].type, NBDS_REP_ACK);
    option(t, NBDS_OPT_EXPORT_NAME);
    assert_int_equal(t->verdict, NBDS_VERDICT_CLOSE);
    assert_int_equal(t->out->len, 0);
}

static void what_was_agreed_before_tls_is_forgotten(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    t->h.tls = NBDS_TLS_OPTIONAL;
    t->h.no_zeroes = true;
    option(t, NBDS_OPT_EXTENDED_HEADERS);
    put_string(t, "web");
    put_u32(t, 1);
    put_string(t, "base:allocation");
    option(t, NBDS_OPT_SET_META_CONTEXT);
    assert_non_null(t->h.contexts);
    option(t, NBDS_OPT_STARTTLS);
    assert_int_equal(t->verdict, NBDS_VERDICT_START_TLS);
    assert_int_equal(t->replies[0].type, NBDS_REP_ACK);
    nbds_options_secured(&t->h);
    assert_null(t->h.contexts);
    assert_int_equal(t->h.style, NBDS_STYLE_SIMPLE);
    assert_true(t->h.no_zeroes); // of the client's flags, which are not said again
    info(t, NBDS_OPT_GO, "web");
    assert_int_equal(t->verdict, NBDS_VERDICT_TRANSMIT);
}

static void starttls_comes_once_and_without_data(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    t->h.tls = NBDS_TLS_REQUIRED;
    put_u32(t, 1);
    option(t, NBDS_OPT_STARTTLS);
    assert_single(t, NBDS_REP_ERR_INVALID);
    option(t, NBDS_OPT_STARTTLS);
    assert_int_equal(t->verdict, NBDS_VERDICT_START_TLS);
    nbds_options_secured(&t->h);
    option(t, NBDS_OPT_STARTTLS);
    assert_single(t, NBDS_REP_ERR_INVALID);
    option(t, NBDS_OPT_LIST);
    assert_int_equal(t->verdict, NBDS_VERDICT_LIST);
}

static void export_name_pads_unless_agreed_otherwise(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    g_byte_array_append(t->data, (const uint8_t *)"web", 3);
    option(t, NBDS_OPT_EXPORT_NAME);
    assert_int_equal(t->verdict, NBDS_VERDICT_TRANSMIT);
    assert_ptr_equal(t->chosen, &t->infos[0]);
    assert_int_equal(t->out->len, 10 + 124);
    assert_int_equal(nbds_wire_get_u64(t->out->data), 1 << 20);
    for (unsigned i = 10; i < 134; i++)
        assert_int_equal(t->out->data[i], 0);
    t->h.no_zeroes = true;
    option(t, NBDS_OPT_EXPORT_NAME); // ""
    assert_int_equal(t->verdict, NBDS_VERDICT_TRANSMIT);
    assert_int_equal(t->out->len, 10);
}

static void export_name_that_fails_ends_the_session(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    g_byte_array_append(t->data, (const uint8_t *)"nope", 4);
    option(t, NBDS_OPT_EXPORT_NAME);
    assert_int_equal(t->verdict, NBDS_VERDICT_CLOSE);
    assert_int_equal(t->out->len, 0);
    option(t, NBDS_OPT_EXTENDED_HEADERS);
    option(t, NBDS_OPT_EXPORT_NAME);
    assert_int_equal(t->verdict, NBDS_VERDICT_CLOSE);
}

static void header_options_take_no_data(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    put_u16(t, 0);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    assert_single(t, NBDS_REP_ERR_INVALID);
    put_u16(t, 0);
    option(t, NBDS_OPT_EXTENDED_HEADERS);
    assert_single(t, NBDS_REP_ERR_INVALID);
    assert_int_equal(t->h.style, NBDS_STYLE_SIMPLE);
}

static void structured_replies_cannot_follow_extended_headers(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    option(t, NBDS_OPT_EXTENDED_HEADERS);
    assert_single(t, NBDS_REP_ACK);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    assert_single(t, NBDS_REP_ERR_EXT_HEADER_REQD);
    assert_int_equal(t->h.style, NBDS_STYLE_EXTENDED);
    option(t, NBDS_OPT_EXTENDED_HEADERS); // again is harmless
    assert_single(t, NBDS_REP_ACK);
}

static void contexts_need_structured_replies(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:allocation");
    assert_single(t, NBDS_REP_ERR_INVALID);
    meta(t, NBDS_OPT_LIST_META_CONTEXT, "web", NULL);
    assert_single(t, NBDS_REP_ERR_INVALID);
}

static void listing_contexts_knows_wildcards_and_has_no_ids(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    meta(t, NBDS_OPT_LIST_META_CONTEXT, "web", NULL);
    assert_int_equal(t->n_replies, 3);
    assert_int_equal(t->replies[0].type, NBDS_REP_META_CONTEXT);
    assert_int_equal(nbds_wire_get_u32(t->replies[0].data), 0);
    assert_memory_equal(t->replies[0].data + 4, "base:allocation", 15);
    assert_memory_equal(t->replies[1].data + 4, "qemu:allocation-depth", 21);
    meta(t, NBDS_OPT_LIST_META_CONTEXT, "web", "base:");
    assert_int_equal(t->n_replies, 2);
    meta(t, NBDS_OPT_LIST_META_CONTEXT, "web", "x-none:");
    assert_single(t, NBDS_REP_ACK);
    meta(t, NBDS_OPT_LIST_META_CONTEXT, "nope", "base:");
    assert_single(t, NBDS_REP_ERR_UNKNOWN);
}

static void a_second_set_replaces_the_first_also_when_it_fails(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:allocation");
    assert_int_equal(t->n_replies, 2);
    assert_int_not_equal(nbds_wire_get_u32(t->replies[0].data), 0);
    assert_string_equal(selected(t), "base:allocation");
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "qemu:allocation-depth");
    assert_string_equal(selected(t), "qemu:allocation-depth");
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:"); // no wildcard here
    assert_single(t, NBDS_REP_ACK);
    assert_null(t->h.contexts);
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:allocation");
    meta(t, NBDS_OPT_SET_META_CONTEXT, "nope", "base:allocation");
    assert_single(t, NBDS_REP_ERR_UNKNOWN);
    assert_null(t->h.contexts);
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:allocation");
    put_u32(t, 0xffffffff);
    option(t, NBDS_OPT_SET_META_CONTEXT);
    assert_single(t, NBDS_REP_ERR_INVALID);
    assert_null(t->h.contexts);
}

static void contexts_hold_only_for_the_export_they_were_set_for(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:allocation");
    info(t, NBDS_OPT_GO, "db");
    assert_int_equal(t->verdict, NBDS_VERDICT_TRANSMIT);
    assert_null(t->h.contexts);
}

// More than any client asks for; each name as long as a bitmap's may be.
static void add_bitmaps(Negotiation *t, unsigned n)
{
    static const NbdsContextKind kind;
    g_autofree char *leaf = g_strnfill(1023 - 6, 'n');
    for (unsigned i = 0; i < n; i++) {
        g_autofree char *name = g_strdup_printf("qemu:dirty-bitmap:%s%06u", leaf, i);
        nbds_context_init(g_new0(NbdsContext, 1), &kind, name, t->contexts);
    }
}

static void set_contexts(Negotiation *t, unsigned first, unsigned n)
{
    put_string(t, "web");
    put_u32(t, n);
    for (unsigned i = first; i < first + n; i++)
        put_string(t, ((NbdsContext *)t->contexts->pdata[i])->name);
    option(t, NBDS_OPT_SET_META_CONTEXT);
}

static void any_number_of_contexts_is_listed_and_some_are_selected(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(1);
    add_bitmaps(t, 1000);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    meta(t, NBDS_OPT_LIST_META_CONTEXT, "web", NULL);
    assert_in_range(t->out->len, 1000 * 1023, UINT32_MAX);
    set_contexts(t, 700, 40);
    assert_int_equal(t->h.contexts->len, 40);
    for (unsigned i = 0; i < 40; i++)
        assert_ptr_equal(t->h.contexts->pdata[i], t->contexts->pdata[700 + i]);
}

static void one_context_asked_for_twice_is_selected_once(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(1);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    put_string(t, "web");
    put_u32(t, 2);
    put_string(t, "base:allocation");
    put_string(t, "base:allocation");
    option(t, NBDS_OPT_SET_META_CONTEXT);
    assert_int_equal(t->n_replies, 2);
    assert_string_equal(selected(t), "base:allocation");
}

static void too_many_contexts_are_told_so(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(1);
    static const NbdsContextKind kind;
    for (unsigned i = 0; i < NBDS_MAX_SELECTED_CONTEXTS; i++) {
        g_autofree char *name = g_strdup_printf("x:%u", i);
        nbds_context_init(g_new0(NbdsContext, 1), &kind, name, t->contexts);
    }
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    set_contexts(t, 0, NBDS_MAX_SELECTED_CONTEXTS);
    assert_int_equal(t->h.contexts->len, NBDS_MAX_SELECTED_CONTEXTS);
    set_contexts(t, 0, NBDS_MAX_SELECTED_CONTEXTS + 1);
    assert_single(t, NBDS_REP_ERR_TOO_BIG);
    assert_null(t->h.contexts);
}

static void too_many_queries_are_told_so(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(1);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    put_string(t, "web");
    put_u32(t, NBDS_MAX_CONTEXT_QUERIES + 1);
    for (unsigned i = 0; i <= NBDS_MAX_CONTEXT_QUERIES; i++)
        put_string(t, "");
    option(t, NBDS_OPT_LIST_META_CONTEXT);
    assert_single(t, NBDS_REP_ERR_TOO_BIG);
}

static void a_stopping_server_answers_shutdown(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    t->stopping = true;
    info(t, NBDS_OPT_GO, "web");
    assert_single(t, NBDS_REP_ERR_SHUTDOWN);
    option(t, NBDS_OPT_LIST);
    assert_single(t, NBDS_REP_ERR_SHUTDOWN);
    option(t, NBDS_OPT_EXPORT_NAME);
    assert_int_equal(t->verdict, NBDS_VERDICT_CLOSE);
    option(t, NBDS_OPT_ABORT);
    assert_int_equal(t->replies[0].type, NBDS_REP_ACK);
}

static void an_option_with_too_much_data_is_told_so(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(3);
    option(t, NBDS_OPT_STRUCTURED_REPLY);
    static const uint32_t types[] = {NBDS_OPT_LIST,
                                     NBDS_OPT_INFO,
                                     NBDS_OPT_GO,
                                     NBDS_OPT_LIST_META_CONTEXT,
                                     NBDS_OPT_SET_META_CONTEXT,
                                     99};
    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        meta(t, NBDS_OPT_SET_META_CONTEXT, "web", "base:allocation");
        g_byte_array_set_size(t->data, NBDS_MAX_OPTION_BYTES + 1);
        option(t, types[i]);
        assert_single(t, NBDS_REP_ERR_TOO_BIG);
        // A SET that fails leaves nothing selected.
        assert_string_equal(selected(t),
                            types[i] == NBDS_OPT_SET_META_CONTEXT ? "" : "base:allocation");
    }
    g_byte_array_set_size(t->data, NBDS_MAX_OPTION_BYTES + 1);
    option(t, NBDS_OPT_EXPORT_NAME); // has no answer but success
    assert_int_equal(t->verdict, NBDS_VERDICT_CLOSE);
}

static void endless_options_end_the_session(void **state)
{
    g_autoptr(Negotiation) t = negotiation_new(1);
    unsigned n = 0;
    do {
        option(t, NBDS_OPT_LIST);
        n++;
    } while (t->verdict == NBDS_VERDICT_LIST && n < 100000);
    assert_in_range(n, 1000, 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_client_flags_end_the_handshake),
        cmocka_unit_test(go_describes_and_chooses_the_export),
        cmocka_unit_test(only_who_asks_for_block_sizes_sees_a_size_without_padding),
        cmocka_unit_test(options_may_follow_an_info),
        cmocka_unit_test(flags_follow_what_was_negotiated),
        cmocka_unit_test(the_empty_name_is_the_export_of_that_name),
        cmocka_unit_test(the_empty_name_is_the_only_export_and_tells_its_name),
        cmocka_unit_test(without_a_default_export_the_error_lists_names),
        cmocka_unit_test(long_names_are_unknown_and_longer_ones_malformed),
        cmocka_unit_test(error_texts_stay_valid_utf8_and_short),
        cmocka_unit_test(a_name_length_beyond_the_option_is_malformed),
        cmocka_unit_test(a_name_with_nul_is_malformed),
        cmocka_unit_test(every_truncation_of_an_option_is_malformed),
        cmocka_unit_test(list_names_and_describes_all),
        cmocka_unit_test(a_server_without_exports_lists_none),
        cmocka_unit_test(abort_is_acknowledged_whatever_it_carries),
        cmocka_unit_test(unknown_options_and_starttls_are_unsupported),
        cmocka_unit_test(without_tls_nothing_but_starttls_is_answered),
        cmocka_unit_test(what_was_agreed_before_tls_is_forgotten),
        cmocka_unit_test(starttls_comes_once_and_without_data),
        cmocka_unit_test(export_name_pads_unless_agreed_otherwise),
        cmocka_unit_test(export_name_that_fails_ends_the_session),
        cmocka_unit_test(header_options_take_no_data),
        cmocka_unit_test(structured_replies_cannot_follow_extended_headers),
        cmocka_unit_test(contexts_need_structured_replies),
        cmocka_unit_test(listing_contexts_knows_wildcards_and_has_no_ids),
        cmocka_unit_test(a_second_set_replaces_the_first_also_when_it_fails),
        cmocka_unit_test(contexts_hold_only_for_the_export_they_were_set_for),
        cmocka_unit_test(any_number_of_contexts_is_listed_and_some_are_selected),
        cmocka_unit_test(one_context_asked_for_twice_is_selected_once),
        cmocka_unit_test(too_many_contexts_are_told_so),
        cmocka_unit_test(too_many_queries_are_told_so),
        cmocka_unit_test(a_stopping_server_answers_shutdown),
        cmocka_unit_test(an_option_with_too_much_data_is_told_so),
        cmocka_unit_test(endless_options_end_the_session),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
