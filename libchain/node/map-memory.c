// SPDX-License-Identifier: LGPL-2.1-or-later
// Accounts of the memory for metadata: two counters and a limit. Any thread; relaxed, because each
// cache acts on its own account and a stale sum only shifts an eviction by one entry.
#include "chain-core/map-memory.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "node/map-memory-slot.h"

struct MapMemory {
    uint64_t limit_bytes;
    _Atomic int64_t used_bytes[MAP_MEMORY_N_USES];
    pthread_mutex_t mutex; // of the slot
    void *slot;
    void (*slot_free)(void *);
};

MapMemory *map_memory_new(uint64_t limit_bytes)
{
    MapMemory *m = g_new0(MapMemory, 1);
    m->limit_bytes = limit_bytes;
    pthread_mutex_init(&m->mutex, NULL);
    return m;
}

void map_memory_free(MapMemory *m)
{
    if (!m)
        return;
    if (m->slot)
        m->slot_free(m->slot);
    pthread_mutex_destroy(&m->mutex);
    g_free(m);
}

void *map_memory_slot(MapMemory *m, void *(*make)(void), void (*free)(void *))
{
    pthread_mutex_lock(&m->mutex);
    if (!m->slot) {
        m->slot = make();
        m->slot_free = free;
    }
    void *slot = m->slot;
    pthread_mutex_unlock(&m->mutex);
    return slot;
}

void map_memory_add(MapMemory *m, MapMemoryUse use, int64_t bytes)
{
    atomic_fetch_add_explicit(&m->used_bytes[use], bytes, memory_order_relaxed);
}

uint64_t map_memory_used(const MapMemory *m, MapMemoryUse use)
{
    int64_t used = atomic_load_explicit(&m->used_bytes[use], memory_order_relaxed);
    return used > 0 ? (uint64_t)used : 0;
}

uint64_t map_memory_limit(const MapMemory *m)
{
    return m->limit_bytes;
}

uint64_t map_memory_excess(const MapMemory *m, MapMemoryUse use)
{
    uint64_t share = m->limit_bytes / 2;
    if (use == MAP_MEMORY_SLICES) {
        uint64_t regions = map_memory_used(m, MAP_MEMORY_REGIONS);
        share = MAX(share, m->limit_bytes - MIN(regions, m->limit_bytes));
    }
    uint64_t used = map_memory_used(m, use);
    return used > share ? used - share : 0;
}
