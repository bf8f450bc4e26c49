// SPDX-License-Identifier: LGPL-2.1-or-later
// The raw client. It trusts nothing: each length is compared before use, each rule of the reply
// formats asserted.
#include "client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

int client_connect(const char *path)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval limit = {.tv_sec = HANG_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    return fd;
}

void client_send(Client *c, const void *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n =
            TEMP_FAILURE_RETRY(send(c->fd, (const char *)data + done, len - done, MSG_NOSIGNAL));
        if (n < 0)
            fail_msg("send: %s", strerror(errno));
        done += n;
    }
}

void client_recv(Client *c, void *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = TEMP_FAILURE_RETRY(recv(c->fd, (char *)data + done, len - done, 0));
        if (n <= 0)
            fail_msg("receive after %zu of %zu bytes: %s", done, len, n ? strerror(errno) : "end");
        done += n;
    }
}

bool client_at_end(Client *c)
{
    uint8_t byte;
    ssize_t n = TEMP_FAILURE_RETRY(recv(c->fd, &byte, 1, 0));
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

// --- Handshake ---

void client_send_option(Client *c, uint32_t option, const void *data, uint32_t len)
{
    uint8_t head[16];
    memcpy(head, "IHAVEOPT", 8);
    nbds_wire_put_u32(head + 8, option);
    nbds_wire_put_u32(head + 12, len);
    client_send(c, head, sizeof head);
    client_send(c, data, len);
}

uint32_t client_recv_option_reply(Client *c, uint32_t option, GByteArray **ret_data)
{
    uint8_t head[20];
    client_recv(c, head, sizeof head);
    assert_true(nbds_wire_get_u64(head) == 0x3e889045565a9);
    assert_int_equal(nbds_wire_get_u32(head + 8), option);
    uint32_t len = nbds_wire_get_u32(head + 16);
    assert_in_range(len, 0, 1 << 20);
    g_autoptr(GByteArray) data = g_byte_array_new();
    g_byte_array_set_size(data, len);
    client_recv(c, data->data, len);
    if (ret_data)
        *ret_data = g_steal_pointer(&data);
    return nbds_wire_get_u32(head + 12);
}

static void append_u32(GByteArray *a, uint32_t v)
{
    uint8_t p[4];
    nbds_wire_put_u32(p, v);
    g_byte_array_append(a, p, 4);
}

static void append_string(GByteArray *a, const char *s)
{
    append_u32(a, strlen(s));
    g_byte_array_append(a, (const uint8_t *)s, strlen(s));
}

static void select_contexts(Client *c, const char *name)
{
    static const char *const contexts[] = {"base:allocation", "qemu:allocation-depth"};
    g_autoptr(GByteArray) option = g_byte_array_new();
    append_string(option, name);
    append_u32(option, 2);
    append_string(option, contexts[0]);
    append_string(option, contexts[1]);
    client_send_option(c, NBDS_OPT_SET_META_CONTEXT, option->data, option->len);
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(GByteArray) data = NULL;
        assert_int_equal(client_recv_option_reply(c, NBDS_OPT_SET_META_CONTEXT, &data),
                         NBDS_REP_META_CONTEXT);
        assert_int_equal(data->len, 4 + strlen(contexts[i]));
        c->context_ids[i] = nbds_wire_get_u32(data->data);
    }
    assert_int_equal(client_recv_option_reply(c, NBDS_OPT_SET_META_CONTEXT, NULL), NBDS_REP_ACK);
}

static void go(Client *c, const char *name)
{
    g_autoptr(GByteArray) option = g_byte_array_new();
    append_string(option, name);
    g_byte_array_append(option, (const uint8_t[]){0, 0}, 2);
    client_send_option(c, NBDS_OPT_GO, option->data, option->len);
    for (;;) {
        g_autoptr(GByteArray) data = NULL;
        uint32_t type = client_recv_option_reply(c, NBDS_OPT_GO, &data);
        if (type == NBDS_REP_ACK)
            return;
        assert_int_equal(type, NBDS_REP_INFO);
        if (nbds_wire_get_u16(data->data) == NBDS_INFO_EXPORT) {
            c->size_bytes = nbds_wire_get_u64(data->data + 2);
            c->flags = nbds_wire_get_u16(data->data + 10);
        }
    }
}

Client *client_new(const char *path, const ClientConfig *config)
{
    Client *c = g_new0(Client, 1);
    const char *name = config->export_name ? config->export_name : "";
    c->fd = client_connect(path);
    c->style = config->style;
    uint8_t greeting[18];
    client_recv(c, greeting, sizeof greeting);
    client_send(c, (const uint8_t[]){0, 0, 0, 3}, 4);
    if (c->style != NBDS_STYLE_SIMPLE) {
        uint32_t option =
            c->style == NBDS_STYLE_EXTENDED ? NBDS_OPT_EXTENDED_HEADERS : NBDS_OPT_STRUCTURED_REPLY;
        client_send_option(c, option, NULL, 0);
        assert_int_equal(client_recv_option_reply(c, option, NULL), NBDS_REP_ACK);
    }
    if (config->contexts)
        select_contexts(c, name);
    if (config->use_export_name) {
        uint8_t answer[10];
        client_send_option(c, NBDS_OPT_EXPORT_NAME, name, strlen(name));
        client_recv(c, answer, sizeof answer);
        c->size_bytes = nbds_wire_get_u64(answer);
        c->flags = nbds_wire_get_u16(answer + 8);
    } else {
        go(c, name);
    }
    return c;
}

