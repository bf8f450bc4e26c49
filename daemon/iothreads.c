// SPDX-License-Identifier: LGPL-2.1-or-later
// Each loop is a Loops of one. A loop that was given back is taken again before another is made, so
// there are never more than objects at one time.
#include "iothreads.h"

#include "daemon/qmp/error.h"

enum { MAX_IOTHREADS = 256 }; // far above any core count; a bound for programs gone wild

typedef struct IoThread {
    Loops *loops; // one
    bool is_taken;
} IoThread;

struct IoThreads {
    LoopConfig config;
    GArray *all; // IoThread
};

static IoThread *get(const IoThreads *threads, guint i)
{
    return &g_array_index(threads->all, IoThread, i);
}

IoThreads *iothreads_new(const LoopConfig *config)
{
    IoThreads *threads = g_new0(IoThreads, 1);
    threads->config = *config;
    threads->all = g_array_new(false, false, sizeof(IoThread));
    return threads;
}

void iothreads_stop(IoThreads *threads)
{
    for (guint i = 0; threads && i < threads->all->len; i++)
        loops_stop(get(threads, i)->loops);
}

void iothreads_free(IoThreads *threads)
{
    if (!threads)
        return;
    for (guint i = 0; i < threads->all->len; i++)
        loops_free(get(threads, i)->loops);
    g_array_unref(threads->all);
    g_free(threads);
}

guint iothreads_count(const IoThreads *threads)
{
    return threads->all->len;
}

Loop *iothreads_get(const IoThreads *threads, guint i)
{
    return loops_get(get(threads, i)->loops, 0);
}

char *iothreads_thread_name(const IoThreads *threads, guint i)
{
    return loops_thread_name(get(threads, i)->loops, 0);
}

Loop *iothreads_take(IoThreads *threads, GError **error)
{
    for (guint i = 0; i < threads->all->len; i++) {
        IoThread *thread = get(threads, i);
        if (thread->is_taken)
            continue;
        thread->is_taken = true;
        return loops_get(thread->loops, 0);
    }
    if (threads->all->len >= MAX_IOTHREADS) {
        qmp_fail(error, "there are %d iothreads already, which is the most there can be",
                 MAX_IOTHREADS);
        return NULL;
    }
    g_autofree char *name = g_strdup_printf("io%u", threads->all->len);
    IoThread thread = {loops_start(name, 1, &threads->config, error), true};
    if (!thread.loops)
        return NULL;
    g_array_append_val(threads->all, thread);
    return loops_get(thread.loops, 0);
}

void iothreads_give_back(IoThreads *threads, Loop *loop)
{
    for (guint i = 0; i < threads->all->len; i++)
        if (loops_get(get(threads, i)->loops, 0) == loop)
            get(threads, i)->is_taken = false;
}
