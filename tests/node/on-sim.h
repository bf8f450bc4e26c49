// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: runs one function as a fiber of the simulation, once for each of a few seeds, which
// decide who runs next. Asserts in fibers are fiber_assert() (in-fiber.h).
#pragma once

#include "../loop/in-fiber.h"
#include "chain-core/sim.h"

enum { ON_SIM_SEEDS = 20 };

static inline void on_sim(FiberFn *fn, void *arg)
{
    for (uint64_t seed = 1; seed <= ON_SIM_SEEDS; seed++) {
        SimConfig config = {.seed = seed, .short_transfers = true, .inline_completion = seed % 2};
        Sim *sim = sim_new(&config);
        if (!sim_run(sim, fn, arg))
            fail_msg("seed %u: the power was cut", (unsigned)seed);
        sim_free(sim);
    }
}

#define SIM_TEST(name)                                                                             \
    static void name##_fiber(Fiber *self, void *arg);                                              \
    static void name(void **state)                                                                 \
    {                                                                                              \
        on_sim(name##_fiber, NULL);                                                                \
    }                                                                                              \
    static void name##_fiber(Fiber *self, void *arg)
