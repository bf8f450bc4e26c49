// SPDX-License-Identifier: LGPL-2.1-or-later
// A thread per loop, and the one bridge by which the main thread gets something done on a loop: it
// posts a message, which spawns a fiber, and sleeps until that fiber ended.
#include "loops.h"

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

// A call on its way: lives on the main thread's stack until `done`.
typedef struct Errand {
    LoopCall call; // first: the loop gives it back
    Loop *loop;
    FiberFn *fn;
    void *arg;
    GMutex mutex;
    GCond changed;
    bool done;
    int result;
} Errand;

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
    int r = fiber_spawn(errand->loop, "errand", run_errand, errand, NULL);
    if (r < 0)
        finish(errand, r);
}

int loops_call(Loop *loop, FiberFn *fn, void *arg)
{
    Errand errand = {.call.fn = start_errand, .loop = loop, .fn = fn, .arg = arg};
    g_mutex_init(&errand.mutex);
    g_cond_init(&errand.changed);
    loop_post(loop, &errand.call);

    g_mutex_lock(&errand.mutex);
    while (!errand.done)
        g_cond_wait(&errand.changed, &errand.mutex);
    g_mutex_unlock(&errand.mutex);
    g_mutex_clear(&errand.mutex);
    g_cond_clear(&errand.changed);
    return errand.result;
}