void client_free(Client *c)
{
    close(c->fd);
    g_free(c);
}

// --- Transmission ---

void client_request(Client *c, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                    uint64_t length, const void *payload, size_t payload_bytes)
{
    uint8_t head[32];
    bool extended = c->style == NBDS_STYLE_EXTENDED;
    if (extended && payload_bytes)
        flags |= NBDS_CMD_FLAG_PAYLOAD_LEN;
    nbds_wire_put_u32(head, extended ? 0x21e41c71 : 0x25609513);
    nbds_wire_put_u16(head + 4, flags);
    nbds_wire_put_u16(head + 6, type);
    nbds_wire_put_u64(head + 8, cookie);
    nbds_wire_put_u64(head + 16, offset);
    if (extended)
        nbds_wire_put_u64(head + 24, length);
    else
        nbds_wire_put_u32(head + 24, length);
    client_send(c, head, extended ? 32 : 28);
    if (payload_bytes)
        client_send(c, payload, payload_bytes);
}

void client_reply_clear(ClientReply *reply)
{
    for (unsigned i = 0; i < 2; i++)
        g_clear_pointer(&reply->extents[i], g_array_unref);
    *reply = (ClientReply){0};
}

typedef struct Parse {
    Client *c;
    uint64_t offset, length;
    uint8_t *data;
    GByteArray *seen; // one byte per byte of a READ: covered?
    ClientReply *reply;
} Parse;

static void cover(Parse *p, uint64_t offset, uint64_t length)
{
    assert_true(length > 0 && offset >= p->offset && offset - p->offset <= p->length &&
                length <= p->length - (offset - p->offset));
    for (uint64_t i = 0; i < length; i++)
        assert_int_equal(p->seen->data[offset - p->offset + i], 0);
    memset(p->seen->data + (offset - p->offset), 1, length);
    p->reply->covered_bytes += length;
}

static void parse_data(Parse *p, uint64_t payload_bytes)
{
    uint8_t offset[8];
    assert_in_range(payload_bytes, 9, NBDS_MAX_PAYLOAD + 8);
    client_recv(p->c, offset, 8);
    uint64_t at = nbds_wire_get_u64(offset), n = payload_bytes - 8;
    cover(p, at, n);
    g_autofree uint8_t *scratch = p->data ? NULL : g_malloc(n);
    client_recv(p->c, p->data ? p->data + (at - p->offset) : scratch, n);
    p->reply->n_data++;
}

static void parse_hole(Parse *p, uint64_t payload_bytes)
{
    uint8_t hole[12];
    assert_int_equal(payload_bytes, 12);
    client_recv(p->c, hole, 12);
    uint64_t at = nbds_wire_get_u64(hole);
    uint32_t n = nbds_wire_get_u32(hole + 8);
    cover(p, at, n);
    if (p->data)
        memset(p->data + (at - p->offset), 0, n);
    p->reply->n_holes++;
}

static void parse_error(Parse *p, uint64_t payload_bytes)
{
    uint8_t start[6];
    assert_in_range(payload_bytes, 6, 6 + 4096);
    client_recv(p->c, start, 6);
    p->reply->error = nbds_wire_get_u32(start);
    assert_int_not_equal(p->reply->error, 0);
    uint16_t n = nbds_wire_get_u16(start + 4);
    assert_int_equal(n, payload_bytes - 6);
    assert_in_range(n, 0, sizeof p->reply->message - 1);
    client_recv(p->c, p->reply->message, n);
    p->reply->message[n] = 0;
}

static void parse_status(Parse *p, uint64_t payload_bytes)
{
    bool extended = p->c->style == NBDS_STYLE_EXTENDED;
    size_t start_bytes = extended ? 8 : 4, each = extended ? 16 : 8;
    assert_in_range(payload_bytes, start_bytes + each, 8 + 16 * NBDS_MAX_EXTENTS);
    assert_int_equal((payload_bytes - start_bytes) % each, 0);
    g_autofree uint8_t *payload = g_malloc(payload_bytes);
    client_recv(p->c, payload, payload_bytes);
    uint64_t n = (payload_bytes - start_bytes) / each;
    if (extended)
        assert_int_equal(nbds_wire_get_u32(payload + 4), n);
    unsigned context = nbds_wire_get_u32(payload) == p->c->context_ids[0] ? 0 : 1;
    assert_int_equal(nbds_wire_get_u32(payload), p->c->context_ids[context]);
    assert_null(p->reply->extents[context]); // one chunk per context
    p->reply->extents[context] = g_array_new(false, false, sizeof(ClientExtent));
    for (uint64_t i = 0; i < n; i++) {
        const uint8_t *e = payload + start_bytes + i * each;
        ClientExtent extent = {extended ? nbds_wire_get_u64(e) : nbds_wire_get_u32(e),
                               extended ? nbds_wire_get_u64(e + 8) : nbds_wire_get_u32(e + 4)};
        assert_true(extent.length > 0);
        g_array_append_val(p->reply->extents[context], extent);
    }
}

