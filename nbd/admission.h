// SPDX-License-Identifier: LGPL-2.1-or-later
// How much may be in flight: per connection, and per loop. A request is charged when its header is
// decoded, before memory for its payload is taken, and gives back when its reply was handed to the
// socket. On the connection's loop.
//
// A connection's first MiB is its own. What exceeds it comes out of the loop's budget, so that many
// connections together stay bounded. When that is used up, one connection of each export may still
// have one request in flight: what hangs on one export never keeps another from going on.
#pragma once

#include <glib.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/stream.h"
#include "nbd/server.h"
#include "scheduler.h"

// What the connections of a loop may have in flight beyond their first MiB.
typedef struct NbdsBudget {
    Loop *loop;
    const NbdsLimits *limits; // the server's
    uint64_t bytes;           // that are left
    GQueue members;           // of NbdsAdmission: who last got something of it comes first
    unsigned n_waiting;       // members that wait for some of it
    bool has_waited;          // one did since the last look at those that stall
    LoopTimer stall_timer;
} NbdsBudget;

typedef struct NbdsCharge {
    uint64_t bytes;      // of the connection's limit
    uint64_t loop_bytes; // of the loop's budget
    bool is_privileged;  // its export's one request beyond the budget
} NbdsCharge;

// Of a connection in transmission. A request is in flight from its header until its reply was
// handed to the socket.
typedef struct NbdsAdmission {
    NbdsBudget *budget;
    GList link;           // in budget->members
    bool *has_privileged; // of the export: some connection is privileged
    const NbdsFlow *flow;
    Stream *stream;
    uint32_t n_requests; // in flight
    uint64_t bytes, loop_bytes;
    bool is_privileged;
    bool keeps_to_its_share; // takes nothing of the loop's budget, but for one large request
    uint64_t progress_ns;    // when the socket last took or gave enough to count, or later by what
                             // was excused since
    uint64_t progress_bytes; // since then
    FiberQueue room;         // the receiver, waiting for less in flight
    FiberQueue quiet;        // the receiver, waiting for nothing in flight
} NbdsAdmission;

void nbds_budget_init(NbdsBudget *budget, Loop *loop, const NbdsLimits *limits);

// What it points to outlives it.
void nbds_admission_init(NbdsAdmission *a, NbdsBudget *budget, bool *has_privileged,
                         const NbdsFlow *flow, Stream *stream);
void nbds_admission_done(NbdsAdmission *a); // nothing in flight

// What a request holds in memory at most. `preferred_bytes`: of the export; what is copied around a
// write that does not cover whole units of that.
uint64_t nbds_admission_bytes(const NbdsRequestHead *head, uint32_t preferred_bytes);
// The same for a request that is refused.
enum { NBDS_ADMISSION_REFUSAL_BYTES = 1 << 10 };

// Waits until `bytes` more may be in flight and charges them. 0 or -ECANCELED.
int nbds_admission_enter(Fiber *self, NbdsAdmission *a, uint64_t bytes, NbdsCharge *ret_charge);
// The client's socket took or gave `bytes`.
void nbds_admission_note_progress(NbdsAdmission *a, uint64_t bytes);
// The last of its requests that were executing ended: the time that they took is not the client's.
void nbds_admission_excuse_execution(NbdsAdmission *a);
void nbds_admission_leave(NbdsAdmission *a, const NbdsCharge *charge);
