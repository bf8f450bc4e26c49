// SPDX-License-Identifier: LGPL-2.1-or-later
// Each call is a message whose storage is the caller's stack; the caller sleeps until the fiber
// that the message starts has ended. The loop's thread takes no signals: they are the program's.
#include "api/loop-thread.h"

#include <errno.h>
#include <signal.h>

#include "base/error.h"

typedef struct Call {
    LoopCall post; // first
    Loop *loop;
    LoopThreadFn *fn;
    void *arg;
    int result;
    bool is_last; // may use the reserve
    bool is_done;
    pthread_mutex_t mutex;
    pthread_cond_t done;
} Call;

static void *run(void *loop)
{
    loop_run(loop);
    return NULL;
}

int loop_thread_start(LoopThread *t, GError **error)
{
    t->loop = loop_new(NULL, error);
    if (!t->loop)
        return -ENOSYS;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&t->thread, NULL, run, t->loop);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed)
        return 0;
    g_clear_pointer(&t->loop, loop_free);
    return error_set(error, -failed, "cannot start a thread: %s", g_strerror(failed));
}

void loop_thread_stop(LoopThread *t)
{
    loop_stop(t->loop);
    pthread_join(t->thread, NULL);
    g_clear_pointer(&t->loop, loop_free);
}

// The caller may return as soon as the mutex is free.
static void finish(Call *call, int result)
{
    pthread_mutex_lock(&call->mutex);
    call->result = result;
    call->is_done = true;
    pthread_cond_signal(&call->done);
    pthread_mutex_unlock(&call->mutex);
}

static void call_fiber(Fiber *self, void *arg)
{
    Call *call = arg;
    finish(call, call->fn(self, call->arg));
}

static void start_call(LoopCall *post)
{
    Call *call = (Call *)post;
    int r = call->is_last
                ? fiber_spawn_reserve(call->loop, "libchain's last call", call_fiber, call)
                : fiber_spawn(call->loop, "libchain call", call_fiber, call, NULL);
    if (r < 0)
        finish(call, r);
}

static int run_call(LoopThread *t, LoopThreadFn *fn, void *arg, bool is_last)
{
    Call call = {.post = {.fn = start_call},
                 .loop = t->loop,
                 .fn = fn,
                 .arg = arg,
                 .is_last = is_last,
                 .mutex = PTHREAD_MUTEX_INITIALIZER,
                 .done = PTHREAD_COND_INITIALIZER};
    loop_post(t->loop, &call.post);
    pthread_mutex_lock(&call.mutex);
    while (!call.is_done)
        pthread_cond_wait(&call.done, &call.mutex);
    pthread_mutex_unlock(&call.mutex);
    pthread_cond_destroy(&call.done);
    pthread_mutex_destroy(&call.mutex);
    return call.result;
}

int loop_thread_call(LoopThread *t, LoopThreadFn *fn, void *arg)
{
    return run_call(t, fn, arg, false);
}

int loop_thread_call_last(LoopThread *t, LoopThreadFn *fn, void *arg)
{
    return run_call(t, fn, arg, true);
}
