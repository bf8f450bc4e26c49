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

enum {
    BUSY_WAIT_MIN_NS = 1000,
    BUSY_WAIT_MAX_SCORE = 16,
    BUSY_WAIT_PAYS = 4,
    BUSY_WAIT_SAMPLE = 4,     // measuring costs a system call: one idle time of so many
    BUSY_WAIT_MIN_PAUSE = 64, // idle times
    BUSY_WAIT_MAX_PAUSE = 4096,
};

typedef struct BusyWait {
    uint64_t max_ns; // looks on for no longer than this; 0: never
    unsigned score;  // rises with each idle time in [BUSY_WAIT_MIN_NS, max_ns], falls with others
    unsigned n_idle;
    // Idle times yet to pass without a thought, after looking on showed that events do not let the
    // loop wait at all; longer each time that this shows again.
    unsigned pause, next_pause;
} BusyWait;

static inline bool busy_wait_pays(const BusyWait *b)
{
    return b->score >= BUSY_WAIT_PAYS;
}

// Before an idle time: is it to be measured, for busy_wait_learn()?
static inline bool busy_wait_measures(BusyWait *b)
{
    if (b->pause) {
        b->pause--;
        return false;
    }
    return busy_wait_pays(b) || b->n_idle++ % BUSY_WAIT_SAMPLE == 0;
}

// The loop was idle for `idle_ns`, looking on or asleep.
static inline void busy_wait_learn(BusyWait *b, uint64_t idle_ns)
{
    if (idle_ns >= BUSY_WAIT_MIN_NS && idle_ns <= b->max_ns) {
        if (b->score < BUSY_WAIT_MAX_SCORE)
            b->score++;
        else
            b->next_pause = BUSY_WAIT_MIN_PAUSE;
        return;
    }
    bool did_pay = busy_wait_pays(b);
    if (b->score)
        b->score--;
    if (did_pay && !busy_wait_pays(b) && idle_ns < BUSY_WAIT_MIN_NS) {
        unsigned pause = b->next_pause ? b->next_pause : BUSY_WAIT_MIN_PAUSE;
        b->score = 0;
        b->pause = pause;
        b->next_pause = pause < BUSY_WAIT_MAX_PAUSE ? 2 * pause : pause;
    }
}
