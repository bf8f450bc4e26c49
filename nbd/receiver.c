// SPDX-License-Identifier: LGPL-2.1-or-later
// The receiving side of a connection in transmission: receives into a big buffer, starts each
// request that is complete there, and waits where the limits say so. Payloads are used in place; a
// request holds a reference on the buffer its payload lies in. The rules that keep large payloads
// from being copied:
//
// - While a large payload is incomplete, no more is received than its rest and one header. So what
//   has to move to the next buffer is at most that header.
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
    LARGE_PAYLOAD = 32 << 10,  // from here on a payload counts as large
    MIN_ROOM = 16 << 10,       // do not receive small requests into less
    SHRINK_AFTER = 1024,       // receives in a row that fit in MIN_ROOM
    REQUEST_COST = 4096,       // of any request, besides its data
    LOOP_FREE_BYTES = 1 << 20, // per connection, not taken from the loop's budget
    SMALL_CHARGE = 1 << 10,    // what a request without data holds
    STATUS_CHARGE = 128 << 10,
};

// What a connection may start in one turn of the loop.
static const uint64_t shares[] = {
    [NBDS_COMPANY_NONE] = 256 * REQUEST_COST,
    [NBDS_COMPANY_BUSY] = 32 * REQUEST_COST,
    [NBDS_COMPANY_LIGHT] = 8 * REQUEST_COST,
};
static const uint64_t LIGHT_NS = 1000000; // how long a single request makes a connection light

typedef enum Step { STEP_TAKEN, STEP_INCOMPLETE, STEP_END } Step;

static uint64_t charge_of(const NbdsRequestHead *head)
{
    switch (head->type) {
    case NBDS_CMD_READ:
    case NBDS_CMD_WRITE:
        return head->length + SMALL_CHARGE;
    case NBDS_CMD_CACHE:
        return LARGE_INPUT;
    case NBDS_CMD_BLOCK_STATUS:
        return STATUS_CHARGE;
    default:
        return SMALL_CHARGE;
    }
}

// May `bytes` more be in flight now? One request always may, however large; so what a connection
// waits for always comes, whatever others hold.
static bool try_admit(NbdsConnection *c, uint64_t bytes, uint64_t *ret_loop_bytes)
{
    const NbdsLimits *limits = nbds_server_limits(c->home->server);
    *ret_loop_bytes = 0;
    if (!c->n_in_flight)
        return true;
    if (c->n_in_flight >= limits->max_requests || c->bytes_in_flight + bytes > limits->max_bytes)
        return false;
    if (c->bytes_in_flight + bytes <= LOOP_FREE_BYTES)
        return true;
    *ret_loop_bytes = bytes;
    return nbds_server_loop_try_take(c->home, bytes);
}

static int admit(Fiber *self, NbdsConnection *c, uint64_t bytes, uint64_t *ret_loop_bytes)
{
    while (!try_admit(c, bytes, ret_loop_bytes)) {
        c->home->n_waiting++;
        int result = fiber_queue_wait(self, &c->budget, true, "nbd: limit of requests or bytes");
        c->home->n_waiting--;
        if (result < 0)
            return result;
    }
    c->n_in_flight++;
    c->bytes_in_flight += bytes;
    return 0;
}

// Admits a request; NULL when the receiver shall end.
static NbdsRequest *admit_request(Fiber *self, NbdsConnection *c, const NbdsRequestHead *head,
                                  uint64_t bytes)
{
    uint64_t loop_bytes;
    if (admit(self, c, bytes, &loop_bytes) < 0)
        return NULL;
    NbdsRequest *request = nbds_request_take(c, head);
    if (!request) {
        nbds_sender_drop(c, bytes, loop_bytes);
        return NULL;
    }
    request->charged_bytes = bytes;
    request->charged_loop_bytes = loop_bytes;
    return request;
}

// A client that always has more to say must not keep the loop from the others.
static void take_turns(Fiber *self, NbdsConnection *c, uint64_t cost)
{
    c->n_taken++;
    c->turn_cost += cost;
    if (c->turn_cost < shares[nbds_connection_company(c)])
        return;
    c->turn_cost = 0;
    fiber_sleep(self, 0); // the loop looks at every socket before this goes on
}

static Step refuse(Fiber *self, NbdsConnection *c, const NbdsRequestHead *head,
                   const NbdsCheck *check)
{
    c->pos += nbds_wire_request_head_bytes(c->session.style);
    c->skip_bytes = check->payload_bytes;
    NbdsRequest *request = admit_request(self, c, head, SMALL_CHARGE);
    if (!request)
        return STEP_END;
    nbds_request_refuse(request, check->error, check->message);
    take_turns(self, c, REQUEST_COST);
    return STEP_TAKEN;
}

static Step execute(Fiber *self, NbdsConnection *c, const NbdsRequestHead *head,
                    const NbdsCheck *check)
{
    NbdsRequest *request = admit_request(self, c, head, charge_of(head));
    if (!request)
        return STEP_END;
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
    bool has_data = head->type == NBDS_CMD_READ || head->type == NBDS_CMD_WRITE;
    uint64_t cost = REQUEST_COST + (has_data ? head->length : 0);
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
    return have < *ret_needed ? STEP_INCOMPLETE : execute(self, c, &head, &check);
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
    bool is_ours = c->input && c->input->n_refs == 1;
    if (is_ours && !have && c->input->capacity > c->input_capacity) {
        nbds_buffer_unref(c->input);
        c->input = NULL;
        is_ours = false;
    }
    if (is_ours && !have)
        c->pos = c->end = nbds_buffer_bytes(c->input) - head_bytes;
    if (c->input && (size_t)(input_limit(c) - c->end) >= room)
        return true;

    if (is_ours && c->input->capacity >= have + room) {
        uint8_t *start = nbds_buffer_bytes(c->input) - head_bytes;
        memmove(start, c->pos, have);
        c->pos = start;
    } else {
        // Payload that is being dropped asks for a byte at a time: less than a header.
        size_t payload = needed > head_bytes ? needed - head_bytes : 0;
        NbdsBuffer *input = nbds_buffer_take(&c->home->pool, MAX(c->input_capacity, payload));
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
        c->input_capacity = LARGE_INPUT;
        c->n_small_receives = 0;
    } else if (received > MIN_ROOM) {
        c->n_small_receives = 0;
    } else if (++c->n_small_receives >= SHRINK_AFTER) {
        c->input_capacity = SMALL_INPUT;
    }
}

// Receiving takes a turn of the loop.
static void begin_turn(NbdsConnection *c)
{
    if (c->n_taken == 1 && c->n_in_flight <= 1) {
        c->home->light = c;
        c->home->light_until_ns = loop_now_ns(c->home->loop) + LIGHT_NS;
    }
    c->n_taken = 0;
    c->turn_cost = 0;
}

static bool receive_more(Fiber *self, NbdsConnection *c, size_t needed)
{
    if (!make_room(c, needed))
        return false;
    size_t room = input_limit(c) - c->end;
    size_t missing = needed - (c->end - c->pos);
    size_t ask = room;
    if (missing > LARGE_PAYLOAD)
        ask = MIN(room, missing + nbds_wire_request_head_bytes(c->session.style));
    begin_turn(c);
    ssize_t received = stream_recv(self, c->stream, c->end, ask);
    if (received <= 0)
        return false;
    c->end += received;
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
    nbds_buffer_unref(c->input);
    c->input = NULL;
}