// True after the last chunk.
static bool parse_chunk(Parse *p, uint16_t type, const uint8_t *head, size_t head_bytes)
{
    bool extended = head_bytes == 32;
    uint16_t flags = nbds_wire_get_u16(head + 4);
    assert_int_equal(flags & ~NBDS_REPLY_FLAG_DONE, 0);
    if (extended)
        assert_true(nbds_wire_get_u64(head + 16) == p->offset);
    uint64_t n = extended ? nbds_wire_get_u64(head + 24) : nbds_wire_get_u32(head + 16);
    uint64_t cookie = nbds_wire_get_u64(head + 8);
    assert_true(!p->reply->n_chunks || p->reply->cookie == cookie);
    p->reply->cookie = cookie;
    p->reply->n_chunks++;
    switch (nbds_wire_get_u16(head + 6)) {
    case NBDS_CHUNK_NONE:
        assert_int_equal(n, 0);
        assert_int_equal(flags, NBDS_REPLY_FLAG_DONE);
        break;
    case NBDS_CHUNK_OFFSET_DATA:
        assert_int_equal(type, NBDS_CMD_READ);
        parse_data(p, n);
        break;
    case NBDS_CHUNK_OFFSET_HOLE:
        assert_int_equal(type, NBDS_CMD_READ);
        parse_hole(p, n);
        break;
    case NBDS_CHUNK_BLOCK_STATUS:
    case NBDS_CHUNK_BLOCK_STATUS_EXT:
        assert_int_equal(type, NBDS_CMD_BLOCK_STATUS);
        assert_int_equal(nbds_wire_get_u16(head + 6),
                         extended ? NBDS_CHUNK_BLOCK_STATUS_EXT : NBDS_CHUNK_BLOCK_STATUS);
        parse_status(p, n);
        break;
    case NBDS_CHUNK_ERROR:
        parse_error(p, n);
        break;
    default:
        fail_msg("chunk type %u", nbds_wire_get_u16(head + 6));
    }
    return flags & NBDS_REPLY_FLAG_DONE;
}

void client_reply(Client *c, uint16_t type, uint64_t offset, uint64_t length, void *data,
                  ClientReply *ret_reply)
{
    *ret_reply = (ClientReply){0};
    g_autoptr(GByteArray) seen = g_byte_array_new();
    if (type == NBDS_CMD_READ && length && length <= NBDS_MAX_PAYLOAD) {
        g_byte_array_set_size(seen, length);
        memset(seen->data, 0, length);
    }
    Parse p = {c, offset, length, data, seen, ret_reply};
    for (bool is_done = false; !is_done;) {
        uint8_t head[32];
        client_recv(c, head, 16);
        switch (nbds_wire_get_u32(head)) {
        case 0x67446698:
            assert_int_not_equal(c->style, NBDS_STYLE_EXTENDED);
            assert_true(c->style == NBDS_STYLE_SIMPLE || type != NBDS_CMD_READ);
            ret_reply->error = nbds_wire_get_u32(head + 4);
            ret_reply->cookie = nbds_wire_get_u64(head + 8);
            if (type == NBDS_CMD_READ && !ret_reply->error) {
                g_autofree uint8_t *scratch = data ? NULL : g_malloc(length);
                client_recv(c, data ? data : scratch, length);
                ret_reply->covered_bytes = length;
            }
            is_done = true;
            break;
        case 0x668e33ef:
            assert_int_equal(c->style, NBDS_STYLE_STRUCTURED);
            client_recv(c, head + 16, 4);
            is_done = parse_chunk(&p, type, head, 20);
            break;
        case 0x6e8a278c:
            assert_int_equal(c->style, NBDS_STYLE_EXTENDED);
            client_recv(c, head + 16, 16);
            is_done = parse_chunk(&p, type, head, 32);
            break;
        default:
            fail_msg("reply magic %x", nbds_wire_get_u32(head));
        }
    }
    if (type == NBDS_CMD_READ && !ret_reply->error)
        assert_int_equal(ret_reply->covered_bytes, length);
}

uint32_t client_do(Client *c, uint16_t type, uint16_t flags, uint64_t offset, uint64_t length,
                   void *data)
{
    static _Thread_local uint64_t cookie = 1000;
    ClientReply reply;
    client_request(c, type, flags, ++cookie, offset, length, data,
                   type == NBDS_CMD_WRITE ? length : 0);
    client_reply(c, type, offset, length, type == NBDS_CMD_READ ? data : NULL, &reply);
    assert_true(reply.cookie == cookie);
    uint32_t error = reply.error;
    client_reply_clear(&reply);
    return error;
}
