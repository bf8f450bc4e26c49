// SPDX-License-Identifier: LGPL-2.1-or-later
// The options of the handshake. Every option gets an answer and leaves client and server in step;
// the verdict is CLOSE only where the protocol leaves no other way (EXPORT_NAME that cannot be
// served or comes after extended headers, ABORT, too many options). Lengths are compared in 64 bits
// before use, and text of ours that quotes names is cut to the protocol's bound. Pure.
#include "options.h"

#include <string.h>

// More than a client that asks for everything about a thousand exports needs; the handshake's time
// limit bounds the rest.
enum { MAX_OPTIONS = 8192 };

typedef struct Option {
    uint32_t type;
    const uint8_t *data;
    uint32_t len;
    GByteArray *out;
} Option;

// --- Replies ---

static uint8_t *append(GByteArray *out, uint32_t n)
{
    g_byte_array_set_size(out, out->len + n);
    return out->data + out->len - n;
}

static void reply(const Option *o, NbdsRep type, const void *data, uint32_t len)
{
    nbds_wire_put_option_reply_head(append(o->out, NBDS_OPTION_REPLY_HEAD_BYTES), o->type, type,
                                    len);
    if (len)
        g_byte_array_append(o->out, data, len);
}

static NbdsVerdict acknowledge(const Option *o)
{
    reply(o, NBDS_REP_ACK, NULL, 0);
    return NBDS_VERDICT_CONTINUE;
}

static NbdsVerdict refuse(const Option *o, NbdsRep error, const char *message)
{
    reply(o, error, message, MIN(strlen(message), NBDS_MAX_STRING));
    return NBDS_VERDICT_CONTINUE;
}

// --- Names ---

// Takes bytes off the front of an option's data; once something is missing it stays failed.
typedef struct Cursor {
    const uint8_t *p;
    uint64_t left;
    bool failed;
} Cursor;

static const uint8_t *take_bytes(Cursor *c, uint64_t n)
{
    if (c->failed || n > c->left) {
        c->failed = true;
        return NULL;
    }
    const uint8_t *p = c->p;
    c->p += n;
    c->left -= n;
    return p;
}

static uint16_t take_u16(Cursor *c)
{
    const uint8_t *p = take_bytes(c, 2);
    return p ? nbds_wire_get_u16(p) : 0;
}

static uint32_t take_u32(Cursor *c)
{
    const uint8_t *p = take_bytes(c, 4);
    return p ? nbds_wire_get_u32(p) : 0;
}

typedef struct Name {
    const uint8_t *p;
    uint32_t len;
} Name;

static bool is_valid_string(const uint8_t *p, uint32_t len)
{
    return len <= NBDS_MAX_STRING && !(len && memchr(p, 0, len));
}

// A string with its 32-bit length in front.
static Name take_string(Cursor *c)
{
    Name name = {.len = take_u32(c)};
    name.p = take_bytes(c, name.len);
    if (!c->failed && !is_valid_string(name.p, name.len))
        c->failed = true;
    return name;
}

static NbdsVerdict refuse_export(const Option *o, const NbdsOptions *h,
                                 const NbdsExportTable *table, Name name)
{
    if (h->all && nbds_export_table_find(h->all, name.p, name.len))
        return refuse(o, NBDS_REP_ERR_POLICY,
                      "this export is not for you: the server's "
                      "configuration says for whom it is");
    g_autoptr(GString) text = g_string_new(NULL);
    if (!table->n_exports)
        g_string_assign(text, "this server has no exports");
    else if (name.len)
        g_string_append_printf(text, "there is no export '%.*s'; ", (int)MIN(name.len, 256),
                               (const char *)name.p);
    else
        g_string_assign(text, "there is no default export; ");
    for (unsigned i = 0; i < table->n_exports && text->len < 1024; i++)
        g_string_append_printf(text, "%s'%.256s'", i ? ", " : "choose one of ",
                               table->exports[i].name);
    // Cutting names may have cut a character.
    g_autofree char *valid = g_utf8_make_valid(text->str, text->len);
    return refuse(o, NBDS_REP_ERR_UNKNOWN, valid);
}

// --- Facts about an export ---

