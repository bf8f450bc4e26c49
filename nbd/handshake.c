// SPDX-License-Identifier: LGPL-2.1-or-later
// The I/O of a handshake. Answers are sent before the next option is received, so what a client
// can make the server hold is one option and its answer.
//
// A client may send options without pause, and the answer to a small one can be large: they are
// charged as requests are. All handshakes of a loop are one flow of its scheduler, so that they
// have no more of the loop together than one client in transmission.
#include "handshake.h"

#include <errno.h>

#include "options.h"
#include "server-state.h"

enum { OPTION_BYTES = 4096 }; // of any option, besides its data and its answer; as of a request

typedef struct Handshake {
    NbdsServerLoop *server_loop;
    Stream *stream;
    NbdsOptions options;
    NbdsExportTable *table;
    unsigned generation; // of the server's exports when `table` was taken
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
        int result = stream_send(self, h->stream, &iov, 1);
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
        result = stream_recv_all(self, h->stream, flags, sizeof flags);
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
        int result = stream_recv_all(self, h->stream, dropped, n);
        if (result < 0)
            return result;
        len -= n;
    }
    return 0;
}

static int receive_option(Fiber *self, Handshake *h, uint32_t *ret_option, uint32_t *ret_len)
{
    uint8_t head[NBDS_OPTION_HEAD_BYTES];
    int result = stream_recv_all(self, h->stream, head, sizeof head);
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
    return *ret_len ? stream_recv_all(self, h->stream, h->data->data, *ret_len) : 0;
}

// The exports as this client sees them, looked up again when they changed.
static void refresh_table(Handshake *h)
{
    NbdsServer *server = h->server_loop->server;
    unsigned generation = server->generation;
    if (h->table && h->generation == generation)
        return;
    nbds_export_table_unref(h->table);
    h->table = nbds_server_export_table(server);
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
}

// One option: 1 to go on, 0 with an agreement, negative to close.
static int negotiate(Fiber *self, Handshake *h, NbdsAgreement *ret_agreement)
{
    uint32_t option, len;
    int result = receive_option(self, h, &option, &len);
    if (result < 0)
        return result;
    refresh_table(h);
    const NbdsExportInfo *info = NULL;
    g_byte_array_set_size(h->answer, 0);
    NbdsVerdict verdict =
        nbds_options_execute(&h->options, h->table, h->server_loop->server->is_stopping, option,
                             h->data->data, len, h->answer, &info);
    const GByteArray *answer = verdict == NBDS_VERDICT_LIST ? h->table->list : h->answer;
    result = send_bytes(self, h, answer->data, answer->len);
    if (result < 0)
        return result;
    switch (verdict) {
    case NBDS_VERDICT_CONTINUE:
    case NBDS_VERDICT_LIST:
        return 1;
    case NBDS_VERDICT_TRANSMIT:
        agree(h, info, ret_agreement);
        return 0;
    case NBDS_VERDICT_CLOSE:
        break;
    }
    return -ECONNABORTED;
}

int nbds_handshake_run(Fiber *self, NbdsServerLoop *server_loop, Stream *stream,
                       NbdsAgreement *ret_agreement)
{
    Handshake h = {
        .server_loop = server_loop,
        .stream = stream,
        .data = g_byte_array_new(),
        .answer = g_byte_array_new(),
    };
    int result = exchange_flags(self, &h);
    if (result == 0) {
        do
            result = negotiate(self, &h, ret_agreement);
        while (result > 0);
    }
    nbds_options_done(&h.options);
    nbds_export_table_unref(h.table);
    g_byte_array_unref(h.data);
    g_byte_array_unref(h.answer);
    return result;
}
