// SPDX-License-Identifier: LGPL-2.1-or-later
// The sending side of a connection: a queue of replies and a fiber that hands them to the socket.
// On the connection's loop.
#pragma once

#include "buffer.h"

typedef struct NbdsSender {
    Stream *stream;
    NbdsAdmission *admission;
    NbdsFlow *flow;
    Fiber *fiber; // NULL once ended
    NbdsBuffer *replies, **replies_tail;
    bool waits, ends, lingers;
    int error; // once set, replies are dropped
    FiberQueue gone;
} NbdsSender;

// What it is given outlives it.
int nbds_sender_start(NbdsSender *sender, Stream *stream, NbdsAdmission *admission, NbdsFlow *flow);
void nbds_sender_queue(NbdsSender *sender, NbdsBuffer *reply); // takes `reply`
// Instead of a reply for which there is no memory: cuts the client off.
void nbds_sender_drop(NbdsSender *sender, const NbdsCharge *charge);
// Once everything in flight was answered. With `lingers`, what the client still sends is dropped
// until it closes its side or the stream is shut down.
void nbds_sender_stop(Fiber *self, NbdsSender *sender, bool lingers);
