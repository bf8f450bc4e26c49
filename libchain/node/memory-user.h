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
    void (*give_back)(MemoryUser *user); // on its loop, outside any fiber
    Loop *loop;
    MapMemory *memory;
    LoopCall call;
    atomic_bool is_asked;
    Fiber *closing; // waits until `call` has run
};

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
