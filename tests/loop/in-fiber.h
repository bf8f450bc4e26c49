// SPDX-License-Identifier: LGPL-2.1-or-later
// Runs one test function in a fiber of a fresh io_uring loop, to its end.
#pragma once

// cmocka wants these first.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "chain-core/loop.h"

typedef struct InFiber {
    FiberFn *fn;
    void *arg;
} InFiber;

static inline void in_fiber_main(Fiber *self, void *arg)
{
    InFiber *t = arg;
    t->fn(self, t->arg);
    loop_stop(fiber_loop(self));
}

// Assertions of cmocka leave with longjmp(), which must not cross stacks: inside fibers use
// fiber_assert() (it ends the program, with a core to look at).
// Returned is the loop, which has ended: loop_free(), once no other thread posts to it any more.
static inline Loop *run_in_fiber_of_loop(const LoopConfig *config, FiberFn *fn, void *arg)
{
    GError *error = NULL;
    InFiber t = {fn, arg};
    Loop *loop = loop_new(config, &error);
    if (!loop)
        fail_msg("%s", error->message);
    assert_int_equal(fiber_spawn(loop, "test", in_fiber_main, &t, NULL), 0);
    loop_run(loop);
    return loop;
}

static inline void run_in_fiber_of(const LoopConfig *config, FiberFn *fn, void *arg)
{
    loop_free(run_in_fiber_of_loop(config, fn, arg));
}

static inline void run_in_fiber(FiberFn *fn, void *arg)
{
    run_in_fiber_of(NULL, fn, arg);
}

#define fiber_assert(condition)                                                                    \
    do {                                                                                           \
        if (!(condition))                                                                          \
            g_error("%s:%d: %s", __FILE__, __LINE__, #condition);                                  \
    } while (0)
#define fiber_assert_equal(a, b)                                                                   \
    do {                                                                                           \
        long long a_ = (long long)(a), b_ = (long long)(b);                                        \
        if (a_ != b_)                                                                              \
            g_error("%s:%d: %s is %lld, not %s (%lld)", __FILE__, __LINE__, #a, a_, #b, b_);       \
    } while (0)

#define FIBER_TEST(name)                                                                           \
    static void name##_fiber(Fiber *self, void *arg);                                              \
    static void name(void **state)                                                                 \
    {                                                                                              \
        run_in_fiber(name##_fiber, NULL);                                                          \
    }                                                                                              \
    static void name##_fiber(Fiber *self, void *arg)
