// SPDX-License-Identifier: LGPL-2.1-or-later
// Requests: their life, and the commands that are one call on the node. The order of each is: enter
// the port, the node's operation, leave the port, queue the reply. The port is never held while
// waiting for a socket. One thing with request-read.c and request-status.c, for longer commands.
#include "request.h"

#include <assert.h>
#include <errno.h>

#include "reply.h"
#include "throttle.h"

NbdsRequest *nbds_request_take(NbdsConnection *c, const NbdsRequestHead *head)
{
    NbdsRequest *request = c->server_loop->free_requests;
    if (request)
        c->server_loop->free_requests = request->next;
    else if (!(request = g_try_new(NbdsRequest, 1)))
        return NULL;
    *request = (NbdsRequest){.connection = c, .head = *head};
    return request;
}

static void free_request(NbdsRequest *request)
{
    NbdsServerLoop *server_loop = request->connection->server_loop;
    nbds_buffer_unref(request->input);
    g_clear_pointer(&request->contexts, g_ptr_array_unref);
    request->next = server_loop->free_requests;
    server_loop->free_requests = request;
}

void nbds_requests_free(NbdsServerLoop *server_loop)
{
    for (NbdsRequest *request; (request = server_loop->free_requests);) {
        server_loop->free_requests = request->next;
        g_free(request);
    }
}

// The stages count differently: executing ended before, in flight ends when the reply was sent.
static void end(NbdsRequest *request, NbdsBuffer *reply)
{
    NbdsSender *sender = &request->connection->sender;
    if (reply) {
        reply->charge = request->charge;
        reply->ends_request = true;
        nbds_sender_queue(sender, reply);
    } else {
        nbds_sender_drop(sender, &request->charge);
    }
    free_request(request);
}

// Command numbers and operations differ: there is no statistic of DISC.
static NbdsOperation operation_of(uint16_t type)
{
    static const NbdsOperation operations[] = {
        [NBDS_CMD_READ] = NBDS_OPERATION_READ,
        [NBDS_CMD_WRITE] = NBDS_OPERATION_WRITE,
        [NBDS_CMD_FLUSH] = NBDS_OPERATION_FLUSH,
        [NBDS_CMD_TRIM] = NBDS_OPERATION_TRIM,
        [NBDS_CMD_CACHE] = NBDS_OPERATION_CACHE,
        [NBDS_CMD_WRITE_ZEROES] = NBDS_OPERATION_WRITE_ZEROES,
        [NBDS_CMD_BLOCK_STATUS] = NBDS_OPERATION_BLOCK_STATUS,
    };
    return operations[type];
}

void nbds_request_finish(NbdsRequest *request, NbdsBuffer *reply, bool failed)
{
    NbdsConnection *c = request->connection;
    NbdsOperation operation = operation_of(request->head.type);
    nbds_export_count(c->export, operation, request->head.length, failed);
    nbds_export_count_latency(c->export, operation,
                              loop_now_ns(c->server_loop->loop) - request->start_ns);
    nbds_add(&c->export->n_in_flight, -1);
    nbds_add(&c->server_loop->n_executing, -1);
    nbds_flow_end(&c->flow, &request->head);
    nbds_connection_finish_execution(c);
    end(request, reply);
}

void nbds_request_abandon(NbdsRequest *request)
{
    nbds_admission_leave(&request->connection->admission, &request->charge);
    free_request(request);
}

void nbds_request_answer(NbdsRequest *request, int result)
{
    NbdsConnection *c = request->connection;
    NbdsBuffer *reply;
    if (result >= 0)
        reply = nbds_reply_ack(&c->server_loop->pool, c->session.style, &request->head);
    else
        reply = nbds_reply_error(&c->server_loop->pool, c->session.style, &request->head,
                                 nbds_error_from_errno(result), NULL);
    nbds_request_finish(request, reply, result < 0);
}

void nbds_request_refuse(NbdsRequest *request, NbdsErrorCode error, const char *message)
{
    NbdsConnection *c = request->connection;
    NbdsBuffer *reply =
        nbds_reply_error(&c->server_loop->pool, c->session.style, &request->head, error, message);
    if (request->head.type <= NBDS_CMD_BLOCK_STATUS && request->head.type != NBDS_CMD_DISC)
        nbds_export_count(c->export, operation_of(request->head.type), 0, true);
    end(request, reply);
}

