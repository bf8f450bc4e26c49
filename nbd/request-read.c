// SPDX-License-Identifier: LGPL-2.1-or-later
// READ. The data goes from the node straight into the reply's buffer, behind its header. A large
// read whose client negotiated chunks is first looked up in the metadata: what reads as zeros is
// sent as holes. Lookups that keep finding only data cost more than they save, so an export's
// reads are then only probed now and then.
#include <errno.h>

#include "reply.h"
#include "request.h"

enum {
    SPARSE_READ_BYTES = 64 << 10, // shorter reads are not looked up
    MIN_HOLE_BYTES = 4096,        // shorter holes are sent as data
    MAX_CHUNKS = 32,
    PROBE_EVERY = 64, // reads, while lookups find no holes
};

typedef struct Chunk {
    uint64_t offset, length;
    bool is_hole;
} Chunk;

// The pieces of one read, in order, covering it.
typedef struct Layout {
    Chunk chunks[MAX_CHUNKS];
    unsigned n_chunks;
    unsigned n_holes;
} Layout;

static void add_piece(Layout *layout, uint64_t offset, uint64_t length, bool is_hole)
{
    Chunk *last = layout->n_chunks ? &layout->chunks[layout->n_chunks - 1] : NULL;
    if (last && last->is_hole == is_hole) {
        last->length += length;
        return;
    }
    layout->chunks[layout->n_chunks++] = (Chunk){offset, length, is_hole};
    layout->n_holes += is_hole;
}

// Where the holes are. Errors count as data: the read will meet them.
static void look_up(Fiber *self, Node *node, const NbdsRequestHead *head, Layout *layout)
{
    uint64_t offset = head->offset, end = head->offset + head->length;
    while (offset < end) {
        NodeExtent extent;
        bool is_last = layout->n_chunks >= MAX_CHUNKS - 1;
        if (is_last || node_status(self, node, guest_off(offset), end - offset, &extent) < 0) {
            add_piece(layout, offset, end - offset, false);
            return;
        }
        uint64_t length = MIN(extent.len, end - offset);
        bool is_zero = extent.kind == NODE_EXTENT_BELOW || extent.kind == NODE_EXTENT_ZERO ||
                       extent.kind == NODE_EXTENT_ZERO_ALLOCATED;
        add_piece(layout, offset, length, is_zero && length >= MIN_HOLE_BYTES);
        offset += length;
    }
}

static bool shall_look_up(NbdsExport *export, const NbdsSession *session,
                          const NbdsRequestHead *head)
{
    if (head->length < SPARSE_READ_BYTES || session->style == NBDS_STYLE_SIMPLE ||
        (head->flags & NBDS_CMD_FLAG_DF))
        return false;
    if (export->sparse_reads_pay)
        return true;
    export->n_reads_to_probe = (export->n_reads_to_probe + 1) % PROBE_EVERY;
    return export->n_reads_to_probe == 1;
}

static size_t put_chunk(uint8_t *p, const NbdsSession *session, const NbdsRequestHead *head,
                        const Chunk *chunk, bool is_last)
{
    size_t head_bytes = nbds_wire_chunk_head_bytes(session->style);
    NbdsChunkHead chunk_head = {
        .flags = is_last ? NBDS_REPLY_FLAG_DONE : 0,
        .type = chunk->is_hole ? NBDS_CHUNK_OFFSET_HOLE : NBDS_CHUNK_OFFSET_DATA,
        .cookie = head->cookie,
        .request_offset = head->offset,
        .length = chunk->is_hole ? NBDS_HOLE_CHUNK_BYTES : NBDS_DATA_CHUNK_BYTES + chunk->length,
    };
    nbds_wire_put_chunk_head(p, session->style, &chunk_head);
    nbds_wire_put_u64(p + head_bytes, chunk->offset);
    if (chunk->is_hole)
        nbds_wire_put_u32(p + head_bytes + 8, chunk->length);
    return head_bytes + (chunk->is_hole ? NBDS_HOLE_CHUNK_BYTES : NBDS_DATA_CHUNK_BYTES);
}

static int read_whole(Fiber *self, const NbdsRequest *request, Node *node, uint8_t *to)
{
    const NbdsRequestHead *head = &request->head;
    IoBatch batch;
    io_batch_init(&batch, self);
    int result = node_read_start(self, node, guest_off(head->offset), to, head->length, &batch);
    int waited = io_batch_wait(self, &batch);
    return result < 0 ? result : waited;
}

// All chunks lie in one buffer; data is read to where it will be sent from.
static int read_sparse(Fiber *self, NbdsRequest *request, Node *node, const Layout *layout,
                       NbdsBuffer **ret_reply)
{
    NbdsConnection *c = request->connection;
    uint64_t bytes = 0;
    for (unsigned i = 0; i < layout->n_chunks; i++)
        bytes += NBDS_MAX_CHUNK_HEAD_BYTES + NBDS_HOLE_CHUNK_BYTES +
                 (layout->chunks[i].is_hole ? 0 : layout->chunks[i].length);
    NbdsBuffer *buffer = nbds_buffer_take(&c->server_loop->pool, bytes);
    if (!buffer)
        return -ENOMEM;
    IoBatch batch;
    io_batch_init(&batch, self);
    uint8_t *p = buffer->start;
    int result = 0;
    for (unsigned i = 0; i < layout->n_chunks && result >= 0; i++) {
        const Chunk *chunk = &layout->chunks[i];
        p += put_chunk(p, &c->session, &request->head, chunk, i == layout->n_chunks - 1);
        if (chunk->is_hole)
            continue;
        result = node_read_start(self, node, guest_off(chunk->offset), p, chunk->length, &batch);
        p += chunk->length;
    }
    int waited = io_batch_wait(self, &batch);
    if (result >= 0)
        result = waited;
    if (result < 0) {
        nbds_buffer_unref(buffer);
        return result;
    }
    buffer->length = p - buffer->start;
    *ret_reply = buffer;
    return 0;
}

static int read_plain(Fiber *self, NbdsRequest *request, Node *node, NbdsBuffer **ret_reply)
{
    NbdsConnection *c = request->connection;
    const NbdsRequestHead *head = &request->head;
    NbdsBuffer *buffer = nbds_buffer_take(&c->server_loop->pool, head->length);
    if (!buffer)
        return -ENOMEM;
    int result = read_whole(self, request, node, nbds_buffer_bytes(buffer));
    if (result < 0) {
        nbds_buffer_unref(buffer);
        return result;
    }
    nbds_reply_finish_read(buffer, c->session.style, head);
    *ret_reply = buffer;
    return 0;
}

static int read_node(Fiber *self, NbdsRequest *request, Node *node, NbdsBuffer **ret_reply)
{
    NbdsConnection *c = request->connection;
    if (shall_look_up(c->export, &c->session, &request->head)) {
        Layout layout;
        layout.n_chunks = layout.n_holes = 0;
        look_up(self, node, &request->head, &layout);
        c->export->sparse_reads_pay = layout.n_holes;
        if (layout.n_holes)
            return read_sparse(self, request, node, &layout, ret_reply);
    }
    return read_plain(self, request, node, ret_reply);
}

void nbds_request_read(Fiber *self, NbdsRequest *request)
{
    if (!request->head.length)
        return nbds_request_answer(request, 0);
    NbdsBuffer *reply = NULL;
    Node *node;
    int result = nbds_request_enter(self, request, &node);
    if (result >= 0) {
        result = read_node(self, request, node, &reply);
        nbds_request_leave(request);
    }
    if (result < 0)
        nbds_request_answer(request, result);
    else
        nbds_request_finish(request, reply, false);
}
