// SPDX-License-Identifier: LGPL-2.1-or-later
// The loop's thread takes no signals: they are the program's.
#include "api/loop-thread.h"

#include <errno.h>
#include <signal.h>

#include "base/error.h"

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
