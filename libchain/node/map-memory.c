// SPDX-License-Identifier: LGPL-2.1-or-later
// Accounts of the memory for metadata. Any thread; the counters are relaxed, because each cache
// acts on its own account and a stale sum only shifts an eviction by one entry. Nothing here is
// touched when a cache has what it looks for.
#include "chain-core/map-memory.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "node/memory-user.h"

struct MapMemory {
    uint64_t limit_bytes;
    _Atomic int64_t used_bytes[MAP_MEMORY_N_USES];
    _Atomic int64_t dirty_bytes;
    atomic_int n_dirty_images;
    pthread_mutex_t mutex; // of what follows
    void *slot;
    void (*slot_free)(void *);
    GPtrArray *users[MAP_MEMORY_N_USES];      // MemoryUser
    MapMemoryLookups left[MAP_MEMORY_N_USES]; // of users that have left
    atomic_uint n_users[MAP_MEMORY_N_USES];
    guint next_asked;
};

MapMemory *map_memory_new(uint64_t limit_bytes)
{
    MapMemory *m = g_new0(MapMemory, 1);
    m->limit_bytes = limit_bytes;
    pthread_mutex_init(&m->mutex, NULL);
    for (int use = 0; use < MAP_MEMORY_N_USES; use++)
        m->users[use] = g_ptr_array_new();
    return m;
}

void map_memory_free(MapMemory *m)
{
    if (!m)
        return;
    if (m->slot)
        m->slot_free(m->slot);
    for (int use = 0; use < MAP_MEMORY_N_USES; use++)
        g_ptr_array_unref(m->users[use]);
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

// -- accounts -------------------------------------------------------------------------------------

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

static uint64_t share_of(const MapMemory *m, MapMemoryUse use)
{
    uint64_t share = m->limit_bytes / 2;
    if (use == MAP_MEMORY_SLICES) {
        uint64_t regions = map_memory_used(m, MAP_MEMORY_REGIONS);
        share = MAX(share, m->limit_bytes - MIN(regions, m->limit_bytes));
    }
    return share;
}

uint64_t map_memory_excess(const MapMemory *m, MapMemoryUse use)
{
    uint64_t used = map_memory_used(m, use), share = share_of(m, use);
    return used > share ? used - share : 0;
}

bool map_memory_is_short(const MapMemory *m, MapMemoryUse use)
{
    return map_memory_used(m, use) + m->limit_bytes / 16 > share_of(m, use);
}

void map_memory_add_dirty(MapMemory *m, int64_t bytes, int n_images)
{
    atomic_fetch_add_explicit(&m->dirty_bytes, bytes, memory_order_relaxed);
    if (n_images)
        atomic_fetch_add_explicit(&m->n_dirty_images, n_images, memory_order_relaxed);
}

uint64_t map_memory_dirty(const MapMemory *m)
{
    int64_t dirty = atomic_load_explicit(&m->dirty_bytes, memory_order_relaxed);
    return dirty > 0 ? (uint64_t)dirty : 0;
}

unsigned map_memory_n_dirty_images(const MapMemory *m)
{
    int n = atomic_load_explicit(&m->n_dirty_images, memory_order_relaxed);
    return n > 0 ? (unsigned)n : 0;
}

// -- users ----------------------------------------------------------------------------------------

static void answer(LoopCall *call)
{
    MemoryUser *user = (MemoryUser *)((char *)call - offsetof(MemoryUser, call));
    user->give_back(user);
    atomic_store(&user->is_asked, false);
    if (user->closing)
        fiber_wake(user->closing);
}

static void add_lookups(MapMemoryLookups *lookups, MemoryUser *user)
{
    lookups->n_hits += atomic_load_explicit(&user->n_hits, memory_order_relaxed);
    lookups->n_misses += atomic_load_explicit(&user->n_misses, memory_order_relaxed);
}

MapMemoryLookups map_memory_lookups(MapMemory *m, MapMemoryUse use)
{
    pthread_mutex_lock(&m->mutex);
    MapMemoryLookups lookups = m->left[use];
    for (guint i = 0; i < m->users[use]->len; i++)
        add_lookups(&lookups, m->users[use]->pdata[i]);
    pthread_mutex_unlock(&m->mutex);
    return lookups;
}

void memory_user_join(MemoryUser *user, Loop *loop, MapMemory *memory)
{
    user->loop = loop;
    user->closing = NULL;
    user->memory = memory;
    user->call.fn = answer;
    pthread_mutex_lock(&memory->mutex);
    g_ptr_array_add(memory->users[user->use], user);
    atomic_store(&memory->n_users[user->use], memory->users[user->use]->len);
    pthread_mutex_unlock(&memory->mutex);
}

void memory_user_leave(Fiber *self, MemoryUser *user)
{
    MapMemory *m = user->memory;
    pthread_mutex_lock(&m->mutex);
    g_ptr_array_remove_fast(m->users[user->use], user);
    atomic_store(&m->n_users[user->use], m->users[user->use]->len);
    add_lookups(&m->left[user->use], user);
    pthread_mutex_unlock(&m->mutex);
    user->n_hits = user->n_misses = 0;
    user->closing = self;
    while (atomic_load(&user->is_asked))
        fiber_suspend(self, "memory: a message that is on its way");
}

void memory_user_ask_others(MemoryUser *user)
{
    enum { ASKED_AT_ONCE = 16 };
    MapMemory *m = user->memory;
    if (memory_user_count(user) < 2)
        return;
    pthread_mutex_lock(&m->mutex);
    GPtrArray *users = m->users[user->use];
    for (guint i = 0; i < MIN(users->len, ASKED_AT_ONCE); i++) {
        MemoryUser *other = users->pdata[m->next_asked++ % users->len];
        if (other != user && !atomic_exchange(&other->is_asked, true))
            loop_post(other->loop, &other->call);
    }
    pthread_mutex_unlock(&m->mutex);
}

unsigned memory_user_count(const MemoryUser *user)
{
    return MAX(atomic_load_explicit(&user->memory->n_users[user->use], memory_order_relaxed), 1);
}
