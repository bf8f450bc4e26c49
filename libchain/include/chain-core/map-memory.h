// SPDX-License-Identifier: LGPL-2.1-or-later
// The bound on memory for metadata (--map-memory): cached slices of qcow2 tables (per loop) and
// regions of merged chain maps (shared by all loops). One per process (or per simulation); any
// thread.
#pragma once

#include <stdint.h>

typedef struct MapMemory MapMemory;

MapMemory *map_memory_new(uint64_t limit_bytes);
void map_memory_free(MapMemory *m);
// Charges or gives back; the caches keep themselves inside their share and evict their own.
typedef enum MapMemoryUse { MAP_MEMORY_SLICES, MAP_MEMORY_REGIONS, MAP_MEMORY_N_USES } MapMemoryUse;
void map_memory_add(MapMemory *m, MapMemoryUse use, int64_t bytes);
// Bytes that this use should give back now (0 when inside its share). Regions may use half of the
// limit; slices what regions do not use, and never less than half.
uint64_t map_memory_excess(const MapMemory *m, MapMemoryUse use);
uint64_t map_memory_used(const MapMemory *m, MapMemoryUse use);
uint64_t map_memory_limit(const MapMemory *m);
