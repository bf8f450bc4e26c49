// SPDX-License-Identifier: LGPL-2.1-or-later
// BLOCK_STATUS: each context that was asked for fills a list, contexts of one kind in one walk;
// each list becomes one chunk, the last with DONE. An answer may be shorter than asked, never
// longer, and has at least one extent.
#include <assert.h>
#include <errno.h>

#include "reply.h"
#include "request.h"

enum {
    // Of one request, over all its contexts: far below the protocol's bound, and with
    // MAX_LIST_EXTENTS what one may hold in memory (STATUS_BYTES in admission.c). Clients ask again
    // from where an answer ends.
    MAX_EXTENTS = 1 << 13,
    MAX_LIST_EXTENTS = 1 << 12,
    MAX_TURNS = 64,      // of a walk
    BYTES_OF_STEP = 256, // a step takes as long as copying so many
};
_Static_assert((int)MAX_LIST_EXTENTS <= (int)NBDS_MAX_EXTENTS, "the protocol's bound");
_Static_assert(MAX_EXTENTS / NBDS_MAX_SELECTED_CONTEXTS >= 1, "each list has one");

static const GPtrArray *wanted(const NbdsRequest *request)
{
    return request->contexts ? request->contexts : request->connection->session.contexts;
}

// A shorter answer is allowed, and a long walk must not keep the loop from the others.
static int walk_range(Fiber *self, NbdsRequest *request, NbdsWalk *walk)
{
    const NbdsContextKind *kind = walk->contexts[0]->kind;
    NbdsFlow *flow = &request->connection->flow;
    uint64_t begin = walk->offset;
    int result = 0;
    for (unsigned i = 0; walk->offset < walk->end && i < MAX_TURNS && result >= 0; i++) {
        if (i) {
            nbds_flow_charge(flow, NBDS_WALK_STEPS * BYTES_OF_STEP);
            nbds_flow_wait_turn(self, flow);
        }
        Node *node;
        result = nbds_request_enter(self, request, &node);
        if (result < 0)
            break;
        result = kind->walk(self, node, walk);
        nbds_request_leave(request);
    }
    return walk->offset > begin ? 0 : result; // what is known is an answer
}

static int fill_lists(Fiber *self, NbdsRequest *request, NbdsExtentList *lists)
{
    const NbdsRequestHead *head = &request->head;
    const GPtrArray *contexts = wanted(request);
    NbdsContext **all = (NbdsContext **)contexts->pdata;
    int result = 0;
    for (unsigned i = 0, n; i < contexts->len && result >= 0; i += n) {
        for (n = 1; i + n < contexts->len && all[i + n]->kind == all[i]->kind;)
            n++;
        NbdsWalk walk = {head->offset, head->offset + head->length, all + i, lists + i, n};
        result = walk_range(self, request, &walk);
    }
    return result;
}

static NbdsBuffer *reply_context(NbdsBufferPool *pool, NbdsStyle style, const NbdsRequestHead *head,
                                 uint32_t context_id, const NbdsExtentList *list, bool is_last)
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
    nbds_wire_put_status_start(p, style, context_id, list->n_extents);
    p += nbds_wire_status_start_bytes(style);
    for (unsigned i = 0; i < list->n_extents; i++) {
        nbds_wire_put_status_extent(p, style, list->extents[i].length, list->extents[i].flags);
        p += extent_bytes;
    }
    buffer->length = p - buffer->start;
    return buffer;
}

static void answer(NbdsRequest *request, const NbdsExtentList *lists)
{
    NbdsConnection *c = request->connection;
    const GPtrArray *contexts = wanted(request);
    for (unsigned i = 0; i < contexts->len; i++) {
        const NbdsContext *context = contexts->pdata[i];
        bool is_last = i + 1 == contexts->len;
        NbdsBuffer *reply = reply_context(&c->server_loop->pool, c->session.style, &request->head,
                                          context->id, &lists[i], is_last);
        if (!reply || is_last)
            return nbds_request_finish(request, reply, !reply);
        nbds_sender_queue(&c->sender, reply);
    }
}

void nbds_request_status(Fiber *self, NbdsRequest *request)
{
    bool one = request->head.flags & NBDS_CMD_FLAG_REQ_ONE;
    unsigned n = wanted(request)->len;
    unsigned max_extents = one ? 1 : MIN(MAX_EXTENTS / n, MAX_LIST_EXTENTS);
    NbdsBuffer *scratch =
        nbds_buffer_take(&request->connection->server_loop->pool, n * sizeof(NbdsExtentList));
    if (!scratch)
        return nbds_request_answer(request, -ENOMEM);
    NbdsExtentList *lists = (NbdsExtentList *)nbds_buffer_bytes(scratch);
    for (unsigned i = 0; i < n; i++)
        nbds_extent_list_init(&lists[i], max_extents);
    int result = fill_lists(self, request, lists);
    if (result < 0)
        nbds_request_answer(request, result);
    else
        answer(request, lists); // frees the request
    for (unsigned i = 0; i < n; i++)
        nbds_extent_list_done(&lists[i]);
    nbds_buffer_unref(scratch);
}