uint16_t nbds_options_transmission_flags(const NbdsOptions *h, const NbdsExportInfo *export)
{
    // Multi-conn: all connections share one node, so a flush on any covers the writes of all.
    uint16_t flags = NBDS_FLAG_HAS_FLAGS | NBDS_FLAG_SEND_FLUSH | NBDS_FLAG_SEND_FUA |
                     NBDS_FLAG_CAN_MULTI_CONN | NBDS_FLAG_SEND_CACHE;
    if (export->read_only)
        flags |= NBDS_FLAG_READ_ONLY;
    else
        flags |= NBDS_FLAG_SEND_TRIM | NBDS_FLAG_SEND_WRITE_ZEROES | NBDS_FLAG_SEND_FAST_ZERO;
    if (h->style != NBDS_STYLE_SIMPLE)
        flags |= NBDS_FLAG_SEND_DF;
    if (h->style == NBDS_STYLE_EXTENDED && h->contexts && h->contexts_serial == export->serial)
        flags |= NBDS_FLAG_BLOCK_STATUS_PAYLOAD;
    return flags;
}

static void reply_info_string(const Option *o, NbdsInfo type, const char *s)
{
    size_t len = strlen(s);
    nbds_wire_put_option_reply_head(append(o->out, NBDS_OPTION_REPLY_HEAD_BYTES), o->type,
                                    NBDS_REP_INFO, 2 + len);
    nbds_wire_put_u16(append(o->out, 2), type);
    g_byte_array_append(o->out, (const uint8_t *)s, len);
}

static void reply_info(const Option *o, const NbdsOptions *h, NbdsInfo type,
                       const NbdsExportInfo *export, uint64_t size_bytes)
{
    uint8_t data[14];
    nbds_wire_put_u16(data, type);
    switch (type) {
    case NBDS_INFO_EXPORT:
        nbds_wire_put_export_name_reply(data + 2, size_bytes,
                                        nbds_options_transmission_flags(h, export));
        reply(o, NBDS_REP_INFO, data, 2 + NBDS_EXPORT_NAME_REPLY_BYTES);
        break;
    case NBDS_INFO_NAME:
        reply_info_string(o, type, export->name);
        break;
    case NBDS_INFO_DESCRIPTION:
        if (export->description[0])
            reply_info_string(o, type, export->description);
        break;
    case NBDS_INFO_BLOCK_SIZE:
        nbds_wire_put_u32(data + 2, 1);
        nbds_wire_put_u32(data + 6, export->preferred_bytes);
        nbds_wire_put_u32(data + 10, NBDS_MAX_PAYLOAD);
        reply(o, NBDS_REP_INFO, data, 14);
        break;
    }
}

// --- Options ---

static NbdsVerdict option_export_name(const Option *o, NbdsOptions *h, const NbdsExportTable *table,
                                      const NbdsExportInfo **ret_export)
{
    if (h->style == NBDS_STYLE_EXTENDED || !is_valid_string(o->data, o->len))
        return NBDS_VERDICT_CLOSE;
    const NbdsExportInfo *export = nbds_export_table_find(table, o->data, o->len);
    if (!export)
        return NBDS_VERDICT_CLOSE;
    nbds_wire_put_export_name_reply(append(o->out, NBDS_EXPORT_NAME_REPLY_BYTES),
                                    export->size_bytes, nbds_options_transmission_flags(h, export));
    if (!h->no_zeroes)
        memset(append(o->out, NBDS_EXPORT_NAME_PADDING), 0, NBDS_EXPORT_NAME_PADDING);
    *ret_export = export;
    return NBDS_VERDICT_TRANSMIT;
}

static NbdsVerdict option_list(const Option *o)
{
    if (o->len)
        return refuse(o, NBDS_REP_ERR_INVALID, "LIST takes no data");
    return NBDS_VERDICT_LIST;
}

