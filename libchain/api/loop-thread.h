// SPDX-License-Identifier: LGPL-2.1-or-later
// A loop on a thread of its own, into which the API makes remote calls.
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
