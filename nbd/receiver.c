// SPDX-License-Identifier: LGPL-2.1-or-later
// Receives into a big buffer, starts each request that is complete there, and waits where limits
// (admission.h) and the scheduler say so. Payloads are used in place; a
// request holds a reference on the buffer its payload lies in. The rules that keep large payloads
// from being copied:
//
// - While a large payload is incomplete, no more is received than fits behind it as whole requests
//   of the same size, and one header. So what has to move to the next buffer is at most that
//   header.
// - A buffer that nobody else refers to is used again from its start, which is warm.
// - A fresh buffer's first header goes into the headroom, its payload starts aligned.
//
// On the connection's loop, in its receiver fiber.
#include "receiver.h"

#include <string.h>

#include "request.h"

enum {
    SMALL_INPUT = 32 << 10, // capacity of an input buffer, before and after it proves too small
    LARGE_INPUT = 256 << 10,
    LARGE_PAYLOAD = 32 << 10,   // from here on a payload counts as large
    PAIRED_PAYLOAD = 512 << 10, // up to here a buffer has room for two of its size: one is received
                                // while the other is written
    MIN_ROOM = 16 << 10,        // do not receive small requests into less
    SHRINK_AFTER = 1024,        // receives in a row that fit in MIN_ROOM
};

struct NbdsReceiver {
    NbdsConnection *connection;
    NbdsBuffer *input; // unparsed bytes: [pos, end)
    uint8_t *pos, *end;
    uint64_t skip_bytes;     // payload of a refused request still to be dropped
    uint32_t input_capacity; // of the next small-request buffer
    uint32_t n_small_receives;
    GByteArray *parked;    // while it does not run: the unparsed bytes; or NULL
    NbdsRequest *incoming; // the request at `pos`, admitted, its payload incomplete; or NULL
};

typedef enum Step { STEP_TAKEN, STEP_INCOMPLETE, STEP_END } Step;

// Admits a request; NULL when the receiver shall end.
static NbdsRequest *admit(Fiber *self, NbdsReceiver *r, const NbdsRequestHead *head, uint64_t bytes)
{
    NbdsConnection *c = r->connection;
    NbdsCharge charge;
    if (nbds_admission_enter(self, &c->admission, bytes, &charge) < 0)
        return NULL;
    NbdsRequest *request = nbds_request_take(c, head);
    if (!request) {
        nbds_sender_drop(&c->sender, &charge);
        return NULL;
    }
    request->charge = charge;
    return request;
}

static NbdsRequest *take_incoming(NbdsReceiver *r)
{
    NbdsRequest *request = r->incoming;
    r->incoming = NULL;
    return request;
}

static Step refuse(Fiber *self, NbdsReceiver *r, const NbdsRequestHead *head,
                   const NbdsCheck *check)
{
    NbdsConnection *c = r->connection;
    NbdsRequest *request = take_incoming(r);
    if (!request)
        request = admit(self, r, head, NBDS_ADMISSION_REFUSAL_BYTES);
    if (!request)
        return STEP_END;
    r->pos += nbds_wire_request_head_bytes(c->session.style);
    r->skip_bytes = check->payload_bytes;
    nbds_flow_refuse(&c->flow);
    nbds_request_refuse(request, check->error, check->message);
    return STEP_TAKEN;
}

static Step execute(Fiber *self, NbdsReceiver *r, const NbdsCheck *check)
{
    NbdsConnection *c = r->connection;
    NbdsRequest *request = take_incoming(r);
    const NbdsRequestHead *head = &request->head;
    uint8_t *payload = r->pos + nbds_wire_request_head_bytes(c->session.style);
    r->pos = payload + check->payload_bytes;
    if (c->state == NBDS_STATE_DRAINING) { // began while waiting
        nbds_request_refuse(request, NBDS_ESHUTDOWN, "the server is stopping");
        return STEP_TAKEN;
    }
    if (check->payload_bytes && head->type == NBDS_CMD_BLOCK_STATUS) {
        NbdsCheck filter = nbds_request_check_filter(&c->session, payload, check->payload_bytes,
                                                     &request->head, &request->contexts);
        if (filter.action != NBDS_ACTION_EXECUTE) {
            nbds_request_refuse(request, filter.error, filter.message);
            return STEP_TAKEN;
        }
    } else if (check->payload_bytes) {
        request->payload = payload;
        request->input = nbds_buffer_ref(r->input);
    }
    nbds_request_start(self, request);
    return STEP_TAKEN;
}

