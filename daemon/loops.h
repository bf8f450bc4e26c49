// SPDX-License-Identifier: LGPL-2.1-or-later
// Loops, each with its thread: those of the disks, and the one of control. What starts and ends
// threads is called by the owner of `Loops` only.
#pragma once

#include <glib.h>

#include "chain-core/loop.h"

typedef struct Loops Loops;

// Starts `n` (≥1) loops, each as `config` (NULL: the defaults) says, in threads `name`-0, -1, ….
// NULL with a sentence when the kernel refuses.
Loops *loops_start(const char *name, unsigned n, const LoopConfig *config, GError **error);
// Ends each loop when its last fiber ended, and joins its thread. Accepts NULL, like loops_free().
void loops_stop(Loops *loops);
// After loops_stop() of all that post to them: a thread may be about to wake one that has ended.
void loops_free(Loops *loops);

// Spreads things over the loops: the i-th goes to loop i modulo their number.
Loop *loops_get(const Loops *loops, unsigned i);
unsigned loops_count(const Loops *loops);
// Of the i-th one's thread, as the kernel shows it; owned.
char *loops_thread_name(const Loops *loops, unsigned i);
