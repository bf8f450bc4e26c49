// SPDX-License-Identifier: LGPL-2.1-or-later
// A thread per loop.
#include "loops.h"

struct Loops {
    char *name;
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

Loops *loops_start(const char *name, unsigned n, const LoopConfig *config, GError **error)
{
    Loops *loops = g_malloc0(sizeof(*loops) + n * sizeof(loops->each[0]));
    loops->name = g_strdup(name);
    for (; loops->n < n; loops->n++) {
        g_autofree char *thread = loops_thread_name(loops, loops->n);
        Loop *loop = loop_new(config, error);
        if (!loop) {
            loops_stop(loops);
            loops_free(loops);
            return NULL;
        }
        loops->each[loops->n].loop = loop;
        loops->each[loops->n].thread = g_thread_new(thread, run_loop, loop);
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
}

void loops_free(Loops *loops)
{
    for (unsigned i = 0; loops && i < loops->n; i++)
        loop_free(loops->each[i].loop);
    if (loops)
        g_free(loops->name);
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

char *loops_thread_name(const Loops *loops, unsigned i)
{
    return g_strdup_printf("%s-%u", loops->name, i);
}
