// SPDX-License-Identifier: LGPL-2.1-or-later
// Locks and conditions between fibers of one loop. Whoever releases hands over directly to the
// first waiter (nobody can slip in between), which keeps every wait FIFO. Loop thread.
#include "chain-core/fiber-sync.h"

#include <assert.h>
#include <errno.h>

#include "loop/fiber-private.h"
#include "loop/loop-private.h"

struct FiberWaiter {
    Fiber *fiber;
    FiberWaiter *previous, *next;
    uint64_t wants; // semaphore: units; rw-lock: FOR_READ or FOR_WRITE
    bool is_woken;
};

enum { FOR_READ, FOR_WRITE };

static void queue_append(FiberQueue *queue, FiberWaiter *w)
{
    w->previous = queue->last;
    w->next = NULL;
    if (queue->last)
        queue->last->next = w;
    else
        queue->first = w;
    queue->last = w;
}

static void queue_remove(FiberQueue *queue, FiberWaiter *w)
{
    if (w->previous)
        w->previous->next = w->next;
    else
        queue->first = w->next;
    if (w->next)
        w->next->previous = w->previous;
    else
        queue->last = w->previous;
}

static void cancel_wait(Fiber *fiber, void *arg)
{
    fiber_wake(fiber);
}

// A wake that came before the cancellation wins: what it handed over is not lost.
static int wait_for(Fiber *self, FiberQueue *queue, uint64_t wants, bool cancellable,
                    const char *where)
{
    FiberWaiter w = {.fiber = self, .wants = wants};
    if (cancellable && !fiber_begin_cancellable(self, cancel_wait, NULL))
        return -ECANCELED;
    queue_append(queue, &w);
    while (!w.is_woken && !(cancellable && self->is_cancelled))
        fiber_suspend(self, where);
    if (cancellable)
        fiber_end_cancellable(self);
    if (w.is_woken)
        return 0;
    queue_remove(queue, &w);
    return -ECANCELED;
}

int fiber_queue_wait(Fiber *self, FiberQueue *queue, bool cancellable, const char *where)
{
    return wait_for(self, queue, 0, cancellable, where);
}

typedef struct Deadline {
    LoopTimer timer; // first
    Fiber *fiber;
    bool is_over;
} Deadline;

static void deadline_over(LoopTimer *timer)
{
    Deadline *deadline = (Deadline *)timer;
    deadline->is_over = true;
    fiber_wake(deadline->fiber);
}

// As in wait_for(): a wake that came first wins.
static int wait_until(Fiber *self, FiberQueue *queue, uint64_t after_ns, const char *where)
{
    FiberWaiter w = {.fiber = self};
    Deadline deadline = {.timer.fn = deadline_over, .fiber = self};
    if (!fiber_begin_cancellable(self, cancel_wait, NULL))
        return -ECANCELED;
    loop_timer_start(self->loop, &deadline.timer, after_ns);
    queue_append(queue, &w);
    while (!w.is_woken && !self->is_cancelled && !deadline.is_over)
        fiber_suspend(self, where);
    loop_timer_stop(self->loop, &deadline.timer);
    fiber_end_cancellable(self);
    if (w.is_woken)
        return 0;
    queue_remove(queue, &w);
    return self->is_cancelled ? -ECANCELED : -ETIMEDOUT;
}

int fiber_queue_wait_until(Fiber *self, FiberQueue *queue, uint64_t deadline_ns, const char *where)
{
    if (deadline_ns == UINT64_MAX)
        return wait_for(self, queue, 0, true, where);
    uint64_t now_ns = loop_now_ns(self->loop);
    return wait_until(self, queue, deadline_ns > now_ns ? deadline_ns - now_ns : 0, where);
}

bool fiber_queue_wake_one(FiberQueue *queue)
{
    FiberWaiter *w = queue->first;
    if (!w)
        return false;
    queue_remove(queue, w);
    w->is_woken = true;
    fiber_wake(w->fiber);
    return true;
}

void fiber_queue_wake_all(FiberQueue *queue)
{
    while (fiber_queue_wake_one(queue))
        ;
}