static RequestKind kind_of(uint16_t type)
{
    static const uint8_t kinds[] = {
        [NBDS_CMD_READ] = REQUEST_READ,         [NBDS_CMD_WRITE] = REQUEST_WRITE,
        [NBDS_CMD_FLUSH] = REQUEST_FLUSH,       [NBDS_CMD_TRIM] = REQUEST_DISCARD,
        [NBDS_CMD_CACHE] = REQUEST_READ,        [NBDS_CMD_WRITE_ZEROES] = REQUEST_ZERO,
        [NBDS_CMD_BLOCK_STATUS] = REQUEST_READ,
    };
    return kinds[type];
}

void nbds_request_leave(const NbdsRequest *request)
{
    port_leave(&request->connection->export->port, kind_of(request->head.type));
}

int nbds_request_enter(Fiber *self, const NbdsRequest *request, Node **ret_node)
{
    Port *port = &request->connection->export->port;
    Node *node = port_enter(self, port, kind_of(request->head.type));
    // The client was promised a size; a port may since have been moved to a smaller node.
    int result = nbds_request_check_end(&request->head, node->size_bytes);
    if (result < 0)
        nbds_request_leave(request);
    else
        *ret_node = node;
    return result;
}

static NodeIoFlags io_flags(const NbdsRequestHead *head)
{
    NodeIoFlags flags = 0;
    if (head->flags & NBDS_CMD_FLAG_FUA)
        flags |= NODE_IO_FUA;
    if (head->flags & NBDS_CMD_FLAG_NO_HOLE)
        flags |= NODE_IO_NO_UNMAP;
    if (head->flags & NBDS_CMD_FLAG_FAST_ZERO)
        flags |= NODE_IO_FAST_ZERO;
    return flags;
}

static int write_zeroes(Fiber *self, Node *node, const NbdsRequestHead *head)
{
    int result = node_zero(self, node, guest_off(head->offset), head->length, io_flags(head));
    // Only a client that asked for speed may hear "not supported".
    if (result == -ENOTSUP && !(head->flags & NBDS_CMD_FLAG_FAST_ZERO))
        return -EIO;
    return result;
}

// Reads a part into a scratch buffer, so that what lies below has it cached.
static int cache(Fiber *self, Node *node, NbdsConnection *c, const NbdsRequestHead *head)
{
    NbdsBuffer *scratch = nbds_buffer_take(&c->server_loop->pool, head->length);
    if (!scratch)
        return -ENOMEM;
    int result =
        node_read(self, node, guest_off(head->offset), nbds_buffer_bytes(scratch), head->length);
    nbds_buffer_unref(scratch);
    return result;
}

static int execute(Fiber *self, NbdsRequest *request, Node *node)
{
    const NbdsRequestHead *head = &request->head;
    if (!head->length && head->type != NBDS_CMD_FLUSH)
        return 0;
    switch ((NbdsCommand)head->type) {
    case NBDS_CMD_WRITE:
        return node_write(self, node, guest_off(head->offset), request->payload, head->length,
                          io_flags(head));
    case NBDS_CMD_WRITE_ZEROES:
        return write_zeroes(self, node, head);
    case NBDS_CMD_TRIM:
        return node_discard(self, node, guest_off(head->offset), head->length, io_flags(head));
    case NBDS_CMD_FLUSH:
        return node->read_only ? 0 : node_flush(self, node);
    case NBDS_CMD_CACHE:
        return cache(self, node, request->connection, head);
    case NBDS_CMD_READ:
    case NBDS_CMD_DISC:
    case NBDS_CMD_BLOCK_STATUS:
        break;
    }
    assert(!"not a plain command");
    return -EINVAL;
}

static int enter_and_execute(Fiber *self, NbdsRequest *request)
{
    Node *node;
    int result = nbds_request_enter(self, request, &node);
    if (result < 0)
        return result;
    result = execute(self, request, node);
    nbds_request_leave(request);
    return result;
}

