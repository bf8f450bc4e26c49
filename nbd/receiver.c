// SPDX-License-Identifier: LGPL-2.1-or-later
// The receiving side of a connection in transmission: receives into a big buffer, starts each
// request that is complete there, and waits where the limits say so. Payloads are used in place; a
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
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "connection.h"
#include "request.h"
#include "server.h"

enum {
    SMALL_INPUT = 32 << 10, // capacity of an input buffer, before and after it proves too small
    LARGE_INPUT = 256 << 10,
    LARGE_PAYLOAD = 32 << 10,   // from here on a payload counts as large
    PAIRED_PAYLOAD = 512 << 10, // up to here a buffer has room for two of its size: one is received
                                // while the other is written
    MIN_ROOM = 16 << 10,        // do not receive small requests into less
    SHRINK_AFTER = 1024,        // receives in a row that fit in MIN_ROOM
    REQUEST_COST = 4096,        // of any request, besides its data
};

// What a connection may start in one turn of the loop.
static const uint64_t shares[] = {
    [NBDS_COMPANY_NONE] = 256 * REQUEST_COST,
    [NBDS_COMPANY_BUSY] = 128 * REQUEST_COST,
};
// The same of requests that gathered: the first answers shall go out before the client has read all
// that it has.
static const uint64_t gathered_share = 48 * REQUEST_COST;
enum { SMALL_COST = 3 * REQUEST_COST }; // gathering pays for requests that cost no more
// What one receive may copy beside a client that waits for single answers.
enum { LIGHT_RECEIVE = 64 << 10 };
enum { SINGLE_COST = 4 * REQUEST_COST };
enum { LIGHT_AFTER = 8 }; // single requests in a row: one alone comes from busy clients, too

typedef enum Step { STEP_TAKEN, STEP_INCOMPLETE, STEP_END } Step;

// Admits a request; NULL when the receiver shall end.
static NbdsRequest *admit(Fiber *self, NbdsConnection *c, const NbdsRequestHead *head,
                          uint64_t bytes)
{
    NbdsCharge charge;
    if (nbds_admission_enter(self, c, bytes, &charge) < 0)
        return NULL;
    NbdsRequest *request = nbds_request_take(c, head);
    if (!request) {
        nbds_sender_drop(c, &charge);
        return NULL;
    }
    request->charge = charge;
    return request;
}

static NbdsRequest *take_incoming(NbdsConnection *c)
{
    NbdsRequest *request = c->incoming;
    c->incoming = NULL;
    return request;
}

static void count(NbdsConnection *c, uint64_t cost)
{
    c->n_taken++;
    c->taken_cost += cost;
    if (c->n_taken > 1 || c->taken_cost > SINGLE_COST)
        c->is_light = false;
}

// A client that always has more to say must not keep the loop from the others.
static void take_turns(Fiber *self, NbdsConnection *c, uint64_t cost)
{
    c->turn_cost += cost;
    NbdsCompany company = nbds_connection_company(c);
    if (company == NBDS_COMPANY_LIGHT)
        return nbds_pace_take_request(self, c, cost > SINGLE_COST);
    uint64_t share = c->gathers ? MIN(shares[company], gathered_share) : shares[company];
    if (c->turn_cost < share)
        return;
    c->turn_cost = 0;
    fiber_sleep(self, 0); // the loop looks at every socket before this goes on
}

static Step refuse(Fiber *self, NbdsConnection *c, const NbdsRequestHead *head,
                   const NbdsCheck *check)
{
    c->pos += nbds_wire_request_head_bytes(c->session.style);
    c->skip_bytes = check->payload_bytes;
    NbdsRequest *request = take_incoming(c);
    if (!request)
        request = admit(self, c, head, NBDS_ADMISSION_REFUSAL_BYTES);
    if (!request)
        return STEP_END;
    count(c, REQUEST_COST);
    nbds_request_refuse(request, check->error, check->message);
    take_turns(self, c, REQUEST_COST);
    return STEP_TAKEN;
}

// In bytes of data, for taking turns.
static uint64_t cost_of(const NbdsRequestHead *head)
{
    switch (head->type) {
    case NBDS_CMD_READ:
    case NBDS_CMD_WRITE:
        return REQUEST_COST + head->length;
    case NBDS_CMD_CACHE:
        return REQUEST_COST + MIN(head->length, NBDS_MAX_PAYLOAD);
    case NBDS_CMD_TRIM:
    case NBDS_CMD_WRITE_ZEROES: // metadata: about an entry for each cluster
        return REQUEST_COST + (head->length >> 8);
    default:
        return REQUEST_COST;
    }
}

