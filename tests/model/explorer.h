// SPDX-License-Identifier: LGPL-2.1-or-later
// Goes through the orders in which a few fibers can do their work, run by run: bounded exhaustive.
//
// A run is a sequence of decisions: which of the things that can happen comes next, and at each
// operation of a file whether it fails. Of each decision one outcome is plain: whoever did
// something last goes on as long as it can; nothing fails. A *deviation* is another outcome while
// the plain one was possible: somebody else goes on (a preemption), or a failure, of which a run
// has at most one. Who goes on when the last one waits or has ended is free.
//
// All runs without a deviation come first, then all with one, and so on; each is made once. Where
// they are too many a seed chooses among those with the same number of deviations. A run that comes
// to a state in which another one was before, with no fewer deviations, needs no look from there
// on, and what could follow is not queued again.
//
// What needs several deviations at certain places is seldom among those that are chosen, so there
// can be runs *at random* after them: fibers have a rank, the highest that can goes on, and now and
// then whoever is at work becomes the last of all. Half of these runs have a failure somewhere.
//
//     while (explorer_begin(e)) {            // a schedule that was not run yet
//         Sim *sim = …; sim_set_chooser(sim, explorer_chooser(e));
//         …                                  // explorer_start() where the decisions begin
//         explorer_end(e);
//     }
//
// Test code only; one thread.
#pragma once

#include <glib.h>

#include "chain-core/sim-choice.h"

typedef struct Explorer Explorer;

typedef struct ExplorerLimits {
    uint64_t max_runs;       // 0: as many as there are
    uint64_t max_random;     // runs at random after that
    unsigned max_deviations; // at most EXPLORER_MAX_DEVIATIONS
    uint64_t seed;           // of the choice, where there are more
} ExplorerLimits;
enum { EXPLORER_MAX_DEVIATIONS = 8 };

typedef struct ExplorerCounts {
    uint64_t n_runs;     // schedules that were run
    uint64_t n_random;   // and so many at random
    uint64_t n_known;    // of these: that came to a known state
    uint64_t n_bound;    // decisions not followed, for they needed one deviation more than allowed
    uint64_t n_left;     // schedules not run, for there were max_runs
    unsigned n_complete; // all schedules with fewer deviations than this were run
} ExplorerCounts;

Explorer *explorer_new(const ExplorerLimits *limits);
void explorer_free(Explorer *e);

// The next schedule. False: there is none, or no more are wanted.
bool explorer_begin(Explorer *e);
void explorer_end(Explorer *e);
// Only this one: as explorer_schedule() wrote it. Then explorer_begin() is true once.
bool explorer_replay(Explorer *e, const char *schedule);

SimChooser *explorer_chooser(Explorer *e);
// From here on in `sim` there are decisions; until the stop. Before and after, all is plain.
void explorer_start(Explorer *e, Sim *sim);
void explorer_stop(Explorer *e);
// A decision: 0 nothing fails, or which of the `n` failures it is, from 1.
unsigned explorer_fail(Explorer *e, unsigned n);

// What happens now happened in no run before this one: worth a look.
bool explorer_is_new(const Explorer *e);
bool explorer_has_failure(const Explorer *e); // this run has its failure, or will have
char *explorer_schedule(const Explorer *e);   // of this run; owned
void explorer_counts(const Explorer *e, ExplorerCounts *ret_counts);
