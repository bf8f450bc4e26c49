// SPDX-License-Identifier: LGPL-2.1-or-later
// The I/O of a handshake. Answers are sent before the next option is received, so what a client
// can make the server hold is one option and its answer.
//
// A client may send options without pause, and the answer to a small one can be large: they are
// charged as requests are. All handshakes of a loop are one flow of its scheduler, so that they
// have no more of the loop together than one client in transmission.
#include "handshake.h"

#include <errno.h>

#include "chain-core/tls-stream.h"
#include "options.h"
#include "server-state.h"

enum { OPTION_BYTES = 4096 }; // of any option, besides its data and its answer; as of a request

typedef struct Handshake {
    NbdsServerLoop *server_loop;
    const NbdsTls *tls;
    NbdsPeer *peer;
    Stream **stream;
    NbdsOptions options;
    NbdsExportTable *table; // what the client may use
    NbdsExportTable *all;
    unsigned generation; // of the server's exports when both were taken
    GByteArray *data, *answer;
} Handshake;

// Of the handshakes that wait, the first goes on, and what it takes counts before the next one
// looks.
static void take(Fiber *self, Handshake *h, uint64_t bytes)
{
    nbds_flow_wait_turn(self, &h->server_loop->handshake_flow);
    nbds_flow_charge(&h->server_loop->handshake_flow, bytes);
}

static int send_bytes(Fiber *self, Handshake *h, const uint8_t *data, size_t len)
{
    for (size_t done = 0, n; done < len; done += n) {
        n = MIN(len - done, nbds_flow_send_bytes(&h->server_loop->handshake_flow));
        take(self, h, n);
        struct iovec iov = {(void *)(data + done), n};
        int result = stream_send(self, *h->stream, &iov, 1);
        if (result < 0)
            return result;
    }
    return 0;
}

static int exchange_flags(Fiber *self, Handshake *h)
{
    uint8_t greeting[NBDS_GREETING_BYTES], flags[NBDS_CLIENT_FLAGS_BYTES];
    nbds_wire_put_greeting(greeting);
    int result = send_bytes(self, h, greeting, sizeof greeting);
    if (result >= 0)
        result = stream_recv_all(self, *h->stream, flags, sizeof flags);
    if (result < 0)
        return result;
    bool is_known = nbds_options_client_flags(&h->options, nbds_wire_get_client_flags(flags));
    return is_known ? 0 : -EPROTO;
}

static int drop_bytes(Fiber *self, Handshake *h, size_t len)
{
    uint8_t dropped[4096];
    while (len) {
        size_t n = MIN(len, sizeof dropped);
        take(self, h, n);
        int result = stream_recv_all(self, *h->stream, dropped, n);
        if (result < 0)
            return result;
        len -= n;
    }
    return 0;
}

static int receive_option(Fiber *self, Handshake *h, uint32_t *ret_option, uint32_t *ret_len)
{
    uint8_t head[NBDS_OPTION_HEAD_BYTES];
    int result = stream_recv_all(self, *h->stream, head, sizeof head);
    if (result < 0)
        return result;
    if (!nbds_wire_get_option_head(head, ret_option, ret_len) ||
        *ret_len > NBDS_MAX_DROPPED_OPTION_BYTES)
        return -EPROTO;
    bool is_too_big = *ret_len > NBDS_MAX_OPTION_BYTES;
    take(self, h, OPTION_BYTES + (is_too_big ? 0 : *ret_len));
    if (is_too_big)
        return drop_bytes(self, h, *ret_len);
    g_byte_array_set_size(h->data, *ret_len);
    return *ret_len ? stream_recv_all(self, *h->stream, h->data->data, *ret_len) : 0;
}

static bool may_use(const Handshake *h, unsigned i)
{
    const NbdsServer *server = h->server_loop->server;
    return server->may_use(server->arg, h->peer, h->all->exports[i].name);
}

static NbdsExportTable *make_usable(const Handshake *h)
{
    const NbdsExportTable *all = h->all;
    NbdsExportInfo *infos = g_new(NbdsExportInfo, all->n_exports);
    GPtrArray *owners = g_ptr_array_new_with_free_func((GDestroyNotify)nbds_export_unref);
    for (unsigned i = 0; i < all->n_exports; i++) {
        if (!may_use(h, i))
            continue;
        infos[owners->len] = all->exports[i];
        g_ptr_array_add(owners, nbds_export_ref(all->owners->pdata[i]));
    }
    return nbds_export_table_new(infos, owners->len, owners);
}

// What the client may use of `h->all`; owned.
static NbdsExportTable *choose_usable(const Handshake *h)
{
    unsigned n = 0;
    while (h->peer && n < h->all->n_exports && may_use(h, n))
        n++;
    bool is_all = !h->peer || n == h->all->n_exports;
    return is_all ? nbds_export_table_ref(h->all) : make_usable(h);
}