static Step execute(Fiber *self, NbdsConnection *c, const NbdsCheck *check)
{
    NbdsRequest *request = take_incoming(c);
    const NbdsRequestHead *head = &request->head;
    uint64_t cost = cost_of(head);
    uint8_t *payload = c->pos + nbds_wire_request_head_bytes(c->session.style);
    c->pos = payload + check->payload_bytes;
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
        request->input = nbds_buffer_ref(c->input);
    }
    count(c, cost);
    nbds_request_start(self, request);
    take_turns(self, c, cost);
    return STEP_TAKEN;
}

// Starts the request at `pos` if it is complete; else tells how many bytes it needs in all.
static Step take_request(Fiber *self, NbdsConnection *c, size_t *ret_needed)
{
    size_t head_bytes = nbds_wire_request_head_bytes(c->session.style);
    size_t have = c->end - c->pos;
    *ret_needed = head_bytes;
    if (have < head_bytes)
        return STEP_INCOMPLETE;
    NbdsRequestHead head;
    if (!nbds_wire_get_request_head(c->pos, c->session.style, &head))
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
        return refuse(self, c, &head, &check);
    case NBDS_ACTION_EXECUTE:
        break;
    }
    *ret_needed = head_bytes + check.payload_bytes;
    // Before memory for the payload is taken.
    if (!c->incoming)
        c->incoming =
            admit(self, c, &head, nbds_admission_bytes(&head, c->export->info.preferred_bytes));
    if (!c->incoming)
        return STEP_END;
    return have < *ret_needed ? STEP_INCOMPLETE : execute(self, c, &check);
}

static uint8_t *input_limit(const NbdsConnection *c)
{
    return nbds_buffer_bytes(c->input) + c->input->capacity + NBDS_BUFFER_SLACK;
}

// Makes room behind `end` for what the request at `pos` still needs, at least.
static bool make_room(NbdsConnection *c, size_t needed)
{
    size_t head_bytes = nbds_wire_request_head_bytes(c->session.style);
    size_t have = c->end - c->pos;
    size_t room = MAX(needed - have, needed < LARGE_PAYLOAD ? MIN_ROOM : 0);
    // Payload that is being dropped asks for a byte at a time: less than a header.
    size_t payload = needed > head_bytes ? needed - head_bytes : 0;
    if (payload >= LARGE_PAYLOAD && payload <= PAIRED_PAYLOAD)
        c->input_capacity = MAX(c->input_capacity, 2 * payload);
    size_t capacity = MAX(c->input_capacity, payload);
    // A client that has become quiet does not keep the buffer of a very large payload.
    bool is_oversized = c->input && have <= head_bytes && c->input->capacity > 2 * capacity;
    bool is_ours = c->input && c->input->n_refs == 1 && !is_oversized;
    if (is_ours && !have)
        c->pos = c->end = nbds_buffer_bytes(c->input) - head_bytes;
    if (c->input && !is_oversized && (size_t)(input_limit(c) - c->end) >= room)
        return true;

    if (is_ours && c->input->capacity >= have + room) {
        uint8_t *start = nbds_buffer_bytes(c->input) - head_bytes;
        memmove(start, c->pos, have);
        c->pos = start;
    } else {
        NbdsBuffer *input = nbds_buffer_take(&c->home->pool, capacity);
        if (!input)
            return false;
        uint8_t *start = nbds_buffer_bytes(input) - head_bytes;
        if (have)
            memcpy(start, c->pos, have);
        nbds_buffer_unref(c->input);
        c->input = input;
        c->pos = start;
    }
    c->end = c->pos + have;
    return true;
}

// A client with little to say keeps a small buffer.
static void adapt_capacity(NbdsConnection *c, size_t received, size_t room)
{
    if (received == room && room >= MIN_ROOM) {
        c->input_capacity = MAX(c->input_capacity, LARGE_INPUT);
        c->n_small_receives = 0;
    } else if (received > MIN_ROOM) {
        c->n_small_receives = 0;
    } else if (++c->n_small_receives >= SHRINK_AFTER) {
        c->input_capacity = SMALL_INPUT;
    }
}