// Starts the request at `pos` if it is complete; else tells how many bytes it needs in all.
static Step take_request(Fiber *self, NbdsReceiver *r, size_t *ret_needed)
{
    NbdsConnection *c = r->connection;
    size_t head_bytes = nbds_wire_request_head_bytes(c->session.style);
    size_t have = r->end - r->pos;
    *ret_needed = head_bytes;
    if (have < head_bytes)
        return STEP_INCOMPLETE;
    nbds_flow_wait_turn(self, &c->flow);
    NbdsRequestHead head;
    if (!nbds_wire_get_request_head(r->pos, c->session.style, &head))
        return STEP_END;
    NbdsCheck check = nbds_request_check(&c->session, &head);
    if (check.action == NBDS_ACTION_EXECUTE && c->state == NBDS_STATE_DRAINING) {
        check.action = NBDS_ACTION_REFUSE;
        check.error = NBDS_ESHUTDOWN;
        check.message = "the server is stopping";
    }
    switch (check.action) {
    case NBDS_ACTION_DISCONNECT:
    case NBDS_ACTION_BREACH:
        return STEP_END;
    case NBDS_ACTION_REFUSE:
        return refuse(self, r, &head, &check);
    case NBDS_ACTION_EXECUTE:
        if (c->export->is_writethrough && nbds_request_changes(&head))
            head.flags |= NBDS_CMD_FLAG_FUA;
        break;
    }
    *ret_needed = head_bytes + check.payload_bytes;
    // Before memory for the payload is taken.
    if (!r->incoming)
        r->incoming = admit(self, r, &head,
                            nbds_admission_bytes(&head, nbds_export_preferred_bytes(c->export)));
    if (!r->incoming)
        return STEP_END;
    return have < *ret_needed ? STEP_INCOMPLETE : execute(self, r, &check);
}

static uint8_t *input_limit(const NbdsReceiver *r)
{
    return nbds_buffer_bytes(r->input) + r->input->capacity + NBDS_BUFFER_SLACK;
}

// Makes room behind `end` for what the request at `pos` still needs, at least.
static bool make_room(NbdsReceiver *r, size_t needed)
{
    NbdsConnection *c = r->connection;
    size_t head_bytes = nbds_wire_request_head_bytes(c->session.style);
    size_t have = r->end - r->pos;
    size_t room = MAX(needed - have, needed < LARGE_PAYLOAD ? MIN_ROOM : 0);
    // Payload that is being dropped asks for a byte at a time: less than a header.
    size_t payload = needed > head_bytes ? needed - head_bytes : 0;
    if (payload >= LARGE_PAYLOAD && payload <= PAIRED_PAYLOAD)
        r->input_capacity = MAX(r->input_capacity, 2 * payload);
    size_t capacity = MAX(r->input_capacity, payload);
    // A client that has become quiet does not keep the buffer of a very large payload.
    bool is_oversized = r->input && have <= head_bytes && r->input->capacity > 2 * capacity;
    bool is_ours = r->input && r->input->n_refs == 1 && !is_oversized;
    if (is_ours && !have)
        r->pos = r->end = nbds_buffer_bytes(r->input) - head_bytes;
    if (r->input && !is_oversized && (size_t)(input_limit(r) - r->end) >= room)
        return true;

    if (is_ours && r->input->capacity >= have + room) {
        uint8_t *start = nbds_buffer_bytes(r->input) - head_bytes;
        memmove(start, r->pos, have);
        r->pos = start;
    } else {
        NbdsBuffer *input = nbds_buffer_take(&c->server_loop->pool, capacity);
        if (!input)
            return false;
        uint8_t *start = nbds_buffer_bytes(input) - head_bytes;
        if (have)
            memcpy(start, r->pos, have);
        nbds_buffer_unref(r->input);
        r->input = input;
        r->pos = start;
    }
    r->end = r->pos + have;
    return true;
}