static uint64_t max_part_bytes(const NbdsRequestHead *head)
{
    if (head->flags & NBDS_CMD_FLAG_FAST_ZERO) // must be all or nothing
        return UINT64_MAX;
    return head->type == NBDS_CMD_CACHE ? 256 << 10 : 256 << 20;
}

// TRIM and WRITE_ZEROES can name terabytes, CACHE reads much. In parts, so that neither a drain nor
// a stop waits for all of it, and others get their turns. The graph may change between two parts,
// so what is to be durable is flushed after the last. Of a CACHE, which is advice, no more than a
// read may ask for.
static int execute_in_parts(Fiber *self, NbdsRequest *request)
{
    NbdsFlow *flow = &request->connection->flow;
    NbdsRequestHead whole = request->head;
    uint64_t length =
        whole.type == NBDS_CMD_CACHE ? MIN(whole.length, NBDS_MAX_PAYLOAD) : whole.length;
    uint64_t done = 0;
    bool is_fast = whole.flags & NBDS_CMD_FLAG_FAST_ZERO; // refused without having done anything
    int result = 0;
    do {
        request->head.offset = whole.offset + done;
        request->head.length = MIN(length - done, max_part_bytes(&whole));
        bool is_last = done + request->head.length == length;
        bool is_all = is_last && done == 0;
        request->head.flags = is_all ? whole.flags : whole.flags & ~NBDS_CMD_FLAG_FUA;
        uint64_t cost = nbds_flow_part_cost(&request->head);
        nbds_flow_charge(flow, is_fast ? 0 : cost);
        result = enter_and_execute(self, request);
        if (is_fast && result != -ENOTSUP)
            nbds_flow_charge(flow, cost);
        done += request->head.length;
        if (result >= 0 && !is_last) {
            nbds_flow_wait_turn(self, flow);
            if (request->connection->is_stopped)
                result = -ESHUTDOWN;
        }
    } while (result >= 0 && done < length);
    if (result >= 0 && request->head.flags != whole.flags) {
        request->head = (NbdsRequestHead){.type = NBDS_CMD_FLUSH};
        result = enter_and_execute(self, request);
    }
    request->head = whole;
    return result;
}

static void run(Fiber *self, void *arg)
{
    NbdsRequest *request = arg;
    if (G_UNLIKELY(request->connection->throttle))
        nbds_throttle_wait(self, request->connection, &request->head);
    switch ((NbdsCommand)request->head.type) {
    case NBDS_CMD_READ:
        return nbds_request_read(self, request);
    case NBDS_CMD_BLOCK_STATUS:
        return nbds_request_status(self, request);
    case NBDS_CMD_CACHE:
    case NBDS_CMD_TRIM:
    case NBDS_CMD_WRITE_ZEROES:
        return nbds_request_answer(request, execute_in_parts(self, request));
    default:
        return nbds_request_answer(request, enter_and_execute(self, request));
    }
}

// Fibers for requests run out before those of the loop do: what hangs on one export leaves some for
// the others, and all of them leave some for new clients and for the daemon itself.
static bool may_have_fiber(const NbdsConnection *c)
{
    unsigned max = c->server_loop->max_request_fibers;
    return atomic_load_explicit(&c->server_loop->n_executing, memory_order_relaxed) <= max &&
           atomic_load_explicit(&c->export->n_in_flight, memory_order_relaxed) <= MAX(max / 3, 1);
}

void nbds_request_start(Fiber *self, NbdsRequest *request)
{
    NbdsConnection *c = request->connection;
    request->start_ns = loop_now_ns(c->server_loop->loop);
    nbds_add(&c->server_loop->n_executing, 1);
    nbds_flow_begin(&c->flow, &request->head, c->admission.n_requests);
    nbds_add(&c->export->n_in_flight, 1);
    // Without a fiber the receiver does the work itself: slower, and it reads no further meanwhile.
    if (!may_have_fiber(c) ||
        fiber_spawn(c->server_loop->loop, "nbd request", run, request, NULL) < 0)
        run(self, request);
}
