// SPDX-License-Identifier: LGPL-2.1-or-later
// Room for one cache that all users of a MapMemory share: `make` is called once, at first use;
// `free` when the MapMemory goes. Any thread.
#pragma once

#include "chain-core/map-memory.h"

void *map_memory_slot(MapMemory *m, void *(*make)(void), void (*free)(void *));
