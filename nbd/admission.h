// SPDX-License-Identifier: LGPL-2.1-or-later
// How much may be in flight: per connection, and per loop. A request is charged when its header is
// decoded, before memory for its payload is taken, and gives back when its reply was handed to the
// socket. On the connection's loop.
//
// A connection's first MiB is its own. What exceeds it comes out of the loop's budget, so that many
// connections together stay bounded. When that is used up, one connection of each export may still
// have one request in flight: what hangs on one export never keeps another from going on.
#pragma once

#include "chain-core/fiber-sync.h"
#include "wire.h"

typedef struct NbdsConnection NbdsConnection;
typedef struct NbdsServerLoop NbdsServerLoop;

typedef struct NbdsCharge {
    uint64_t bytes;      // of the connection's limit
    uint64_t loop_bytes; // of the loop's budget
    bool is_privileged;  // its export's one request beyond the budget
} NbdsCharge;

// Of a connection. A request is in flight from its header until its reply was handed to the socket.
typedef struct NbdsAdmission {
    uint32_t n_requests; // in flight
    uint64_t bytes, loop_bytes;
    bool is_privileged;
    uint64_t progress_ns;    // when the socket last took or gave enough to count
    uint64_t progress_bytes; // since then
    FiberQueue room;         // the receiver, waiting for less in flight
    FiberQueue quiet;        // the receiver, waiting for nothing in flight
} NbdsAdmission;

// What a request holds in memory at most. `preferred_bytes`: of the export; what is copied around a
// write that does not cover whole units of that.
uint64_t nbds_admission_bytes(const NbdsRequestHead *head, uint32_t preferred_bytes);
// The same for a request that is refused.
enum { NBDS_ADMISSION_REFUSAL_BYTES = 1 << 10 };

// Waits until `bytes` more may be in flight and charges them. 0 or -ECANCELED.
int nbds_admission_enter(Fiber *self, NbdsConnection *c, uint64_t bytes, NbdsCharge *ret_charge);
// The client's socket took or gave `bytes`.
void nbds_admission_note_progress(NbdsConnection *c, uint64_t bytes);
void nbds_admission_leave(NbdsConnection *c, const NbdsCharge *charge);