// INFO and GO.
static NbdsVerdict option_info(const Option *o, NbdsOptions *h, const NbdsExportTable *table,
                               const NbdsExportInfo **ret_export)
{
    Cursor c = {o->data, o->len, false};
    Name name = take_string(&c);
    uint16_t n_requests = take_u16(&c);
    if (c.failed || c.left != 2ull * n_requests)
        return refuse(o, NBDS_REP_ERR_INVALID, "name or information requests are malformed");
    const NbdsExportInfo *export = nbds_export_table_find(table, name.p, name.len);
    if (!export)
        return refuse_export(o, h, table, name);

    bool wanted[NBDS_INFO_BLOCK_SIZE + 1] = {[NBDS_INFO_EXPORT] = true};
    bool honours_block_sizes = false;
    // Volunteered: a client that asked for the default export learns its name, and every client
    // the block sizes.
    wanted[NBDS_INFO_NAME] = strlen(export->name) != name.len;
    wanted[NBDS_INFO_BLOCK_SIZE] = true;
    for (unsigned i = 0; i < n_requests; i++) {
        uint16_t type = take_u16(&c);
        if (type < G_N_ELEMENTS(wanted))
            wanted[type] = true;
        honours_block_sizes |= type == NBDS_INFO_BLOCK_SIZE;
    }
    uint64_t size = export->size_bytes - (honours_block_sizes ? export->padding_bytes : 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(wanted); i++) {
        if (wanted[i])
            reply_info(o, h, i, export, size);
    }
    acknowledge(o);
    if (o->type == NBDS_OPT_INFO)
        return NBDS_VERDICT_CONTINUE;
    *ret_export = export;
    return NBDS_VERDICT_TRANSMIT;
}

static NbdsVerdict option_headers(const Option *o, NbdsOptions *h)
{
    if (o->len)
        return refuse(o, NBDS_REP_ERR_INVALID, "this option takes no data");
    if (o->type == NBDS_OPT_EXTENDED_HEADERS)
        h->style = NBDS_STYLE_EXTENDED;
    else if (h->style == NBDS_STYLE_EXTENDED)
        return refuse(o, NBDS_REP_ERR_EXT_HEADER_REQD, "extended headers are already in use");
    else
        h->style = NBDS_STYLE_STRUCTURED;
    return acknowledge(o);
}

static NbdsVerdict option_starttls(const Option *o, const NbdsOptions *h)
{
    if (h->tls == NBDS_TLS_OFF)
        return refuse(o, NBDS_REP_ERR_UNSUP, "this server does not speak TLS");
    if (h->is_secure)
        return refuse(o, NBDS_REP_ERR_INVALID, "TLS is already in use");
    if (o->len)
        return refuse(o, NBDS_REP_ERR_INVALID, "STARTTLS takes no data");
    acknowledge(o);
    return NBDS_VERDICT_START_TLS;
}

static void reply_context(const Option *o, const NbdsContext *context)
{
    nbds_wire_put_option_reply_head(append(o->out, NBDS_OPTION_REPLY_HEAD_BYTES), o->type,
                                    NBDS_REP_META_CONTEXT, 4 + context->name_len);
    // LIST: the id is reserved, zero.
    uint32_t id = o->type == NBDS_OPT_SET_META_CONTEXT ? context->id : 0;
    nbds_wire_put_u32(append(o->out, 4), id);
    g_byte_array_append(o->out, (const uint8_t *)context->name, context->name_len);
}

typedef struct Queries {
    Name export;
    uint32_t n;
    Cursor first; // at the first one
} Queries;

static bool parse_queries(const Option *o, Queries *ret_queries)
{
    Cursor c = {o->data, o->len, false};
    ret_queries->export = take_string(&c);
    ret_queries->n = take_u32(&c);
    ret_queries->first = c;
    for (uint32_t i = 0; i < ret_queries->n && !c.failed; i++)
        take_string(&c);
    return !c.failed && !c.left;
}

// Returned owned: the contexts of `export` that the queries select.
static GPtrArray *select_contexts(const Queries *queries, const NbdsExportInfo *export, bool set)
{
    g_autofree bool *marks = g_new0(bool, export->contexts->len);
    if (!set && !queries->n)
        memset(marks, true, export->contexts->len);
    Cursor c = queries->first;
    for (uint32_t i = 0; i < queries->n; i++) {
        Name query = take_string(&c);
        nbds_context_match(export->contexts, query.p, query.len, !set, marks);
    }
    return nbds_context_select(export->contexts, marks);
}