static void drop_table(Handshake *h)
{
    g_clear_pointer(&h->table, nbds_export_table_unref);
    g_clear_pointer(&h->all, nbds_export_table_unref);
}

// The exports as this client sees them, looked up again when they changed.
static void refresh_table(Handshake *h)
{
    NbdsServer *server = h->server_loop->server;
    unsigned generation = server->generation;
    if (h->table && h->generation == generation)
        return;
    drop_table(h);
    h->all = nbds_server_export_table(server);
    h->table = choose_usable(h);
    h->generation = generation;
}

static void agree(Handshake *h, const NbdsExportInfo *info, NbdsAgreement *ret_agreement)
{
    *ret_agreement = (NbdsAgreement){
        .export = nbds_export_ref(h->table->owners->pdata[info - h->table->exports]),
        .session =
            {
                .style = h->options.style,
                .contexts = g_steal_pointer(&h->options.contexts),
                .size_bytes = info->size_bytes,
                .read_only = info->read_only,
            },
    };
    nbds_export_client_came(ret_agreement->export);
}

static void disagree(NbdsAgreement *agreement)
{
    nbds_export_client_left(agreement->export);
    nbds_export_unref(agreement->export);
    nbds_session_done(&agreement->session);
}

// Who the client is may be known now, and so what it may use.
static void secured(Handshake *h)
{
    nbds_options_secured(&h->options);
    if (!h->peer)
        return;
    h->peer->identity = tls_stream_peer(*h->stream);
    drop_table(h);
}

// What the client sent in the clear after STARTTLS is no TLS, and fails.
static int start_tls(Fiber *self, Handshake *h)
{
    NbdsServerLoop *server_loop = h->server_loop;
    g_autoptr(GError) error = NULL;
    Stream *secure = tls_stream_new(*h->stream,
                                    &(TlsStreamConfig){
                                        .creds = h->tls->creds,
                                        .authz = h->tls->authz,
                                        .turn = &server_loop->tls_turn,
                                    },
                                    &error);
    *h->stream = secure ? secure : *h->stream;
    int result = secure ? tls_stream_handshake(self, secure, &error) : -ENOMEM;
    if (result == 0)
        secured(h);
    else if (result != -ECANCELED && result != -ECONNRESET) // it only left
        nbds_server_report_tls(server_loop->server, error->message, loop_now_ns(server_loop->loop));
    return result < 0 ? result : 1;
}

// One option: 1 to go on, 0 with an agreement, negative to close.
static int negotiate(Fiber *self, Handshake *h, NbdsAgreement *ret_agreement)
{
    uint32_t option, len;
    int result = receive_option(self, h, &option, &len);
    if (result < 0)
        return result;
    refresh_table(h);
    h->options.all = h->all;
    const NbdsExportInfo *info = NULL;
    g_byte_array_set_size(h->answer, 0);
    NbdsVerdict verdict =
        nbds_options_execute(&h->options, h->table, h->server_loop->server->is_stopping, option,
                             h->data->data, len, h->answer, &info);
    const GByteArray *answer = verdict == NBDS_VERDICT_LIST ? h->table->list : h->answer;
    if (verdict == NBDS_VERDICT_TRANSMIT)
        agree(h, info, ret_agreement);
    result = send_bytes(self, h, answer->data, answer->len);
    if (result < 0 && verdict == NBDS_VERDICT_TRANSMIT)
        disagree(ret_agreement);
    if (result < 0)
        return result;
    switch (verdict) {
    case NBDS_VERDICT_CONTINUE:
    case NBDS_VERDICT_LIST:
        return 1;
    case NBDS_VERDICT_TRANSMIT:
        return 0;
    case NBDS_VERDICT_START_TLS:
        return start_tls(self, h);
    case NBDS_VERDICT_CLOSE:
        break;
    }
    return -ECONNABORTED;
}

int nbds_handshake_run(Fiber *self, NbdsServerLoop *server_loop, const NbdsTls *tls, NbdsPeer *peer,
                       Stream **stream, NbdsAgreement *ret_agreement)
{
    Handshake h = {
        .server_loop = server_loop,
        .tls = tls,
        .peer = peer,
        .stream = stream,
        .options.tls = tls->mode,
        .data = g_byte_array_new(),
        .answer = g_byte_array_new(),
    };
    int result = exchange_flags(self, &h);
    if (result == 0) {
        do
            result = negotiate(self, &h, ret_agreement);
        while (result > 0);
    }
    if (peer)
        peer->identity = NULL;
    nbds_options_done(&h.options);
    drop_table(&h);
    g_byte_array_unref(h.data);
    g_byte_array_unref(h.answer);
    return result;
}
