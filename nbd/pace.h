// SPDX-License-Identifier: LGPL-2.1-or-later
// How fast busy clients go on beside one that waits for each of its answers. Together they may copy
// so many bytes, or start so many requests, for each answer that it gets; then they rest until its
// next one. So its request waits for no more than that, and their clients, which would keep a
// processor busy as long as they find answers, leave one to its own. When it lets the loop wait for
// its next request, the rest ends after a moment; where that is its habit, rests are short and only
// requests count. What is too large goes on, in debt: the rest is longer. On the server's loop.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/loop.h"

typedef struct NbdsConnection NbdsConnection;

// Of a loop; zero-initialised.
typedef struct NbdsPace {
    uint64_t taken; // bytes
    bool is_resting;
    bool is_passing;     // whom it woke from `resting` has not run yet
    unsigned n_thoughts; // requests in a row of one that waits that came later than a rest can last
    uint64_t answered_ns;
    FiberQueue resting; // first come, first served; not empty: is_resting or is_passing
    LoopTimer timer;
} NbdsPace;

// A request of `c` was started; the loop is about to copy `bytes` for one, beyond its first step.
// May suspend, and not be cancelled. Not where nobody else waits for single answers, nor for one
// that does.
void nbds_pace_take_request(Fiber *self, NbdsConnection *c, bool is_large);
void nbds_pace_take_bytes(Fiber *self, NbdsConnection *c, uint64_t bytes);
// Of one that waits for each answer: one is about to be sent; its next request has come.
void nbds_pace_answered(NbdsConnection *c);
void nbds_pace_asked(NbdsConnection *c);
// All that rest go on, and nothing is owed: no connection is left that would wait.
void nbds_pace_stop(Loop *loop, NbdsPace *pace);
