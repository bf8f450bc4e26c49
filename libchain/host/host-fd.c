// SPDX-License-Identifier: LGPL-2.1-or-later
// Waiting for a descriptor: one poll operation of the ring, ended early by a timer or a cancelled
// fiber. The kernel lets go of the operation's memory, which is on the fiber's stack, only with its
// completion, so that is waited for in any case. In a fiber.
#include <errno.h>

#include "chain-core/fd-wait.h"
#include "host/host-loop.h"
#include "loop/fiber-private.h"

typedef struct FdPoll {
    LoopOp op; // first
    LoopTimer timer;
    HostRing *ring;
    Fiber *fiber;
    bool is_done, is_cancelling, has_timed_out;
    int result;
} FdPoll;

static void poll_done(LoopOp *op, int result)
{
    FdPoll *p = (FdPoll *)op;
    p->is_done = true;
    p->result = result;
    fiber_wake(p->fiber);
}

static void poll_cancel(FdPoll *p)
{
    if (!p->is_done && !p->is_cancelling)
        host_ring_cancel(p->ring, &p->op);
    p->is_cancelling = true;
}

static void poll_timed_out(LoopTimer *timer)
{
    FdPoll *p = (FdPoll *)((char *)timer - offsetof(FdPoll, timer));
    p->has_timed_out = true;
    poll_cancel(p);
}

static void poll_cancelled(Fiber *fiber, void *arg)
{
    poll_cancel(arg);
}

int fd_wait(Fiber *self, int fd, short events, uint64_t timeout_ns)
{
    Loop *loop = fiber_loop(self);
    FdPoll p = {
        .op.done = poll_done,
        .timer.fn = poll_timed_out,
        .ring = &((HostLoop *)loop)->ring,
        .fiber = self,
    };
    if (!fiber_begin_cancellable(self, poll_cancelled, &p))
        return -ECANCELED;
    struct io_uring_sqe *sqe = host_ring_get_sqe(p.ring, &p.op);
    io_uring_prep_poll_add(sqe, fd, (unsigned)events);
    if (timeout_ns)
        loop_timer_start(loop, &p.timer, timeout_ns);
    while (!p.is_done)
        fiber_suspend(self, "a descriptor");
    if (timeout_ns)
        loop_timer_stop(loop, &p.timer);
    fiber_end_cancellable(self);
    if (p.result >= 0)
        return 0;
    if (p.is_cancelling)
        return p.has_timed_out ? -ETIMEDOUT : -ECANCELED;
    return p.result;
}
