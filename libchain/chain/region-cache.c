// SPDX-License-Identifier: LGPL-2.1-or-later
// Two levels of locking, always taken in this order: the cache's mutex (which sets there are), a
// set's mutex (its regions). A region leaves its set when its last reference goes; that, and
// finding it, happen under the set's mutex, so that a found region is never one that is being
// freed. A set lives as long as a chain or a region points to it. Any thread; nothing here
// suspends.
#include "chain/region-cache.h"

#include <pthread.h>
#include <string.h>

#include "node/memory-user.h"

struct RegionCache {
    pthread_mutex_t mutex;
    GHashTable *sets; // RegionSet → itself, by its layers
};

struct RegionSet {
    RegionCache *cache;
    unsigned n_refs; // chains and regions; under the cache's mutex
    unsigned n_layers;
    NodeIdentity *layers;
    pthread_mutex_t mutex;
    GHashTable *regions; // &Region.number → Region, not referenced
};

static guint set_hash(gconstpointer key)
{
    const RegionSet *set = key;
    uint64_t h = set->n_layers;
    for (unsigned i = 0; i < set->n_layers; i++) {
        const NodeIdentity *id = &set->layers[i];
        h = (h ^ id->file[0] ^ id->file[1] * 31 ^ id->view * 131) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 29;
    }
    return (guint)(h >> 16);
}

static gboolean set_equal(gconstpointer a, gconstpointer b)
{
    const RegionSet *x = a, *y = b;
    return x->n_layers == y->n_layers &&
           memcmp(x->layers, y->layers, x->n_layers * sizeof *x->layers) == 0;
}

static void *cache_new(void)
{
    RegionCache *cache = g_new0(RegionCache, 1);
    pthread_mutex_init(&cache->mutex, NULL);
    cache->sets = g_hash_table_new(set_hash, set_equal);
    return cache;
}

static void cache_free(void *p)
{
    RegionCache *cache = p;
    g_hash_table_unref(cache->sets);
    pthread_mutex_destroy(&cache->mutex);
    g_free(cache);
}

RegionCache *region_cache_get(MapMemory *memory)
{
    return map_memory_slot(memory, cache_new, cache_free);
}

RegionSet *region_set_get(RegionCache *cache, const NodeIdentity *layers, unsigned n_layers)
{
    RegionSet wanted = {.n_layers = n_layers, .layers = (NodeIdentity *)layers};
    pthread_mutex_lock(&cache->mutex);
    RegionSet *set = g_hash_table_lookup(cache->sets, &wanted);
    if (!set) {
        set = g_new0(RegionSet, 1);
        set->cache = cache;
        set->n_layers = n_layers;
        set->layers = g_memdup2(layers, n_layers * sizeof *layers);
        pthread_mutex_init(&set->mutex, NULL);
        set->regions = g_hash_table_new(g_int64_hash, g_int64_equal);
        g_hash_table_add(cache->sets, set);
    }
    set->n_refs++;
    pthread_mutex_unlock(&cache->mutex);
    return set;
}

void region_set_unref(RegionSet *set)
{
    if (!set)
        return;
    RegionCache *cache = set->cache;
    pthread_mutex_lock(&cache->mutex);
    bool is_last = --set->n_refs == 0;
    if (is_last)
        g_hash_table_remove(cache->sets, set);
    pthread_mutex_unlock(&cache->mutex);
    if (!is_last)
        return;
    g_assert(g_hash_table_size(set->regions) == 0);
    g_hash_table_unref(set->regions);
    pthread_mutex_destroy(&set->mutex);
    g_free(set->layers);
    g_free(set);
}

Region *region_set_find(RegionSet *set, uint64_t number)
{
    pthread_mutex_lock(&set->mutex);
    Region *region = g_hash_table_lookup(set->regions, &number);
    if (region)
        atomic_fetch_add_explicit(&region->n_refs, 1, memory_order_relaxed);
    pthread_mutex_unlock(&set->mutex);
    return region;
}

Region *region_set_add(RegionSet *set, Region *region)
{
    pthread_mutex_lock(&set->mutex);
    Region *first = g_hash_table_lookup(set->regions, &region->number);
    if (first) {
        atomic_fetch_add_explicit(&first->n_refs, 1, memory_order_relaxed);
    } else {
        g_hash_table_insert(set->regions, &region->number, region);
        region->set = set;
    }
    pthread_mutex_unlock(&set->mutex);
    if (first) {
        region_free(region);
        return first;
    }
    pthread_mutex_lock(&set->cache->mutex);
    set->n_refs++;
    pthread_mutex_unlock(&set->cache->mutex);
    return region;
}

static bool unref_unless_last(Region *region)
{
    unsigned n = atomic_load_explicit(&region->n_refs, memory_order_relaxed);
    while (n > 1) {
        if (atomic_compare_exchange_weak_explicit(&region->n_refs, &n, n - 1, memory_order_release,
                                                  memory_order_relaxed))
            return true;
    }
    return false;
}

void region_unref(Region *region)
{
    if (unref_unless_last(region))
        return;
    RegionSet *set = region->set;
    if (!set) {
        region_free(region);
        return;
    }
    pthread_mutex_lock(&set->mutex);
    bool is_last = atomic_fetch_sub_explicit(&region->n_refs, 1, memory_order_acq_rel) == 1;
    if (is_last)
        g_hash_table_remove(set->regions, &region->number);
    pthread_mutex_unlock(&set->mutex);
    if (is_last) {
        region_free(region);
        region_set_unref(set);
    }
}
