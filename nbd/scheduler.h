// SPDX-License-Identifier: LGPL-2.1-or-later
// Who goes on when, among the connections of one loop: deficit round robin over bytes. A turn of
// the loop looks at every socket once; in it each connection may take its quantum, the turn's
// budget divided by the connections that are active. What it takes beyond that is carried as debt,
// and it waits for its next turn while it has any. A turn of the loop in which nobody else has
// something to do does not wait for anything, so the loop is never idle while work is queued.
//
// A connection that has one request in flight at a time is interactive: somebody waits for each
// answer. It goes before the others, the bulk ones. docs/scheduling.md has the reasons and the
// figures. On the server's loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/loop.h"
#include "wire.h"

typedef struct NbdsFlow NbdsFlow;

// Of a loop.
typedef struct NbdsScheduler {
    Loop *loop;
    // Connections that took something in this period, and in the one before.
    uint64_t period_end_ns;
    unsigned period, n_active, n_active_before;
    bool has_interactive, had_interactive; // one of them was
    unsigned n_woken;                      // flows whose turn has come, and that have not run yet
    NbdsFlow *waiting; // for their next turn: interactive ones first, each kind as it came
    bool is_planned;
    LoopCall next_turn; // a message to itself: comes after one look at every socket
} NbdsScheduler;

// Of a connection.
struct NbdsFlow {
    NbdsScheduler *scheduler;
    NbdsFlow *next; // in scheduler->waiting
    bool is_waiting, is_woken;
    int64_t deficit_bytes; // what it may yet take in this turn; negative: debt
    uint64_t turn_ns;      // loop_now_ns() of its last turn
    unsigned period;       // in which it last took something
    unsigned n_single;     // requests in a row that came one at a time, with no other in flight
    FiberQueue turn;       // its fibers that wait for the next one
    uint32_t n_executing;  // requests whose reply is not queued yet
    uint64_t executing_since_ns; // while there are some
    // Since the last receive.
    uint32_t n_requests;
    uint64_t request_bytes; // what they were charged
    // Coalescing small writes.
    uint32_t n_small_writes; // of those executing
    uint32_t n_uncoalesced;  // receives to go on without, after a time-out
    FiberQueue writes_ended;
    LoopTimer coalesce_timeout;
};

void nbds_scheduler_init(NbdsScheduler *scheduler, Loop *loop);
void nbds_scheduler_done(NbdsScheduler *scheduler); // no flow left

void nbds_flow_init(NbdsFlow *flow, NbdsScheduler *scheduler);
void nbds_flow_done(NbdsFlow *flow); // none of its fibers may wait

bool nbds_flow_is_interactive(const NbdsFlow *flow);
// How much to hand to its socket in one piece, and whether without waiting for the turn's end.
uint64_t nbds_flow_send_bytes(const NbdsFlow *flow);
bool nbds_flow_sends_at_once(const NbdsFlow *flow);

// Waits while the flow has used up its turn. Bounded: also for a fiber that was cancelled. Never
// between port_enter() and port_leave().
void nbds_flow_wait_turn(Fiber *self, NbdsFlow *flow);
// It took `bytes`: copied so many, or did what takes as long.
void nbds_flow_charge(NbdsFlow *flow, uint64_t bytes);
// What to charge for a part of a CACHE, TRIM or WRITE_ZEROES, which is done in parts.
uint64_t nbds_flow_part_cost(const NbdsRequestHead *part);

// A request begins to execute, and is charged; it ends. `n_in_flight` of the connection, with this
// one.
void nbds_flow_begin(NbdsFlow *flow, const NbdsRequestHead *head, unsigned n_in_flight);
void nbds_flow_end(NbdsFlow *flow, const NbdsRequestHead *head);
void nbds_flow_refuse(NbdsFlow *flow); // instead: answered without being executed

// How to receive next: how much, and what to wait for first.
typedef enum NbdsReceiveWait {
    NBDS_WAIT_NOTHING,
    NBDS_WAIT_READER, // until the client has read most of its answers: stream_recv_coalesced()
    NBDS_WAIT_WRITES, // until its small writes are done: nbds_flow_wait_for_writes()
} NbdsReceiveWait;

typedef struct NbdsReceive {
    size_t max_bytes;
    NbdsReceiveWait wait;
} NbdsReceive;

// The one question before each receive. `is_inside`: a request has begun and is incomplete.
NbdsReceive nbds_flow_next_receive(NbdsFlow *flow, bool is_inside);
// 0, or -ECANCELED.
int nbds_flow_wait_for_writes(Fiber *self, NbdsFlow *flow);
// Something was received: the flow has another turn.
void nbds_flow_received(NbdsFlow *flow);
