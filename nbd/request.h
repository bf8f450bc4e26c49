// SPDX-License-Identifier: LGPL-2.1-or-later
// A request in flight: admitted with its payload complete, executed by a fiber of its own, done
// when its reply is queued. On its connection's loop.
#pragma once

#include "connection.h"

struct NbdsRequest {
    NbdsRequest *next; // free list
    NbdsConnection *connection;
    NbdsRequestHead head;
    GPtrArray *contexts; // BLOCK_STATUS: those to answer; NULL: all of the session's
    NbdsBuffer *input;   // a reference while `payload` is used
    const uint8_t *payload;
    uint64_t start_ns; // of its execution
    NbdsCharge charge; // given back when the reply was sent
};

// From the free list. NULL when memory is out.
NbdsRequest *nbds_request_take(NbdsConnection *c, const NbdsRequestHead *head);
// Frees the free list.
void nbds_requests_free(NbdsServerLoop *server_loop);
// Gives up one that was admitted but not started: no reply.
void nbds_request_abandon(NbdsRequest *request);
// Executes it in a fiber of its own, or on `self` when no fiber can be had. Takes `request`.
void nbds_request_start(Fiber *self, NbdsRequest *request);
// Queues `reply` as its last one (NULL: memory is out, the client is cut off), counts it, frees it.
void nbds_request_finish(NbdsRequest *request, NbdsBuffer *reply, bool failed);
// The same with an acknowledgement or, for a negative `result`, an error.
void nbds_request_answer(NbdsRequest *request, int result);
void nbds_request_refuse(NbdsRequest *request, NbdsErrorCode error, const char *message);

// Enters the graph for this request: 0 with the node to use (pair with the leave), or what
// nbds_request_check_end() says, outside again, when its range no longer lies inside the node.
int nbds_request_enter(Fiber *self, const NbdsRequest *request, Node **ret_node);
void nbds_request_leave(const NbdsRequest *request);

void nbds_request_read(Fiber *self, NbdsRequest *request);   // request-read.c
void nbds_request_status(Fiber *self, NbdsRequest *request); // request-status.c
