// SPDX-License-Identifier: LGPL-2.1-or-later
// One client, from accept to close. It starts on the loop that accepted it and is handed to its
// export's loop when an export was chosen. Two fibers serve it: the receiver (first the handshake)
// and the sender; each request has a fiber of its own. On its loop.
#pragma once

#include "admission.h"
#include "chain-core/stream.h"
#include "export.h"
#include "receiver.h"
#include "request-check.h"
#include "sender.h"
#include "server-loop.h"

typedef enum NbdsState {
    NBDS_STATE_HANDSHAKE,    // greeting and options
    NBDS_STATE_TRANSMISSION, // requests are admitted
    NBDS_STATE_DRAINING,     // requests in flight end, others are answered ESHUTDOWN
    NBDS_STATE_CLOSED,       // about to be freed
} NbdsState;

struct NbdsConnection {
    NbdsServerLoop *home;
    NbdsConnection *prev, *next; // in one of the home's lists
    bool in_handshake;           // which one
    uint64_t accepted_ns;        // loop_now_ns() of the accepting loop
    NbdsState state;
    Stream *stream;          // NULL while handed over
    int fd;                  // then this
    LoopCall call;           // the hand-over
    bool is_stopped;         // by the server, not by its client
    LoopTimer timer;         // limit of the handshake, later of draining: cuts the stream
    NbdsExport *export;      // a reference, from the end of HANDSHAKE
    NbdsExport *destination; // a reference while it is being parked, to go there
    NbdsSession session;
    bool is_tcp;
    uint32_t n_executing; // requests whose reply is not queued yet
    Fiber *fiber;         // the handshake's, then the receiver's; NULL while handed over
    NbdsReceiver receiver;
    NbdsSender sender;
    NbdsAdmission admission;
    NbdsFlow flow;
};

// Takes `fd`. Starts the handshake; a failure closes it. Counted by the server until it is freed.
void nbds_connection_start(NbdsServerLoop *home, int fd);
// Ends it once what is in flight was answered, and at the latest after `timeout_ns`.
void nbds_connection_drain(NbdsConnection *c, uint64_t timeout_ns);
// Parks it at a request boundary, once what is in flight was answered, and has it go on at `to`, an
// export of the same content on any loop: no request is lost, done twice or overtaken. Nothing
// happens unless it is in transmission. A client that does not take its replies within
// `timeout_ns` is cut off; nothing is received from it meanwhile.
void nbds_connection_move(NbdsConnection *c, NbdsExport *to, uint64_t timeout_ns);
// A request is executing no more: the last one of a draining connection ends it.
void nbds_connection_finish_execution(NbdsConnection *c);
