// SPDX-License-Identifier: LGPL-2.1-or-later
// A cache on one loop that others may ask to give memory back, so that the budget follows use: what
// is idle on one loop makes room for what is used on another. Asking is a message to the cache's
// loop, at most one on its way to each; a cache that has what it looks for asks nobody.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

#include "chain-core/loop.h"
#include "chain-core/map-memory.h"

typedef struct MemoryUser MemoryUser;
struct MemoryUser {
    MapMemoryUse use;
    // Only the user's loop writes them; since it joined.
    _Atomic uint64_t n_hits, n_misses;
    void (*give_back)(MemoryUser *user); // on its loop, outside any fiber
    Loop *loop;
    MapMemory *memory;
    LoopCall call;
    atomic_bool is_asked;
    Fiber *closing; // waits until `call` has run
};

// A look-up found what it looked for; or did not, and it is brought in. On the user's loop.
static inline void memory_user_count_lookup(_Atomic uint64_t *figure)
{
    uint64_t before = atomic_load_explicit(figure, memory_order_relaxed);
    atomic_store_explicit(figure, before + 1, memory_order_relaxed);
}
static inline void memory_user_hit(MemoryUser *user)
{
    memory_user_count_lookup(&user->n_hits);
}
static inline void memory_user_miss(MemoryUser *user)
{
    memory_user_count_lookup(&user->n_misses);
}

// On the user's loop. `use` and `give_back` are set, the rest is zero, or as it was left.
void memory_user_join(MemoryUser *user, Loop *loop, MapMemory *memory);
// Waits for a message that is on its way.
void memory_user_leave(Fiber *self, MemoryUser *user);
// Asks others of the same use, a few at a time, in turn: there may be a thousand. Any thread.
void memory_user_ask_others(MemoryUser *user);
// How many share the memory of this use, at least 1. Any thread.
unsigned memory_user_count(const MemoryUser *user);

// Room for one thing that all users of a MapMemory share: `make` is called once, at first use;
// `free` when the MapMemory goes. Any thread.
void *map_memory_slot(MapMemory *m, void *(*make)(void), void (*free)(void *));
