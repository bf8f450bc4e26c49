// SPDX-License-Identifier: LGPL-2.1-or-later
// One client, from accept to close. It starts on the loop that accepted it and is handed to its
// export's loop when an export was chosen. Two fibers serve it: the receiver (first the handshake)
// and the sender; each request has a fiber of its own. On its loop.
#pragma once

#include "admission.h"
#include "chain-core/stream.h"
#include "export.h"
#include "request-check.h"
#include "server-loop.h"
#include "settle.h"

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
    Stream *stream;     // NULL while handed over
    int fd;             // then this
    LoopCall call;      // the hand-over
    bool is_stopped;    // by the server, not by its client
    LoopTimer timer;    // limit of the handshake, later of draining: cuts the stream
    NbdsExport *export; // a reference, from the end of HANDSHAKE
    NbdsSession session;
    Fiber *receiver; // NULL once ended

    // Receiving (receiver.c): unparsed bytes [pos, end) of `input`.
    NbdsBuffer *input;
    uint8_t *pos, *end;
    uint64_t skip_bytes;     // payload of a refused request still to be dropped
    uint32_t input_capacity; // of the next small-request buffer
    uint32_t n_small_receives;
    NbdsRequest *incoming; // the request at `pos`, admitted, its payload incomplete; or NULL
    uint64_t turn_cost;    // of the requests started in this turn of the loop
    uint32_t n_singles;    // receives in a row that brought one request, with no other in flight
    uint32_t n_taken;      // requests since the last receive
    uint64_t taken_cost;   // theirs

    // Limits (admission.c). A request is in flight from its header until its reply was handed to
    // the socket, and executing until its reply is queued.
    uint32_t n_in_flight, n_executing;
    uint64_t bytes_in_flight, loop_bytes;
    bool is_privileged;
    bool is_light;  // waits for each answer
    bool is_urgent; // beside busy ones
    bool is_tcp;
    bool gathers;            // asks for little at a time
    uint64_t progress_ns;    // when the socket last took or gave enough to count
    uint64_t progress_bytes; // since then
    FiberQueue room;         // the receiver, waiting for less in flight
    FiberQueue quiet;        // the receiver, waiting for nothing in flight
    NbdsSettling settling;

    // Sending (sender.c).
    Fiber *sender; // NULL once ended
    NbdsBuffer *replies, **replies_tail;
    bool sender_waits, sender_ends, sender_lingers;
    int send_error; // once set, replies are dropped
    FiberQueue sender_gone;
};

// Takes `fd`. Starts the handshake; a failure closes it. Counted by the server until it is freed.
void nbds_connection_start(NbdsServerLoop *home, int fd);
// Ends it once what is in flight was answered, and at the latest after `timeout_ns`.
void nbds_connection_drain(NbdsConnection *c, uint64_t timeout_ns);
// A request is executing no more: the last one of a draining connection ends it.
void nbds_connection_finish_execution(NbdsConnection *c);

// Who shares its loop, and therefore how much it may do in one turn.
typedef enum NbdsCompany {
    NBDS_COMPANY_NONE,
    NBDS_COMPANY_BUSY,  // others that have much to do, too
    NBDS_COMPANY_LIGHT, // one that waits for each answer
} NbdsCompany;
NbdsCompany nbds_connection_company(const NbdsConnection *c);

// receiver.c: reads and starts requests; returns when no more will be read.
void nbds_receiver_run(Fiber *self, NbdsConnection *c);

// sender.c
int nbds_sender_start(NbdsConnection *c);
void nbds_sender_queue(NbdsConnection *c, NbdsBuffer *reply); // takes `reply`
// Instead of a reply for which there is no memory: cuts the client off.
void nbds_sender_drop(NbdsConnection *c, const NbdsCharge *charge);
// Once everything in flight was answered. With `lingers`, what the client still sends is dropped
// until it closes its side or the stream is shut down.
void nbds_sender_stop(Fiber *self, NbdsConnection *c, bool lingers);
