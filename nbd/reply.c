// SPDX-License-Identifier: LGPL-2.1-or-later
// The replies that are one header with at most one payload. Where the protocol allows both, success
// without data is a simple reply (it is shorter), an error a chunk (it can carry a message).
#include "reply.h"

#include <assert.h>
#include <string.h>

_Static_assert(NBDS_BUFFER_HEADROOM >= NBDS_MAX_CHUNK_HEAD_BYTES + NBDS_DATA_CHUNK_BYTES,
               "a read's header fits in front of its data");

static NbdsChunkHead chunk_head(const NbdsRequestHead *head, NbdsChunkType type, uint64_t length)
{
    return (NbdsChunkHead){NBDS_REPLY_FLAG_DONE, type, head->cookie, head->offset, length};
}

static NbdsBuffer *simple_reply(NbdsBufferPool *pool, const NbdsRequestHead *head,
                                NbdsErrorCode error)
{
    NbdsBuffer *buffer = nbds_buffer_take(pool, 0);
    if (!buffer)
        return NULL;
    buffer->length = NBDS_SIMPLE_REPLY_BYTES;
    nbds_wire_put_simple_reply(buffer->start, error, head->cookie);
    return buffer;
}

NbdsBuffer *nbds_reply_ack(NbdsBufferPool *pool, NbdsStyle style, const NbdsRequestHead *head)
{
    bool simple_allowed = style == NBDS_STYLE_SIMPLE ||
                          (style == NBDS_STYLE_STRUCTURED && head->type != NBDS_CMD_READ);
    if (simple_allowed)
        return simple_reply(pool, head, NBDS_OK);
    NbdsBuffer *buffer = nbds_buffer_take(pool, 0);
    if (!buffer)
        return NULL;
    buffer->length = nbds_wire_chunk_head_bytes(style);
    NbdsChunkHead chunk = chunk_head(head, NBDS_CHUNK_NONE, 0);
    nbds_wire_put_chunk_head(buffer->start, style, &chunk);
    return buffer;
}

NbdsBuffer *nbds_reply_error(NbdsBufferPool *pool, NbdsStyle style, const NbdsRequestHead *head,
                             NbdsErrorCode error, const char *message)
{
    assert(error != NBDS_OK);
    if (style == NBDS_STYLE_SIMPLE)
        return simple_reply(pool, head, error);
    size_t message_len = message ? strlen(message) : 0;
    size_t head_bytes = nbds_wire_chunk_head_bytes(style);
    NbdsBuffer *buffer = nbds_buffer_take(pool, head_bytes + NBDS_ERROR_CHUNK_BYTES + message_len);
    if (!buffer)
        return NULL;
    NbdsChunkHead chunk = chunk_head(head, NBDS_CHUNK_ERROR, NBDS_ERROR_CHUNK_BYTES + message_len);
    nbds_wire_put_chunk_head(buffer->start, style, &chunk);
    uint8_t *payload = buffer->start + head_bytes;
    nbds_wire_put_u32(payload, error);
    nbds_wire_put_u16(payload + 4, message_len);
    if (message_len)
        memcpy(payload + NBDS_ERROR_CHUNK_BYTES, message, message_len);
    buffer->length = head_bytes + chunk.length;
    return buffer;
}

void nbds_reply_finish_read(NbdsBuffer *buffer, NbdsStyle style, const NbdsRequestHead *head)
{
    uint8_t *data = nbds_buffer_bytes(buffer);
    if (style == NBDS_STYLE_SIMPLE) {
        buffer->start = data - NBDS_SIMPLE_REPLY_BYTES;
        nbds_wire_put_simple_reply(buffer->start, NBDS_OK, head->cookie);
    } else {
        NbdsChunkHead chunk =
            chunk_head(head, NBDS_CHUNK_OFFSET_DATA, NBDS_DATA_CHUNK_BYTES + head->length);
        buffer->start = data - NBDS_DATA_CHUNK_BYTES - nbds_wire_chunk_head_bytes(style);
        nbds_wire_put_chunk_head(buffer->start, style, &chunk);
        nbds_wire_put_u64(data - NBDS_DATA_CHUNK_BYTES, head->offset);
    }
    buffer->length = data + head->length - buffer->start;
}
