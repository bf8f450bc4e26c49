// SPDX-License-Identifier: LGPL-2.1-or-later
// A server's part on one loop: the connections served there and the resources they share. Made from
// any thread (with the server's lock), used on its loop only.
#pragma once

#include <glib.h>
#include <stdatomic.h>

#include "admission.h"
#include "buffer.h"
#include "scheduler.h"

typedef struct NbdsRequest NbdsRequest;

typedef enum NbdsRoomState { NBDS_ROOM_IDLE, NBDS_ROOM_WANTED, NBDS_ROOM_POSTED } NbdsRoomState;

typedef struct NbdsServerLoop {
    NbdsServer *server;
    Loop *loop;
    // Of NbdsConnection, each in one of the two at most.
    GQueue connections; // that have chosen an export
    GQueue handshakes;  // unfinished, the latest comes first
    // Listeners, waiting until they may start a client (server-state.c).
    FiberQueue room;
    atomic_int room_state;
    LoopCall room_call;
    unsigned max_request_fibers; // of the loop's fibers
    NbdsBufferPool pool;
    NbdsRequest *free_requests; // request.c
    NbdsBudget budget;
    _Atomic uint64_t n_executing; // requests; only the loop writes it
    NbdsScheduler scheduler;
    NbdsFlow handshake_flow; // of all handshakes together
    FiberMutex tls_turn;     // of their TLS handshakes
    LoopCall drain_call;     // the server's stop
} NbdsServerLoop;

// `limits` are the server's.
NbdsServerLoop *nbds_server_loop_new(NbdsServer *server, const NbdsLimits *limits, Loop *loop);
void nbds_server_loop_free(NbdsServerLoop *server_loop); // no connection and no free request left

// A figure that one loop writes and any thread reads: no locked instruction is needed.
static inline void nbds_add(_Atomic uint64_t *counter, uint64_t n)
{
    uint64_t v = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, v + n, memory_order_relaxed);
}