bool fiber_mutex_try_lock(Fiber *self, FiberMutex *m)
{
    if (m->owner)
        return false;
    m->owner = self;
    return true;
}

void fiber_mutex_lock(Fiber *self, FiberMutex *m)
{
    assert(m->owner != self);
    if (fiber_mutex_try_lock(self, m))
        return;
    wait_for(self, &m->waiters, 0, false, "mutex");
    assert(m->owner == self);
}

void fiber_mutex_unlock(Fiber *self, FiberMutex *m)
{
    assert(m->owner == self);
    m->owner = m->waiters.first ? m->waiters.first->fiber : NULL;
    fiber_queue_wake_one(&m->waiters);
}

// Hands the lock to the first waiter, and to the readers right behind a reader.
static void rw_grant(FiberRwLock *l)
{
    while (l->waiters.first && !l->writer) {
        FiberWaiter *w = l->waiters.first;
        if (w->wants == FOR_READ)
            l->n_readers++;
        else if (l->n_readers)
            return;
        else
            l->writer = w->fiber;
        fiber_queue_wake_one(&l->waiters);
    }
}

void fiber_rw_lock_read(Fiber *self, FiberRwLock *l)
{
    assert(l->writer != self);
    if (!l->writer && !l->waiters.first)
        l->n_readers++;
    else
        wait_for(self, &l->waiters, FOR_READ, false, "rw-lock, to read");
}

void fiber_rw_unlock_read(Fiber *self, FiberRwLock *l)
{
    assert(l->n_readers);
    l->n_readers--;
    rw_grant(l);
}

void fiber_rw_lock_write(Fiber *self, FiberRwLock *l)
{
    assert(l->writer != self);
    if (!l->writer && !l->n_readers && !l->waiters.first)
        l->writer = self;
    else
        wait_for(self, &l->waiters, FOR_WRITE, false, "rw-lock, to write");
    assert(l->writer == self);
}

void fiber_rw_unlock_write(Fiber *self, FiberRwLock *l)
{
    assert(l->writer == self);
    l->writer = NULL;
    rw_grant(l);
}

int fiber_cond_wait(Fiber *self, FiberCond *c, FiberMutex *m)
{
    fiber_mutex_unlock(self, m);
    int r = wait_for(self, &c->waiters, 0, true, "condition");
    fiber_mutex_lock(self, m);
    return r;
}

void fiber_cond_signal(FiberCond *c)
{
    fiber_queue_wake_one(&c->waiters);
}

void fiber_cond_broadcast(FiberCond *c)
{
    fiber_queue_wake_all(&c->waiters);
}

static void semaphore_grant(FiberSemaphore *s)
{
    while (s->waiters.first && s->waiters.first->wants <= s->available) {
        s->available -= s->waiters.first->wants;
        fiber_queue_wake_one(&s->waiters);
    }
}

bool fiber_semaphore_try_acquire(FiberSemaphore *s, uint64_t n)
{
    if (s->waiters.first || s->available < n)
        return false;
    s->available -= n;
    return true;
}

int fiber_semaphore_acquire(Fiber *self, FiberSemaphore *s, uint64_t n)
{
    if (self->is_cancelled)
        return -ECANCELED;
    if (fiber_semaphore_try_acquire(s, n))
        return 0;
    int r = wait_for(self, &s->waiters, n, true, "semaphore");
    if (r < 0)
        semaphore_grant(s); // those behind may want less
    return r;
}

void fiber_semaphore_release(FiberSemaphore *s, uint64_t n)
{
    s->available += n;
    semaphore_grant(s);
}

void fiber_wait_group_add(FiberWaitGroup *g, uint32_t n)
{
    g->count += n;
}

void fiber_wait_group_done(FiberWaitGroup *g)
{
    assert(g->count);
    if (--g->count == 0)
        fiber_queue_wake_all(&g->waiters);
}

void fiber_wait_group_wait(Fiber *self, FiberWaitGroup *g)
{
    while (g->count)
        wait_for(self, &g->waiters, 0, false, "wait group");
}
