// SPDX-License-Identifier: LGPL-2.1-or-later
// The top of a commit that stays in the chain, over the base. A filter over it notes what guests
// change; what they have not changed since it was copied is given back in the end, while they go
// on.
//
//     keep_top_begin
//     keep_top_copy      of a top that guests write: all once, and what they changed again, as long
//                        as that gets less, so it comes to an end however fast they are
//     keep_top_hold      all else has come to the base, durably, and the base lies below the top;
//                        whoever changes the top holds the range from here on
//     keep_top_give_back
//
// On the nodes' loop.
#pragma once

#include "chain-core/port.h"
#include "live-copy.h"

// A value, zero-initialised: it does not stay.
typedef struct KeepTop {
    Node *top;        // borrowed
    Node *filter;     // over it; NULL: nobody writes it
    WorkSet *changed; // and perhaps not in the base
    RangeLock lock;
    bool holds;
} KeepTop;

// `granularity_bits` of the set.
void keep_top_begin(KeepTop *keep, Node *top, uint32_t granularity_bits);
// Puts in the filter and runs the copy, which is not live, of the top. It is ready, and then waits
// for its users, as live_copy_run() has it.
int keep_top_copy(Fiber *self, KeepTop *keep, LiveCopy *copy);
void keep_top_hold(void *keep); // a SwitchFn, for a step in which nobody writes
// Changes the graph back. Accepts one that has not begun.
void keep_top_done(Fiber *self, KeepTop *keep);

// The top's clusters that guests have not changed are unlinked, over the base that has the same;
// that is made durable, and their space goes to the host. Each piece enters `port`, which leads to
// the top. No faster than the job's speed allows; what the top has is added to the job's total, and
// counts as skipped then. Ends early, with -ECANCELED, once the job is cancelled. 0 or -errno: part
// of it has stayed. Guests who want to write wait for changes in memory, and for a table at most.
int keep_top_give_back(Fiber *self, KeepTop *keep, Port *port, JobControl *control);
