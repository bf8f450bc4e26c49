// SPDX-License-Identifier: LGPL-2.1-or-later
// Shall a loop that has nothing to do poll for events for a moment, or go to sleep at once? A
// thread that sleeps is woken through the scheduler, often on a processor that sleeps too, which
// takes longer than a cached read; a client that waits for each answer pays for that each time. So
// a loop whose idle times keep being short polls, and one whose idle times are long, or none at all
// (events come faster than they are handled, and sleeping batches them), does not.
//
// Nor does one on a machine where more threads want to run than there are processors: polling would
// take its time from the client it waits for, or from others, and waking up is quick where no
// processor sleeps. Pure; any thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    BUSY_POLL_MIN_NS = 1000,
    BUSY_POLL_MAX_SCORE = 16,
    BUSY_POLL_PAYS = 4,
    BUSY_POLL_SAMPLE = 4,     // measuring costs a system call: one idle time of so many
    BUSY_POLL_MIN_PAUSE = 64, // idle times
    BUSY_POLL_MAX_PAUSE = 4096,

    // Contention: the kernel is asked this often how many threads are runnable, which costs some
    // 2 µs. Each answer counts for one step, since threads come and go.
    BUSY_POLL_COUNT_NS = 4000000,
    BUSY_POLL_MAX_CROWDING = 8,
    BUSY_POLL_IS_CROWDED = 4,
};

typedef struct BusyPoll {
    uint64_t max_ns; // polls for no longer than this; 0: never
    unsigned score;  // rises with each idle time in [BUSY_POLL_MIN_NS, max_ns], falls with others
    unsigned n_idle;
    // Idle times yet to pass unmeasured, after polling showed that events do not let the loop wait
    // at all; longer each time that this shows again.
    unsigned pause, next_pause;
    unsigned crowding; // rises with each count above the number of processors, falls with others
    uint64_t next_count_ns;
} BusyPoll;

static inline bool busy_poll_pays(const BusyPoll *b)
{
    return b->score >= BUSY_POLL_PAYS;
}

// On a machine that has processors to spare.
static inline bool busy_poll_is_allowed(const BusyPoll *b)
{
    return b->max_ns && b->crowding < BUSY_POLL_IS_CROWDED;
}

// Is busy_poll_count() due?
static inline bool busy_poll_shall_count(BusyPoll *b, uint64_t now_ns)
{
    if (!b->max_ns || now_ns < b->next_count_ns)
        return false;
    b->next_count_ns = now_ns + BUSY_POLL_COUNT_NS;
    return true;
}

// So many threads, the caller's among them, run or wait for a processor.
static inline void busy_poll_count(BusyPoll *b, unsigned n_runnable, unsigned n_processors)
{
    if (n_runnable <= n_processors)
        b->crowding -= b->crowding > 0;
    else if (b->crowding < BUSY_POLL_MAX_CROWDING)
        b->crowding++;
}

// Before an idle time: is it to be measured, for busy_poll_learn()?
static inline bool busy_poll_measures(BusyPoll *b)
{
    if (!busy_poll_is_allowed(b))
        return false;
    if (b->pause) {
        b->pause--;
        return false;
    }
    return busy_poll_pays(b) || b->n_idle++ % BUSY_POLL_SAMPLE == 0;
}

// The loop was idle for `idle_ns`, polling or asleep.
static inline void busy_poll_learn(BusyPoll *b, uint64_t idle_ns)
{
    if (idle_ns >= BUSY_POLL_MIN_NS && idle_ns <= b->max_ns) {
        if (b->score < BUSY_POLL_MAX_SCORE)
            b->score++;
        else
            b->next_pause = BUSY_POLL_MIN_PAUSE;
        return;
    }
    bool did_pay = busy_poll_pays(b);
    if (b->score)
        b->score--;
    if (did_pay && !busy_poll_pays(b) && idle_ns < BUSY_POLL_MIN_NS) {
        unsigned pause = b->next_pause ? b->next_pause : BUSY_POLL_MIN_PAUSE;
        b->score = 0;
        b->pause = pause;
        b->next_pause = pause < BUSY_POLL_MAX_PAUSE ? 2 * pause : pause;
    }
}
