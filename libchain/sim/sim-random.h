// SPDX-License-Identifier: LGPL-2.1-or-later
// The simulation's source of chance: splitmix64, so that one seed gives one run. A value; pure.
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct SimRandom {
    uint64_t state;
} SimRandom;

static inline uint64_t sim_random_next(SimRandom *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// 0 … bound-1; 0 when bound is 0.
static inline uint64_t sim_random_below(SimRandom *r, uint64_t bound)
{
    return (uint64_t)(((unsigned __int128)sim_random_next(r) * bound) >> 64);
}

static inline bool sim_random_chance(SimRandom *r, unsigned percent)
{
    return sim_random_below(r, 100) < percent;
}

// A stream of its own for `salt`, so that one consumer's draws do not shift another's.
static inline SimRandom sim_random_make(uint64_t seed, uint64_t salt)
{
    SimRandom r = {seed ^ (salt * 0xd6e8feb86659fd93)};
    sim_random_next(&r);
    return r;
}

// A hash of two numbers, in their order.
static inline uint64_t sim_mix(uint64_t a, uint64_t b)
{
    SimRandom r = {a};
    r.state = sim_random_next(&r) ^ b;
    return sim_random_next(&r);
}