// LIST_META_CONTEXT and SET_META_CONTEXT.
static NbdsVerdict option_meta_context(const Option *o, NbdsOptions *h,
                                       const NbdsExportTable *table)
{
    if (h->style == NBDS_STYLE_SIMPLE)
        return refuse(o, NBDS_REP_ERR_INVALID, "negotiate structured replies first");
    Queries queries;
    if (!parse_queries(o, &queries))
        return refuse(o, NBDS_REP_ERR_INVALID, "name or queries are malformed");
    const NbdsExportInfo *export =
        nbds_export_table_find(table, queries.export.p, queries.export.len);
    if (!export)
        return refuse_export(o, h, table, queries.export);
    if (queries.n > NBDS_MAX_CONTEXT_QUERIES)
        return refuse(o, NBDS_REP_ERR_TOO_BIG, "too many queries");
    bool set = o->type == NBDS_OPT_SET_META_CONTEXT;
    g_autoptr(GPtrArray) contexts = select_contexts(&queries, export, set);
    if (set && contexts->len > NBDS_MAX_SELECTED_CONTEXTS)
        return refuse(o, NBDS_REP_ERR_TOO_BIG, "too many metadata contexts");
    for (unsigned i = 0; i < contexts->len; i++)
        reply_context(o, contexts->pdata[i]);
    if (set && contexts->len) {
        h->contexts = g_steal_pointer(&contexts);
        h->contexts_serial = export->serial;
    }
    return acknowledge(o);
}

static NbdsVerdict option_dispatch(const Option *o, NbdsOptions *h, const NbdsExportTable *table,
                                   const NbdsExportInfo **ret_export)
{
    switch (o->type) {
    case NBDS_OPT_EXPORT_NAME:
        return option_export_name(o, h, table, ret_export);
    case NBDS_OPT_ABORT:
        acknowledge(o);
        return NBDS_VERDICT_CLOSE;
    case NBDS_OPT_LIST:
        return option_list(o);
    case NBDS_OPT_INFO:
    case NBDS_OPT_GO:
        return option_info(o, h, table, ret_export);
    case NBDS_OPT_STRUCTURED_REPLY:
    case NBDS_OPT_EXTENDED_HEADERS:
        return option_headers(o, h);
    case NBDS_OPT_STARTTLS:
        return option_starttls(o, h);
    case NBDS_OPT_LIST_META_CONTEXT:
    case NBDS_OPT_SET_META_CONTEXT:
        return option_meta_context(o, h, table);
    default:
        return refuse(o, NBDS_REP_ERR_UNSUP, "this server does not know this option");
    }
}

void nbds_options_done(NbdsOptions *h)
{
    g_clear_pointer(&h->contexts, g_ptr_array_unref);
}

void nbds_options_secured(NbdsOptions *h)
{
    nbds_options_done(h);
    *h = (NbdsOptions){
        .no_zeroes = h->no_zeroes,
        .n_options = h->n_options,
        .tls = h->tls,
        .is_secure = true,
    };
}

bool nbds_options_client_flags(NbdsOptions *h, uint32_t flags)
{
    // A client without FIXED_NEWSTYLE gets fixed newstyle too, if it uses it.
    h->no_zeroes = flags & NBDS_C_NO_ZEROES;
    return !(flags & ~(uint32_t)(NBDS_C_FIXED_NEWSTYLE | NBDS_C_NO_ZEROES));
}

NbdsVerdict nbds_options_execute(NbdsOptions *h, const NbdsExportTable *table, bool stopping,
                                 uint32_t option, const uint8_t *data, uint32_t len,
                                 GByteArray *out, const NbdsExportInfo **ret_export)
{
    Option o = {option, data, len, out};
    if (++h->n_options > MAX_OPTIONS)
        return NBDS_VERDICT_CLOSE;
    if (option == NBDS_OPT_SET_META_CONTEXT) // also one that fails leaves nothing selected
        nbds_options_done(h);
    bool is_too_big = len > NBDS_MAX_OPTION_BYTES;
    bool needs_tls = h->tls == NBDS_TLS_REQUIRED && !h->is_secure && option != NBDS_OPT_STARTTLS;
    if (option == NBDS_OPT_EXPORT_NAME && (stopping || is_too_big || needs_tls))
        return NBDS_VERDICT_CLOSE;
    if (stopping && option != NBDS_OPT_ABORT)
        return refuse(&o, NBDS_REP_ERR_SHUTDOWN, "this server is stopping");
    if (needs_tls && option != NBDS_OPT_ABORT)
        return refuse(&o, NBDS_REP_ERR_TLS_REQD, "this server wants TLS first");
    if (is_too_big && option != NBDS_OPT_ABORT)
        return refuse(&o, NBDS_REP_ERR_TOO_BIG, "this option has more data than this server takes");
    NbdsVerdict verdict = option_dispatch(&o, h, table, ret_export);
    if (verdict == NBDS_VERDICT_TRANSMIT && h->contexts_serial != (*ret_export)->serial)
        nbds_options_done(h);
    return verdict;
}
