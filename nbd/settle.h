// SPDX-License-Identifier: LGPL-2.1-or-later
// When to let a client's small writes end before more is received from it. A client that keeps many
// small writes in flight sends the next while the loop's worker still copies the last ones, and
// each would be received, handed over and answered by itself. While a worker is at it, what comes
// gathers in the socket; it is then received, handed over and answered together. Only while all
// that the client has executing is such writes, so that no disk is kept waiting for requests: a
// file's cached writes are made one after the other anyway (host-file.c). And not for long: what
// else the client sends shall not wait for a disk that is slow. On the connection's loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/loop.h"
#include "wire.h"

typedef struct NbdsConnection NbdsConnection;

typedef struct NbdsSettling {
    uint32_t n_writes;     // small ones, executing
    uint32_t n_left_alone; // receives to pass without a thought, after a wait in vain
    FiberQueue ended;      // the receiver, waiting for the last of them
    LoopTimer patience;
} NbdsSettling;

// A request begins and ends to execute.
void nbds_settling_begin(NbdsConnection *c, const NbdsRequestHead *head);
void nbds_settling_end(NbdsConnection *c, const NbdsRequestHead *head);
// The receiver, before it receives the next requests. 0, or -ECANCELED.
int nbds_settling_wait(Fiber *self, NbdsConnection *c);
