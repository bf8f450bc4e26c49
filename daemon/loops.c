// SPDX-License-Identifier: LGPL-2.1-or-later
// A thread per loop, and the one bridge by which the main thread gets something done on a loop: an
// errand is a message, which spawns a fiber; the main thread sleeps until that fiber ended.
#include "loops.h"

#include <errno.h>

struct Loops {
    unsigned n;
    struct {
        Loop *loop;
        GThread *thread;
    } each[];
};

static gpointer run_loop(gpointer loop)
{
    loop_run(loop);
    return NULL;
}

Loops *loops_start(unsigned n, uint64_t busy_wait_ns, GError **error)
{
    Loops *loops = g_malloc0(sizeof(*loops) + n * sizeof(loops->each[0]));
    for (; loops->n < n; loops->n++) {
        g_autofree char *name = g_strdup_printf("loop-%u", loops->n);
        Loop *loop = loop_new(&(LoopConfig){.busy_wait_ns = busy_wait_ns}, error);
        if (!loop) {
            loops_stop(loops);
            return NULL;
        }
        loops->each[loops->n].loop = loop;
        loops->each[loops->n].thread = g_thread_new(name, run_loop, loop);
    }
    return loops;
}

void loops_stop(Loops *loops)
{
    if (!loops)
        return;
    for (unsigned i = 0; i < loops->n; i++)
        loop_stop(loops->each[i].loop);
    for (unsigned i = 0; i < loops->n; i++)
        g_thread_join(loops->each[i].thread);
    for (unsigned i = 0; i < loops->n; i++)
        loop_free(loops->each[i].loop);
    g_free(loops);
}

Loop *loops_get(const Loops *loops, unsigned i)
{
    return loops->each[i % loops->n].loop;
}

unsigned loops_count(const Loops *loops)
{
    return loops->n;
}

// A call on its way; freed by errand_wait().
struct Errand {
    LoopCall call; // first: the loop gives it back
    Loop *loop;
    FiberFn *fn;
    void *arg;
    GMutex mutex;
    GCond changed;
    bool done;
    int result;
};

static void finish(Errand *errand, int result)
{
    g_mutex_lock(&errand->mutex);
    errand->result = result;
    errand->done = true;
    g_cond_signal(&errand->changed);
    g_mutex_unlock(&errand->mutex);
}

static void run_errand(Fiber *self, void *arg)
{
    Errand *errand = arg;
    errand->fn(self, errand->arg);
    finish(errand, 0);
}

static void start_errand(LoopCall *call)
{
    Errand *errand = (Errand *)call;
    int r = fiber_spawn_reserve(errand->loop, "errand", run_errand, errand);
    if (r < 0)
        finish(errand, r);
}

Errand *errand_start(Loop *loop, FiberFn *fn, void *arg)
{
    Errand *errand = g_new0(Errand, 1);
    errand->call.fn = start_errand;
    errand->loop = loop;
    errand->fn = fn;
    errand->arg = arg;
    g_mutex_init(&errand->mutex);
    g_cond_init(&errand->changed);
    loop_post(loop, &errand->call);
    return errand;
}

int errand_wait(Errand *errand, gint64 deadline_us)
{
    g_mutex_lock(&errand->mutex);
    bool in_time = true;
    while (!errand->done && in_time) {
        if (deadline_us < 0)
            g_cond_wait(&errand->changed, &errand->mutex);
        else
            in_time = g_cond_wait_until(&errand->changed, &errand->mutex, deadline_us);
    }
    bool done = errand->done;
    g_mutex_unlock(&errand->mutex);
    if (!done)
        return -ETIMEDOUT;
    int result = errand->result;
    g_mutex_clear(&errand->mutex);
    g_cond_clear(&errand->changed);
    g_free(errand);
    return result;
}

int loops_call(Loop *loop, FiberFn *fn, void *arg)
{
    return errand_wait(errand_start(loop, fn, arg), -1);
}
