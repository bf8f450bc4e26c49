// SPDX-License-Identifier: LGPL-2.1-or-later
// One client: what its receiver, its sender and its requests share. On its loop.
#pragma once

#include "admission.h"
#include "chain-core/stream.h"
#include "export.h"
#include "request-check.h"
#include "sender.h"
#include "server-loop.h"

typedef struct NbdsReceiver NbdsReceiver;

typedef enum NbdsState {
    NBDS_STATE_HANDSHAKE,    // greeting and options
    NBDS_STATE_TRANSMISSION, // requests are admitted
    NBDS_STATE_DRAINING,     // requests in flight end, others are answered ESHUTDOWN
    NBDS_STATE_CLOSED,       // about to be freed
} NbdsState;

typedef struct NbdsConnection {
    NbdsServerLoop *server_loop;
    GQueue *list; // of server_loop: the one it is in
    GList link;
    NbdsTls tls;          // as the listener had it when it was accepted
    NbdsPeer *peer;       // NULL: nobody asks
    uint64_t accepted_ns; // loop_now_ns() of the accepting loop
    NbdsState state;
    Stream *stream;          // detached while handed over
    LoopCall call;           // the hand-over
    bool is_stopped;         // by the server, whether or not its client left before
    LoopTimer timer;         // limit of the handshake, later of draining: cuts the stream
    NbdsExport *export;      // a reference, from the end of HANDSHAKE
    NbdsExport *destination; // a reference while it is being parked, to go there
    NbdsSession session;
    bool is_tcp;
    Fiber *fiber; // the handshake's, then the receiver's; NULL while handed over
    NbdsReceiver *receiver;
    NbdsSender sender;
    NbdsAdmission admission;
    NbdsFlow flow;
    ThrottleMember *throttle; // NULL: nothing waits for limits
} NbdsConnection;

// It waits for limits no more (throttle.h): what does goes on at once.
void nbds_connection_unthrottle(NbdsConnection *c);

void nbds_connection_set_state(NbdsConnection *c, NbdsState state);
// Cuts its stream in `ns`, unless it is closed or limited anew before.
void nbds_connection_limit_time(NbdsConnection *c, uint64_t ns);
// From TRANSMISSION to DRAINING, for `timeout_ns` at the longest.
void nbds_connection_begin_draining(NbdsConnection *c, uint64_t timeout_ns);

// Ends it once what is in flight was answered, and at the latest after `timeout_ns`.
void nbds_connection_drain(NbdsConnection *c, uint64_t timeout_ns);
// A request is executing no more: the last one of a draining connection ends it.
void nbds_connection_finish_execution(NbdsConnection *c);
