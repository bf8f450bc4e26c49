// SPDX-License-Identifier: LGPL-2.1-or-later
// Loops that objects of the kind iothread name, one each, besides those that nodes are spread over.
// A loop outlives its object, since nodes may be on it, and is the next object's. Control loop.
#pragma once

#include "loops.h"

typedef struct IoThreads IoThreads;

// `config` (copied) is of each loop.
IoThreads *iothreads_new(const LoopConfig *config);
// All of them end, as loops_stop() has it; then they are freed. Main thread; both accept NULL.
void iothreads_stop(IoThreads *threads);
void iothreads_free(IoThreads *threads);

// The loops of all, taken or not.
guint iothreads_count(const IoThreads *threads);
Loop *iothreads_get(const IoThreads *threads, guint i);
char *iothreads_thread_name(const IoThreads *threads, guint i); // owned

// A loop that no object has. NULL with a sentence.
Loop *iothreads_take(IoThreads *threads, GError **error);
// The object that had it is gone.
void iothreads_give_back(IoThreads *threads, Loop *loop);
