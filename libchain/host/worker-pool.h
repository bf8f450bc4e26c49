// SPDX-License-Identifier: LGPL-2.1-or-later
// Threads for blocking calls and CPU work of one loop. Started on demand, up to a bound; they stay
// until the pool is freed.
#pragma once

#include "chain-core/loop.h"

typedef struct WorkerPool WorkerPool;

// The submitter owns the storage. `run` is called on a worker; then `call` is posted to the loop.
typedef struct WorkerJob WorkerJob;
struct WorkerJob {
    LoopCall call; // fn: what the loop does when the job has run
    void (*run)(WorkerJob *job);
    WorkerJob *next; // the pool's
};

WorkerPool *worker_pool_new(Loop *loop, unsigned max_threads);
// Threads that are there already stay. Loop thread.
void worker_pool_set_max(WorkerPool *pool, unsigned max_threads);
// Ends and joins the threads. No job may be pending.
void worker_pool_free(WorkerPool *pool);
// First in, first out. Loop thread. -EAGAIN when not even one thread can be started.
int worker_pool_submit(WorkerPool *pool, WorkerJob *job);