// A client with little to say keeps a small buffer.
static void adapt_capacity(NbdsReceiver *r, size_t received, size_t room)
{
    if (received == room && room >= MIN_ROOM) {
        r->input_capacity = MAX(r->input_capacity, LARGE_INPUT);
        r->n_small_receives = 0;
    } else if (received > MIN_ROOM) {
        r->n_small_receives = 0;
    } else if (++r->n_small_receives >= SHRINK_AFTER) {
        r->input_capacity = SMALL_INPUT;
    }
}

// How much to receive when the request at `pos` needs `needed` bytes in all.
static size_t bytes_to_ask(const NbdsReceiver *r, size_t needed, size_t max)
{
    size_t head_bytes = nbds_wire_request_head_bytes(r->connection->session.style);
    size_t have = r->end - r->pos, ask = input_limit(r) - r->end;
    if (needed > LARGE_PAYLOAD) {
        size_t n_fit = (input_limit(r) - r->pos) / needed;
        ask = MIN(ask, n_fit * needed + head_bytes - have);
    }
    return MIN(ask, max);
}

static bool receive_more(Fiber *self, NbdsReceiver *r, size_t needed)
{
    NbdsConnection *c = r->connection;
    NbdsReceive next = nbds_flow_next_receive(&c->flow, r->incoming);
    // First, so that it is known whether the buffer is free.
    if (next.wait == NBDS_WAIT_WRITES && nbds_flow_wait_for_writes(self, &c->flow) < 0)
        return false;
    if (!make_room(r, needed))
        return false;
    size_t room = input_limit(r) - r->end, ask = bytes_to_ask(r, needed, next.max_bytes);
    ssize_t received = next.wait == NBDS_WAIT_READER
                           ? stream_recv_coalesced(self, c->stream, r->end, ask, c->admission.bytes)
                           : stream_recv(self, c->stream, r->end, ask);
    if (received <= 0)
        return false;
    r->end += received;
    nbds_admission_note_progress(&c->admission, (uint64_t)received);
    if (ask == room)
        adapt_capacity(r, received, room);
    nbds_flow_received(&c->flow);
    return true;
}

// Drops payload of a refused request. True when more of it has to be received.
static bool skip_payload(NbdsReceiver *r)
{
    if (!r->skip_bytes)
        return false;
    uint64_t n = MIN(r->skip_bytes, (uint64_t)(r->end - r->pos));
    r->pos += n;
    r->skip_bytes -= n;
    return r->skip_bytes;
}

// Takes up the bytes that were parked, if any. False when memory is out.
static bool unpark(NbdsReceiver *r)
{
    g_autoptr(GByteArray) parked = g_steal_pointer(&r->parked);
    r->input_capacity = SMALL_INPUT;
    if (!parked)
        return true;
    // A payload at most, a header in front of it and one behind.
    size_t capacity = CLAMP(parked->len, SMALL_INPUT, NBDS_MAX_PAYLOAD);
    r->input = nbds_buffer_take(&r->connection->server_loop->pool, capacity);
    if (!r->input)
        return false;
    r->pos =
        nbds_buffer_bytes(r->input) - nbds_wire_request_head_bytes(r->connection->session.style);
    r->end = r->pos + parked->len;
    memcpy(r->pos, parked->data, parked->len);
    return true;
}

// An incomplete request has not taken effect: it is received again, from here.
static void park(NbdsReceiver *r)
{
    if (r->incoming)
        nbds_request_abandon(take_incoming(r));
    if (r->end != r->pos)
        r->parked = g_byte_array_append(g_byte_array_new(), r->pos, r->end - r->pos);
    nbds_buffer_unref(r->input);
    r->input = NULL;
    r->pos = r->end = NULL;
}

NbdsReceiver *nbds_receiver_new(NbdsConnection *c)
{
    NbdsReceiver *r = g_new0(NbdsReceiver, 1);
    r->connection = c;
    return r;
}

void nbds_receiver_free(NbdsReceiver *r)
{
    g_clear_pointer(&r->parked, g_byte_array_unref);
    g_free(r);
}

void nbds_receiver_run(Fiber *self, NbdsReceiver *r)
{
    if (!unpark(r))
        return;
    for (;;) {
        size_t needed = 1;
        Step step = skip_payload(r) ? STEP_INCOMPLETE : take_request(self, r, &needed);
        if (step == STEP_END)
            break;
        if (step == STEP_INCOMPLETE && !receive_more(self, r, needed))
            break;
    }
    park(r);
}
