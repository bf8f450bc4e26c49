// SPDX-License-Identifier: LGPL-2.1-or-later
// BLOCK_STATUS: one walk over the node's extents fills a list per context; each list becomes one
// chunk, the last with DONE. An answer may be shorter than asked, never longer, and has at least
// one extent.
#include <assert.h>
#include <errno.h>

#include "reply.h"
#include "request.h"

// Far below the protocol's bound: what one request may hold in memory. Clients ask again from where
// an answer ends.
enum { MAX_EXTENTS = 1 << 12 }; // bounds what an unread reply holds (STATUS_CHARGE)
_Static_assert((int)MAX_EXTENTS <= (int)NBDS_MAX_EXTENTS, "the protocol's bound");

typedef struct Walk {
    NbdsExtentList lists[NBDS_N_CONTEXTS];
    NbdsContextSet open; // contexts that take more extents
    unsigned max_extents;
} Walk;

// Adds to every open list; a list that is full is closed, with what it has.
static void add_extent(Walk *walk, const NodeExtent *extent, uint64_t length)
{
    for (unsigned i = 0; i < NBDS_N_CONTEXTS; i++) {
        if (!(walk->open & (1u << i)))
            continue;
        uint64_t flags = nbds_context_flags(i, extent);
        if (!nbds_extent_list_add(&walk->lists[i], length, flags, walk->max_extents))
            walk->open &= ~(1u << i);
    }
}

enum { LOOKS_A_TURN = 256, MAX_LOOKS = 16384 };

static int walk_node(Fiber *self, Node *node, const NbdsRequestHead *head, Walk *walk)
{
    uint64_t offset = head->offset, end = head->offset + head->length;
    // A shorter answer is allowed; a long look must not keep the loop from the others.
    for (unsigned n = 0; offset < end && walk->open && n < MAX_LOOKS; n++) {
        NodeExtent extent;
        if (n && n % LOOKS_A_TURN == 0)
            fiber_sleep(self, 0);
        int result = node_status_of_host(self, node, guest_off(offset), end - offset, &extent);
        if (result < 0)
            return offset == head->offset ? result : 0; // what is known is an answer
        uint64_t length = MIN(extent.len, end - offset);
        add_extent(walk, &extent, length);
        offset += length;
    }
    return 0;
}

static NbdsBuffer *reply_context(NbdsBufferPool *pool, NbdsStyle style, const NbdsRequestHead *head,
                                 NbdsContext context, const NbdsExtentList *list, bool is_last)
{
    size_t extent_bytes = nbds_wire_status_extent_bytes(style);
    NbdsChunkHead chunk = {
        .flags = is_last ? NBDS_REPLY_FLAG_DONE : 0,
        .type =
            style == NBDS_STYLE_EXTENDED ? NBDS_CHUNK_BLOCK_STATUS_EXT : NBDS_CHUNK_BLOCK_STATUS,
        .cookie = head->cookie,
        .request_offset = head->offset,
        .length = nbds_wire_status_start_bytes(style) + list->n_extents * extent_bytes,
    };
    NbdsBuffer *buffer = nbds_buffer_take(pool, NBDS_MAX_CHUNK_HEAD_BYTES + chunk.length);
    if (!buffer)
        return NULL;
    uint8_t *p = buffer->start;
    nbds_wire_put_chunk_head(p, style, &chunk);
    p += nbds_wire_chunk_head_bytes(style);
    nbds_wire_put_status_start(p, style, nbds_context_id(context), list->n_extents);
    p += nbds_wire_status_start_bytes(style);
    for (unsigned i = 0; i < list->n_extents; i++) {
        nbds_wire_put_status_extent(p, style, list->extents[i].length, list->extents[i].flags);
        p += extent_bytes;
    }
    buffer->length = p - buffer->start;
    return buffer;
}

static void answer(NbdsRequest *request, const Walk *walk)
{
    NbdsConnection *c = request->connection;
    NbdsContextSet left = request->contexts;
    for (unsigned i = 0; left; i++) {
        if (!(left & (1u << i)))
            continue;
        left &= ~(1u << i);
        NbdsBuffer *reply = reply_context(&c->home->pool, c->session.style, &request->head, i,
                                          &walk->lists[i], !left);
        if (reply && left)
            nbds_sender_queue(c, reply);
        else
            return nbds_request_finish(request, reply, !reply);
    }
}

void nbds_request_status(Fiber *self, NbdsRequest *request)
{
    bool one = request->head.flags & NBDS_CMD_FLAG_REQ_ONE;
    Walk walk = {.open = request->contexts, .max_extents = one ? 1 : MAX_EXTENTS};
    Node *node;
    int result = nbds_request_enter(self, request, &node);
    if (result >= 0) {
        result = walk_node(self, node, &request->head, &walk);
        port_leave(&request->connection->export->port);
    }
    if (result < 0)
        nbds_request_answer(request, result);
    else
        answer(request, &walk);
    for (unsigned i = 0; i < NBDS_N_CONTEXTS; i++)
        nbds_extent_list_done(&walk.lists[i]);
}
