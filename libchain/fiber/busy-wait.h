// SPDX-License-Identifier: LGPL-2.1-or-later
// Shall a loop that has nothing to do look out for events for a moment, or go to sleep at once? A
// thread that sleeps is woken through the scheduler, often on a processor that sleeps too, which
// takes longer than a cached read; a client that waits for each answer pays for that each time. So
// a loop whose idle times keep being short looks on, and one whose idle times are long, or none at
// all (events come faster than they are handled, and sleeping gathers them), does not. Pure; any
// thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct BusyWait {
    uint64_t max_ns; // looks on for no longer than this; 0: never
    unsigned score;  // rises with each idle time in [BUSY_WAIT_MIN_NS, max_ns], falls with others
} BusyWait;

enum {
    BUSY_WAIT_MIN_NS = 1000,
    BUSY_WAIT_MAX_SCORE = 8,
    BUSY_WAIT_PAYS = 4,
};

static inline bool busy_wait_pays(const BusyWait *b)
{
    return b->score >= BUSY_WAIT_PAYS;
}

// The loop was idle for `idle_ns`, looking on or asleep.
static inline void busy_wait_learn(BusyWait *b, uint64_t idle_ns)
{
    if (idle_ns < BUSY_WAIT_MIN_NS || idle_ns > b->max_ns)
        b->score -= b->score > 0;
    else
        b->score += b->score < BUSY_WAIT_MAX_SCORE;
}