// Receiving takes a turn of the loop. What was taken since the last one tells what kind of client
// this is; one that waits for each answer goes before those that have much to do.
static void begin_turn(NbdsConnection *c)
{
    NbdsServerLoop *home = c->home;
    uint64_t now = loop_now_ns(home->loop);
    bool is_single = c->n_taken == 1 && c->n_in_flight - (c->incoming != NULL) <= 1 &&
                     c->taken_cost <= SINGLE_COST;
    if (c->n_taken) {
        c->n_singles = is_single ? c->n_singles + 1 : 0;
        c->is_light = c->n_singles >= LIGHT_AFTER;
    } else if (c->skip_bytes > SINGLE_COST ||
               (c->incoming && cost_of(&c->incoming->head) > SINGLE_COST)) {
        c->is_light = false;
    }
    if (c->is_light) {
        home->light = c;
        home->light_until_ns = now + NBDS_LIGHT_NS;
    } else if (c->n_taken) {
        home->busy_until_ns = now + NBDS_LIGHT_NS;
    }
    c->gathers = c->taken_cost <= (uint64_t)SMALL_COST * c->n_taken;
    c->is_urgent = c->is_light && home->busy_until_ns > now;
    stream_set_urgent(c->stream, c->is_urgent);
    c->n_taken = 0;
    c->taken_cost = c->turn_cost = 0;
}

// How much to receive when the request at `pos` needs `needed` bytes in all.
static size_t bytes_to_ask(const NbdsConnection *c, size_t needed)
{
    size_t head_bytes = nbds_wire_request_head_bytes(c->session.style);
    size_t have = c->end - c->pos, ask = input_limit(c) - c->end;
    if (needed > LARGE_PAYLOAD) {
        size_t n_fit = (input_limit(c) - c->pos) / needed;
        ask = MIN(ask, n_fit * needed + head_bytes - have);
    }
    return nbds_connection_company(c) == NBDS_COMPANY_LIGHT ? MIN(ask, LIGHT_RECEIVE) : ask;
}

static ssize_t receive(Fiber *self, NbdsConnection *c, size_t len)
{
    if (c->incoming && nbds_connection_company(c) == NBDS_COMPANY_NONE)
        return stream_recv_rest(self, c->stream, c->end, len);
    // A disk is not kept waiting for requests, nor a client for anything that it waits for.
    if (c->incoming || c->n_executing || c->is_urgent || !c->gathers)
        return stream_recv(self, c->stream, c->end, len);
    return stream_recv_gathered(self, c->stream, c->end, len, c->bytes_in_flight);
}

static bool receive_more(Fiber *self, NbdsConnection *c, size_t needed)
{
    begin_turn(c);
    // First, so that it is known whether the buffer is free.
    if (!c->incoming && nbds_settling_wait(self, c) < 0)
        return false;
    if (!make_room(c, needed))
        return false;
    size_t room = input_limit(c) - c->end, ask = bytes_to_ask(c, needed);
    ssize_t received = receive(self, c, ask);
    if (received <= 0)
        return false;
    c->end += received;
    nbds_admission_note_progress(c, (uint64_t)received);
    if (c->is_light)
        nbds_pace_asked(c);
    if (ask == room)
        adapt_capacity(c, received, room);
    return true;
}

// Drops payload of a refused request. True when more of it has to be received.
static bool skip_payload(NbdsConnection *c)
{
    if (!c->skip_bytes)
        return false;
    uint64_t n = MIN(c->skip_bytes, (uint64_t)(c->end - c->pos));
    c->pos += n;
    c->skip_bytes -= n;
    return c->skip_bytes;
}

void nbds_receiver_run(Fiber *self, NbdsConnection *c)
{
    c->input_capacity = SMALL_INPUT;
    for (;;) {
        size_t needed = 1;
        Step step = skip_payload(c) ? STEP_INCOMPLETE : take_request(self, c, &needed);
        if (step == STEP_END)
            break;
        if (step == STEP_INCOMPLETE && !receive_more(self, c, needed))
            break;
    }
    // What is left is an incomplete request, which never takes effect.
    if (c->incoming)
        nbds_request_abandon(take_incoming(c));
    nbds_buffer_unref(c->input);
    c->input = NULL;
}
