// SPDX-License-Identifier: LGPL-2.1-or-later
// A loop on a thread of its own, and calls into it from threads that may block.
#pragma once

#include <glib.h>
#include <pthread.h>

#include "chain-core/loop.h"

typedef struct LoopThread {
    Loop *loop;
    pthread_t thread;
} LoopThread;

int loop_thread_start(LoopThread *t, GError **error);
// Waits until its last fiber has ended.
void loop_thread_stop(LoopThread *t);

// Runs fn(fiber, arg) in a fiber of the loop and returns its result; -ENOMEM when there is no stack
// for one. Any other thread.
typedef int LoopThreadFn(Fiber *self, void *arg);
int loop_thread_call(LoopThread *t, LoopThreadFn *fn, void *arg);
// The same for the last call, which does not count against the loop's limit of fibers.
int loop_thread_call_last(LoopThread *t, LoopThreadFn *fn, void *arg);
