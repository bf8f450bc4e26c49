// SPDX-License-Identifier: LGPL-2.1-or-later
// A remote call is a message that starts a fiber, and a condition on which the caller sleeps; when
// the caller is a fiber, a message back that wakes it. On the caller's thread, except what the
// message runs: that is on the loop.
#include "chain-core/remote-call.h"

#include <errno.h>
#include <stddef.h>
#include <time.h>

// The caller may return, and its storage go, as soon as the mutex is free.
static void finish(RemoteCall *call, int result)
{
    pthread_mutex_lock(&call->mutex);
    call->result = result;
    call->is_over = true;
    pthread_cond_signal(&call->ended);
    pthread_mutex_unlock(&call->mutex);
}

static void call_fiber(Fiber *self, void *arg)
{
    RemoteCall *call = arg;
    call->fn(self, call->arg);
    finish(call, 0);
}

static void arrive(LoopCall *post)
{
    RemoteCall *call = (RemoteCall *)post;
    int r = call->is_from_reserve ? fiber_spawn_reserve(call->loop, "remote call", call_fiber, call)
                                  : fiber_spawn(call->loop, "remote call", call_fiber, call, NULL);
    if (r < 0)
        finish(call, r);
}

static void start(RemoteCall *call, Loop *loop, FiberFn *fn, void *arg, bool is_from_reserve)
{
    pthread_condattr_t attr;
    *call = (RemoteCall){
        .post.fn = arrive,
        .loop = loop,
        .fn = fn,
        .arg = arg,
        .is_from_reserve = is_from_reserve,
    };
    pthread_mutex_init(&call->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&call->ended, &attr);
    pthread_condattr_destroy(&attr);
    loop_post(loop, &call->post);
}

void remote_call_start(RemoteCall *call, Loop *loop, FiberFn *fn, void *arg)
{
    start(call, loop, fn, arg, false);
}

void remote_call_start_reserve(RemoteCall *call, Loop *loop, FiberFn *fn, void *arg)
{
    start(call, loop, fn, arg, true);
}

int remote_call_wait(RemoteCall *call, int64_t deadline_us)
{
    struct timespec deadline = {deadline_us / 1000000, deadline_us % 1000000 * 1000};
    bool is_late = false;
    pthread_mutex_lock(&call->mutex);
    while (!call->is_over && !is_late) {
        if (deadline_us < 0)
            pthread_cond_wait(&call->ended, &call->mutex);
        else
            is_late = pthread_cond_timedwait(&call->ended, &call->mutex, &deadline) == ETIMEDOUT;
    }
    bool is_over = call->is_over;
    pthread_mutex_unlock(&call->mutex);
    if (!is_over)
        return -ETIMEDOUT;
    pthread_cond_destroy(&call->ended);
    pthread_mutex_destroy(&call->mutex);
    return call->result;
}

int remote_call(Loop *loop, FiberFn *fn, void *arg)
{
    RemoteCall call;
    start(&call, loop, fn, arg, false);
    return remote_call_wait(&call, -1);
}

int remote_call_reserve(Loop *loop, FiberFn *fn, void *arg)
{
    RemoteCall call;
    start(&call, loop, fn, arg, true);
    return remote_call_wait(&call, -1);
}

// On the caller's stack. Once `reply` is posted it is the caller's again.
typedef struct FiberCall {
    LoopCall post; // first: the loop gives it back
    LoopCall reply;
    Loop *loop;
    Fiber *caller;
    FiberFn *fn;
    void *arg;
    bool is_from_reserve;
    bool is_over; // only on the caller's loop
    int result;
} FiberCall;

static void reply_arrives(LoopCall *reply)
{
    FiberCall *call = (FiberCall *)((char *)reply - offsetof(FiberCall, reply));
    call->is_over = true;
    fiber_wake(call->caller);
}

static void send_reply(FiberCall *call, int result)
{
    call->result = result;
    call->reply.fn = reply_arrives;
    loop_post(fiber_loop(call->caller), &call->reply);
}

static void fiber_call_fiber(Fiber *self, void *arg)
{
    FiberCall *call = arg;
    call->fn(self, call->arg);
    send_reply(call, 0);
}

static void fiber_call_arrives(LoopCall *post)
{
    FiberCall *call = (FiberCall *)post;
    int r = call->is_from_reserve
                ? fiber_spawn_reserve(call->loop, "remote call", fiber_call_fiber, call)
                : fiber_spawn(call->loop, "remote call", fiber_call_fiber, call, NULL);
    if (r < 0)
        send_reply(call, r);
}

static int call_from_fiber(Fiber *self, FiberCall *call, LoopCallFn *arrives)
{
    call->post.fn = arrives;
    call->caller = self;
    loop_post(call->loop, &call->post);
    while (!call->is_over)
        fiber_suspend(self, "remote call");
    return call->result;
}

int remote_call_fiber(Fiber *self, Loop *loop, FiberFn *fn, void *arg)
{
    FiberCall call = {.loop = loop, .fn = fn, .arg = arg};
    return call_from_fiber(self, &call, fiber_call_arrives);
}

int remote_call_fiber_reserve(Fiber *self, Loop *loop, FiberFn *fn, void *arg)
{
    FiberCall call = {.loop = loop, .fn = fn, .arg = arg, .is_from_reserve = true};
    return call_from_fiber(self, &call, fiber_call_arrives);
}

typedef struct PlainCall {
    FiberCall call; // first; without a fiber
    RemoteCallFn *fn;
} PlainCall;

static void plain_call_arrives(LoopCall *post)
{
    PlainCall *plain = (PlainCall *)post;
    plain->fn(plain->call.arg);
    send_reply(&plain->call, 0);
}

void remote_call_plain(Fiber *self, Loop *loop, RemoteCallFn *fn, void *arg)
{
    PlainCall plain = {.call = {.loop = loop, .arg = arg}, .fn = fn};
    call_from_fiber(self, &plain.call, plain_call_arrives);
}
