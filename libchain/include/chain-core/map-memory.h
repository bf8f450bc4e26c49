// SPDX-License-Identifier: LGPL-2.1-or-later
// The bound on memory for metadata (--map-memory), one for all images of a process (or of a
// simulation): cached slices of qcow2 tables, clean and dirty, and regions of merged chain maps.
// Any thread. The caches keep inside their share by themselves (node/memory-user.h).
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct MapMemory MapMemory;

MapMemory *map_memory_new(uint64_t limit_bytes);
void map_memory_free(MapMemory *m);
// Charges or gives back. Slices: all of them, and the copies that are on their way to the disk.
// Regions: also those in the making.
typedef enum MapMemoryUse { MAP_MEMORY_SLICES, MAP_MEMORY_REGIONS, MAP_MEMORY_N_USES } MapMemoryUse;
void map_memory_add(MapMemory *m, MapMemoryUse use, int64_t bytes);
// Bytes that this use should give back now (0 when inside its share). Regions may use half of the
// limit; slices what regions do not use, and never less than half.
uint64_t map_memory_excess(const MapMemory *m, MapMemoryUse use);
// Has this use less than a sixteenth of the limit left?
bool map_memory_is_short(const MapMemory *m, MapMemoryUse use);
uint64_t map_memory_used(const MapMemory *m, MapMemoryUse use);
uint64_t map_memory_limit(const MapMemory *m);

// Look-ups so far, of all loops: those that found what they looked for, and those for which it was
// read or made.
typedef struct MapMemoryLookups {
    uint64_t n_hits, n_misses;
} MapMemoryLookups;
MapMemoryLookups map_memory_lookups(MapMemory *m, MapMemoryUse use);

// Of the slices, those that cannot be dropped because they are not on disk yet; and how many images
// have some.
void map_memory_add_dirty(MapMemory *m, int64_t bytes, int n_images);
uint64_t map_memory_dirty(const MapMemory *m);
unsigned map_memory_n_dirty_images(const MapMemory *m);
