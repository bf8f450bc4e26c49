// SPDX-License-Identifier: LGPL-2.1-or-later
// Locks and conditions between fibers of one loop. All are values, zero-initialised, FIFO-fair, and
// cost a few instructions when uncontended. Only on the loop's thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "chain-core/fiber.h"

// FIFO of waiting fibers; each waiter sits on its fiber's stack.
typedef struct FiberWaiter FiberWaiter;
typedef struct FiberQueue {
    FiberWaiter *first, *last;
} FiberQueue;

// Suspends at the end of `queue` until fiber_queue_wake_* picks this fiber. Returns 0; with
// `cancellable`, -ECANCELED (and leaves the queue) once the fiber is cancelled.
int fiber_queue_wait(Fiber *self, FiberQueue *queue, bool cancellable, const char *where);
// The same, cancellable, and -ETIMEDOUT once loop_now_ns() has reached `deadline_ns`; UINT64_MAX:
// no limit.
int fiber_queue_wait_until(Fiber *self, FiberQueue *queue, uint64_t deadline_ns, const char *where);
bool fiber_queue_wake_one(FiberQueue *queue); // false when nobody waited
void fiber_queue_wake_all(FiberQueue *queue);
static inline bool fiber_queue_is_empty(const FiberQueue *queue)
{
    return !queue->first;
}

typedef struct FiberMutex {
    Fiber *owner;
    FiberQueue waiters;
} FiberMutex;
void fiber_mutex_lock(Fiber *self, FiberMutex *m);
bool fiber_mutex_try_lock(Fiber *self, FiberMutex *m);
void fiber_mutex_unlock(Fiber *self, FiberMutex *m);

typedef struct FiberRwLock {
    uint32_t n_readers;
    Fiber *writer;
    FiberQueue waiters; // in order of arrival: a waiting writer keeps later readers out
} FiberRwLock;
void fiber_rw_lock_read(Fiber *self, FiberRwLock *l);
void fiber_rw_unlock_read(Fiber *self, FiberRwLock *l);
void fiber_rw_lock_write(Fiber *self, FiberRwLock *l);
void fiber_rw_unlock_write(Fiber *self, FiberRwLock *l);

typedef struct FiberCond {
    FiberQueue waiters;
} FiberCond;
// Releases `m`, waits, takes `m` again. 0 or -ECANCELED; `m` is held in both cases.
int fiber_cond_wait(Fiber *self, FiberCond *c, FiberMutex *m);
void fiber_cond_signal(FiberCond *c);
void fiber_cond_broadcast(FiberCond *c);

typedef struct FiberSemaphore {
    uint64_t available;
    FiberQueue waiters;
} FiberSemaphore;
int fiber_semaphore_acquire(Fiber *self, FiberSemaphore *s, uint64_t n); // 0 or -ECANCELED
bool fiber_semaphore_try_acquire(FiberSemaphore *s, uint64_t n);
void fiber_semaphore_release(FiberSemaphore *s, uint64_t n);

// Counts activities; wait() returns when the count is 0. Not cancellable.
typedef struct FiberWaitGroup {
    uint32_t count;
    FiberQueue waiters;
} FiberWaitGroup;
void fiber_wait_group_add(FiberWaitGroup *g, uint32_t n);
void fiber_wait_group_done(FiberWaitGroup *g);
void fiber_wait_group_wait(Fiber *self, FiberWaitGroup *g);
