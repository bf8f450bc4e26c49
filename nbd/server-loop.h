// SPDX-License-Identifier: LGPL-2.1-or-later
// A server's part on one loop: the connections served there and the resources they share. Made from
// any thread (with the server's lock), used on its loop only.
#pragma once

#include "buffer.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/loop.h"
#include "nbd/server.h"
#include "scheduler.h"

typedef struct NbdsRequest NbdsRequest;

// Doubly linked through NbdsConnection's prev, next. A connection is in one of a loop's lists.
typedef struct NbdsConnectionList {
    NbdsConnection *first, *last;
} NbdsConnectionList;

typedef struct NbdsServerLoop {
    NbdsServer *server;
    Loop *loop;
    NbdsConnectionList connections; // who last got something of the budget comes first
    NbdsConnectionList handshakes;  // unfinished, the latest comes first
    unsigned n_handshakes;
    FiberQueue room;             // listeners, waiting until they may start a client (listener.c)
    unsigned max_request_fibers; // of the loop's fibers
    NbdsBufferPool pool;
    NbdsRequest *free_requests;
    // admission.c
    uint64_t budget_bytes; // that connections may yet have in flight beyond their first MiB
    unsigned n_waiting;    // connections that wait for some of it
    bool has_waited;       // one did since the last look at those that stall
    LoopTimer stall_timer;
    unsigned n_executing; // requests
    NbdsScheduler scheduler;
    NbdsFlow handshake_flow; // of all handshakes together
    LoopCall drain_call;     // the server's stop
} NbdsServerLoop;

NbdsServerLoop *nbds_server_loop_new(NbdsServer *server, Loop *loop);
void nbds_server_loop_free(NbdsServerLoop *home); // no connection left

// At the front of its list: `handshakes` while it is in one, later `connections`.
void nbds_server_loop_insert(NbdsServerLoop *home, NbdsConnection *c, bool in_handshake);
void nbds_server_loop_remove(NbdsServerLoop *home, NbdsConnection *c);
