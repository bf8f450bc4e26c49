// SPDX-License-Identifier: LGPL-2.1-or-later
// How fast busy clients go on beside one that waits for each of its answers. Together they may copy
// so many bytes for each answer that it gets; then they rest until its next one. So its request
// waits for no more than that, and their threads leave a processor to its own. When it lets the
// loop wait for its next request, they go on after a moment, and without rests where that is its
// habit. A large request that was begun goes on, in debt: its client rests for longer. On the
// server's loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/loop.h"

typedef struct NbdsConnection NbdsConnection;

// Of a loop; zero-initialised.
typedef struct NbdsPace {
    uint64_t taken; // bytes
    bool is_resting;
    bool is_waited_for; // the next request of the one that waits usually comes during a rest
    uint64_t answered_ns;
    FiberQueue resting; // first come, first served
    LoopTimer timer;
} NbdsPace;

// Before the loop starts a request of `c`, and before it copies `bytes` for it, beyond the first 64
// KiB that the request stands for; may suspend. Not where nobody else waits for single answers, nor
// for one that does.
void nbds_pace_take_request(Fiber *self, NbdsConnection *c, bool is_large);
void nbds_pace_take_bytes(Fiber *self, NbdsConnection *c, uint64_t bytes);
// Of one that waits for each answer: it got one; its next request has come.
void nbds_pace_answered(NbdsConnection *c);
void nbds_pace_asked(NbdsConnection *c);
// No connection is left.
void nbds_pace_stop(Loop *loop, NbdsPace *pace);
