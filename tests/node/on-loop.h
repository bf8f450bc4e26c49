// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: runs one function as a fiber of a new io_uring loop, until it and all fibers it
// started have ended.
#pragma once

#include "chain-core/loop.h"

typedef struct OnLoop {
    LoopCall call;
    Loop *loop;
    FiberFn *fn;
    void *arg;
} OnLoop;

static inline void on_loop_fiber(Fiber *self, void *arg)
{
    OnLoop *on = arg;
    on->fn(self, on->arg);
    loop_stop(on->loop);
}

static inline void on_loop_start(LoopCall *call)
{
    OnLoop *on = (OnLoop *)call; // first member
    if (fiber_spawn(on->loop, "test", on_loop_fiber, on, NULL) < 0)
        g_error("no stack for the test's fiber");
}

static inline void on_loop_with(const LoopConfig *config, FiberFn *fn, void *arg)
{
    GError *error = NULL;
    Loop *loop = loop_new(config, &error);
    if (!loop)
        g_error("%s", error->message);
    OnLoop on = {.call = {.fn = on_loop_start}, .loop = loop, .fn = fn, .arg = arg};
    loop_post(loop, &on.call);
    loop_run(loop);
    loop_free(loop);
}

static inline void on_loop(FiberFn *fn, void *arg)
{
    on_loop_with(NULL, fn, arg);
}
