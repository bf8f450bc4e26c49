// SPDX-License-Identifier: LGPL-2.1-or-later
// Chained hash for look-up; a ring of the clean slices with a hand for eviction (the clock
// algorithm). A hit costs one hash, one compare and one store (its age); nothing moves in a list,
// and nothing that another thread uses is touched.
//
// Age: the cache counts periods of a second or more; a slice remembers in which it was used last.
// The hand spares a slice of this period once. A loop that is asked for memory gives what was not
// used for a whole period, and while it has more than its part of the budget, what its hand would
// take too: so memory follows use, and a loop that is busy elsewhere cannot empty the cache of one
// with few requests.

#include "qcow2/table-cache.h"
#include "chain-core/debug-event.h"

#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <stddef.h>
#include <stdlib.h>

#include "loop/loop-slot.h"
#include "node/memory-user.h"

enum {
    MIN_BUCKETS = 256,
    SLICE_OVERHEAD = sizeof(TableSlice) + 32,
    MAX_STEPS = 64,          // of the hand for one miss, or one message
    MISSES_PER_MESSAGE = 16, // while memory is short: waking another loop costs more than a miss
    DROPS_WHEN_ASKED = 2 * MISSES_PER_MESSAGE,
    LISTS_PER_PRESS = 8,
};
#define PERIOD_NS UINT64_C(1000000000)

struct TableCache {
    MemoryUser user;
    Loop *loop;
    MapMemory *memory;
    unsigned n_refs;
    TableSlice **buckets;
    uint64_t mask;
    uint64_t n_slices, n_clean, bytes;
    TableSlice *hand;      // on the ring of clean slices; NULL: it is empty
    TableSliceList *lists; // some image on the ring of those with pinned slices
    uint64_t writing_bytes;
    uint8_t age;
    uint64_t period_start_ns;
    TableCacheStats stats;
};

static const char slot_key[] = "qcow2 table cache";

static void give_back(MemoryUser *user);

static uint64_t bucket_of(const TableCache *cache, const Qcow2Image *image, HostOff host)
{
    uint64_t h = (host.v >> 9) ^ ((uintptr_t)image >> 4);
    return (h * UINT64_C(0x9e3779b97f4a7c15) >> 24) & cache->mask;
}

TableCache *table_cache_ref(Loop *loop, MapMemory *memory)
{
    void **slot = loop_slot(loop, slot_key);
    TableCache *cache = *slot;
    if (!cache) {
        cache = g_new0(TableCache, 1);
        cache->loop = loop;
        cache->memory = memory;
        cache->mask = MIN_BUCKETS - 1;
        cache->buckets = g_new0(TableSlice *, MIN_BUCKETS);
        cache->user = (MemoryUser){.use = MAP_MEMORY_SLICES, .give_back = give_back};
        memory_user_join(&cache->user, loop, memory);
        *slot = cache;
    }
    cache->n_refs++;
    return cache;
}

void table_cache_unref(Fiber *self, TableCache *cache)
{
    if (!cache || --cache->n_refs)
        return;
    assert(cache->n_slices == 0 && !cache->lists);
    *loop_slot(cache->loop, slot_key) = NULL; // who comes while we wait makes another
    memory_user_leave(self, &cache->user);
    g_free(cache->buckets);
    g_free(cache);
}

TableCacheStats table_cache_stats(const TableCache *cache)
{
    TableCacheStats stats = cache->stats;
    stats.n_slices = cache->n_slices;
    stats.n_clean = cache->n_clean;
    return stats;
}

static TableSlice *look_up(TableCache *cache, const Qcow2Image *image, HostOff host)
{
    TableSlice *s = cache->buckets[bucket_of(cache, image, host)];
    while (s && (s->host.v != host.v || s->image != image))
        s = s->hash_next;
    return s;
}

TableSlice *table_cache_find(TableCache *cache, const Qcow2Image *image, HostOff host)
{
    TableSlice *s = look_up(cache, image, host);
    if (!s || s->loading)
        return NULL;
    s->age = cache->age;
    memory_user_hit(&cache->user);
    return s;
}

static void rehash(TableCache *cache)
{
    uint64_t old_mask = cache->mask;
    TableSlice **old = cache->buckets;
    cache->mask = old_mask * 2 + 1;
    cache->buckets = g_new0(TableSlice *, cache->mask + 1);
    for (uint64_t i = 0; i <= old_mask; i++) {
        for (TableSlice *s = old[i], *next; s; s = next) {
            next = s->hash_next;
            uint64_t b = bucket_of(cache, s->image, s->host);
            s->hash_next = cache->buckets[b];
            cache->buckets[b] = s;
        }
    }
    g_free(old);
}

static void insert(TableCache *cache, TableSlice *s)
{
    uint64_t b = bucket_of(cache, s->image, s->host);
    s->hash_next = cache->buckets[b];
    cache->buckets[b] = s;
    cache->bytes += s->bytes + SLICE_OVERHEAD;
    if (++cache->n_slices > cache->mask)
        rehash(cache);
}

// -- the ring of clean slices ---------------------------------------------------------------------

// Behind the hand: it comes there last.
static void ring_add(TableCache *cache, TableSlice *s)
{
    assert(!s->loading && !s->dirty && !s->writing);
    if (cache->hand) {
        s->next = cache->hand;
        s->prev = cache->hand->prev;
        s->prev->next = s->next->prev = s;
    } else {
        cache->hand = s->next = s->prev = s;
    }
    cache->n_clean++;
}

static void ring_remove(TableCache *cache, TableSlice *s)
{
    if (cache->hand == s)
        cache->hand = s->next == s ? NULL : s->next;
    s->prev->next = s->next;
    s->next->prev = s->prev;
    s->prev = s->next = NULL;
    cache->n_clean--;
}

// `s` is on no ring and no list.
static void unlink_and_free(TableCache *cache, TableSlice *s)
{
    assert(!s->n_holders && !s->dirty && !s->writing && fiber_queue_is_empty(&s->loaders));
    TableSlice **p = &cache->buckets[bucket_of(cache, s->image, s->host)];
    while (*p != s)
        p = &(*p)->hash_next;
    *p = s->hash_next;
    cache->n_slices--;
    cache->bytes -= s->bytes + SLICE_OVERHEAD;
    map_memory_add(cache->memory, MAP_MEMORY_SLICES, -(int64_t)(s->bytes + SLICE_OVERHEAD));
    free(s->data);
    g_free(s);
}

static void drop_clean(TableCache *cache, TableSlice *s)
{
    ring_remove(cache, s);
    unlink_and_free(cache, s);
}

static void count_period(TableCache *cache)
{
    uint64_t now_ns = loop_now_ns(cache->loop);
    if (now_ns - cache->period_start_ns < PERIOD_NS)
        return;
    cache->period_start_ns = now_ns;
    cache->age++;
}

static bool is_idle(const TableCache *cache, const TableSlice *s)
{
    return (uint8_t)(cache->age - s->age) >= 2;
}

static TableSlice *move_hand(TableCache *cache)
{
    TableSlice *s = cache->hand;
    cache->hand = s->next;
    cache->stats.n_steps++;
    return s;
}

// While the budget is far exceeded (others hold it and have not answered yet) even what is in use
// is dropped, so that the excess stays bounded.
static void make_room(TableCache *cache)
{
    uint64_t excess = map_memory_excess(cache->memory, MAP_MEMORY_SLICES);
    if (!excess)
        return;
    count_period(cache);
    if (cache->stats.n_misses % MISSES_PER_MESSAGE == 0)
        memory_user_ask_others(&cache->user);
    bool is_far = excess > map_memory_limit(cache->memory) / 16;
    unsigned step = 0;
    for (; excess && step < MAX_STEPS && cache->hand; step++) {
        TableSlice *s = move_hand(cache);
        if (s->n_holders)
            continue;
        if (s->age == cache->age && !is_far) {
            s->age--;
            continue;
        }
        uint64_t gain = s->bytes + SLICE_OVERHEAD;
        drop_clean(cache, s);
        excess = excess > gain ? excess - gain : 0;
    }
    cache->stats.most_steps = MAX(cache->stats.most_steps, step);
}

static uint64_t fair_bytes(const TableCache *cache)
{
    uint64_t limit = map_memory_limit(cache->memory);
    uint64_t regions = map_memory_used(cache->memory, MAP_MEMORY_REGIONS);
    return (limit - MIN(regions, limit / 2)) / memory_user_count(&cache->user);
}

static void press_lists(TableCache *cache);

// Gives something even if the asking loop has made room meanwhile: it did so by dropping what it
// uses, and what lies idle here should go first. One that only has too much dirty has memory
// enough.
static void give_back(MemoryUser *user)
{
    TableCache *cache = (TableCache *)((char *)user - offsetof(TableCache, user));
    count_period(cache);
    unsigned n_drops = map_memory_is_short(cache->memory, MAP_MEMORY_SLICES) ? DROPS_WHEN_ASKED : 0;
    for (unsigned step = 0; step < MAX_STEPS && n_drops && cache->hand; step++) {
        TableSlice *s = move_hand(cache);
        bool has_more = cache->bytes > fair_bytes(cache);
        if (s->n_holders || !(is_idle(cache, s) || has_more))
            continue;
        if (s->age == cache->age) {
            s->age--;
            continue;
        }
        drop_clean(cache, s);
        n_drops--;
    }
    press_lists(cache);
}

// -- loading --------------------------------------------------------------------------------------

// Adds an empty slice in state loading, held once.
static TableSlice *add(TableCache *cache, const TableSliceKey *key)
{
    memory_user_miss(&cache->user);
    cache->stats.n_misses++;
    make_room(cache);
    TableSlice *s = g_try_new0(TableSlice, 1);
    if (!s)
        return NULL;
    // Aligned for direct I/O on devices with 512-byte blocks.
    s->data = aligned_alloc(512, key->bytes);
    if (!s->data) {
        g_free(s);
        return NULL;
    }
    s->image = key->image;
    s->host = key->host;
    s->kind = key->kind;
    s->bytes = key->bytes;
    s->loading = true;
    s->n_holders = 1;
    insert(cache, s);
    map_memory_add(cache->memory, MAP_MEMORY_SLICES, key->bytes + SLICE_OVERHEAD);
    return s;
}

// `r` is what became of it. Held still, if it is there.
static void end_loading(TableCache *cache, TableSlice *s, int r)
{
    s->loading = false;
    s->age = cache->age;
    fiber_queue_wake_all(&s->loaders);
    if (r < 0) {
        s->n_holders--;
        unlink_and_free(cache, s);
    } else {
        ring_add(cache, s);
    }
}

static void announce_load(const TableSliceKey *key)
{
    file_debug_event(key->file, key->kind == TABLE_SLICE_L2 ? DEBUG_L2_LOAD : DEBUG_REFBLOCK_LOAD);
}

int table_cache_get(Fiber *self, TableCache *cache, const TableSliceKey *key,
                    TableSlice **ret_slice)
{
    for (;;) {
        TableSlice *s = look_up(cache, key->image, key->host);
        if (s && !s->loading) {
            // A slice of another kind at this place: two tables claim one cluster.
            if (s->kind != key->kind || s->bytes != key->bytes)
                return -EUCLEAN;
            s->n_holders++;
            s->age = cache->age;
            memory_user_hit(&cache->user);
            *ret_slice = s;
            return 0;
        }
        if (s) {
            fiber_queue_wait(self, &s->loaders, false, "slice being loaded");
            continue; // it may have failed and be gone
        }
        s = add(cache, key);
        if (!s)
            return -ENOMEM;
        announce_load(key);
        int r = file_read(self, key->file, key->host, s->data, key->bytes);
        end_loading(cache, s, r);
        if (r < 0)
            return r;
        *ret_slice = s;
        return 0;
    }
}

void table_fetch_begin(Fiber *self, TableFetch *fetch, TableCache *cache, const Qcow2Image *image,
                       File *file, uint32_t bytes)
{
    *fetch = (TableFetch){.cache = cache, .image = image, .file = file, .bytes = bytes};
    io_batch_init(&fetch->batch, self);
}

void table_fetch_add(TableFetch *fetch, HostOff host, TableSliceKind kind)
{
    if (look_up(fetch->cache, fetch->image, host))
        return;
    TableSliceKey key = {fetch->image, fetch->file, host, kind, fetch->bytes};
    TableSlice *s = add(fetch->cache, &key);
    if (!s)
        return;
    s->next = fetch->first;
    fetch->first = s;
    announce_load(&key);
    file_read_start(fetch->file, host, s->data, fetch->bytes, &fetch->batch);
}

void table_fetch_end(Fiber *self, TableFetch *fetch)
{
    int r = io_batch_wait(self, &fetch->batch);
    while (fetch->first) {
        TableSlice *s = fetch->first;
        fetch->first = s->next;
        s->next = NULL;
        end_loading(fetch->cache, s, r);
        if (r == 0)
            table_slice_release(s);
    }
}

// -- dirty slices ---------------------------------------------------------------------------------

static void link_list(TableCache *cache, TableSliceList *list)
{
    if (cache->lists) {
        list->next = cache->lists;
        list->prev = cache->lists->prev;
        list->prev->next = list->next->prev = list;
    } else {
        cache->lists = list->next = list->prev = list;
    }
}

static void unlink_list(TableCache *cache, TableSliceList *list)
{
    if (cache->lists == list)
        cache->lists = list->next == list ? NULL : list->next;
    list->prev->next = list->next;
    list->next->prev = list->prev;
    list->prev = list->next = NULL;
}

// A slice is dirty or writing from now on, or no longer.
static void pin(TableSliceList *list, const TableSlice *s)
{
    int n_images = list->pinned_bytes == 0;
    if (n_images)
        link_list(list->cache, list);
    list->pinned_bytes += s->bytes;
    map_memory_add_dirty(list->cache->memory, s->bytes, n_images);
}

static void unpin(TableSliceList *list, const TableSlice *s)
{
    list->pinned_bytes -= s->bytes;
    int n_images = list->pinned_bytes == 0;
    if (n_images)
        unlink_list(list->cache, list);
    map_memory_add_dirty(list->cache->memory, -(int64_t)s->bytes, -n_images);
}

static void dirty_add(TableSliceList *list, TableSlice *s)
{
    s->dirty = true;
    s->prev = NULL;
    s->next = list->first;
    if (list->first)
        list->first->prev = s;
    list->first = s;
    list->n++;
}

static void dirty_remove(TableSliceList *list, TableSlice *s)
{
    s->dirty = false;
    if (s->prev)
        s->prev->next = s->next;
    else
        list->first = s->next;
    if (s->next)
        s->next->prev = s->prev;
    s->prev = s->next = NULL;
    list->n--;
}

void table_slice_set_dirty(TableSlice *s, TableSliceList *list)
{
    if (s->dirty)
        return;
    if (!s->writing) {
        ring_remove(list->cache, s);
        pin(list, s);
    }
    dirty_add(list, s);
}

void table_slice_begin_write(TableSlice *s, TableSliceList *list)
{
    assert(s->dirty && !s->writing);
    dirty_remove(list, s);
    s->writing = true;
    list->cache->writing_bytes += s->bytes;
    map_memory_add(list->cache->memory, MAP_MEMORY_SLICES, s->bytes);
}

void table_slice_end_write(TableSlice *s, TableSliceList *list, bool durable)
{
    assert(s->writing);
    s->writing = false;
    s->is_unwritable &= !durable;
    list->cache->writing_bytes -= s->bytes;
    map_memory_add(list->cache->memory, MAP_MEMORY_SLICES, -(int64_t)s->bytes);
    if (s->dirty)
        return;
    if (durable) {
        unpin(list, s);
        ring_add(list->cache, s);
    } else {
        dirty_add(list, s);
    }
}

// A quarter of the budget: what is clean, and serves all reads, keeps at least as much.
uint64_t table_cache_dirty_limit(const TableCache *cache)
{
    return map_memory_limit(cache->memory) / 4;
}

uint64_t table_cache_dirty_share(const TableCache *cache)
{
    return table_cache_dirty_limit(cache) / MAX(map_memory_n_dirty_images(cache->memory), 1);
}

static void press_lists(TableCache *cache)
{
    if (map_memory_dirty(cache->memory) < table_cache_dirty_limit(cache) / 2)
        return;
    uint64_t share = table_cache_dirty_share(cache);
    for (unsigned i = 0; i < LISTS_PER_PRESS && cache->lists; i++) {
        TableSliceList *list = cache->lists;
        cache->lists = list->next;
        if (list->pinned_bytes >= share / 2)
            list->start_write(list);
    }
}

void table_cache_press(TableCache *cache)
{
    press_lists(cache);
    if (!cache->writing_bytes)
        memory_user_ask_others(&cache->user);
}

// -- forgetting -----------------------------------------------------------------------------------

static void forget(TableCache *cache, TableSlice *s, TableSliceList *list)
{
    if (s->dirty) {
        dirty_remove(list, s);
        unpin(list, s);
    } else {
        ring_remove(cache, s);
    }
    unlink_and_free(cache, s);
}

bool table_cache_forget(TableCache *cache, const Qcow2Image *image, HostOff host, uint64_t bytes,
                        uint32_t slice_bytes, TableSliceList *dirty)
{
    for (uint64_t o = 0; o < bytes; o += slice_bytes) {
        TableSlice *s = look_up(cache, image, host_off(host.v + o));
        if (!s)
            continue;
        if (s->loading || s->writing || s->n_holders)
            return false;
        forget(cache, s, dirty);
    }
    return true;
}

void table_cache_forget_image(TableCache *cache, const Qcow2Image *image, TableSliceList *dirty)
{
    for (uint64_t b = 0; b <= cache->mask; b++) {
        for (TableSlice *s = cache->buckets[b], *next; s; s = next) {
            next = s->hash_next;
            if (s->image == image)
                forget(cache, s, dirty);
        }
    }
}

// -- moving ---------------------------------------------------------------------------------------

TableSlice *table_cache_take_image(TableCache *cache, const Qcow2Image *image,
                                   TableSliceList *dirty)
{
    TableSlice *taken = NULL;
    for (uint64_t b = 0; b <= cache->mask; b++) {
        for (TableSlice **at = &cache->buckets[b], *s; (s = *at);) {
            if (s->image != image) {
                at = &s->hash_next;
                continue;
            }
            assert(!s->loading && !s->writing && !s->n_holders);
            if (!s->dirty)
                ring_remove(cache, s);
            *at = s->hash_next;
            s->hash_next = taken;
            taken = s;
            cache->n_slices--;
            cache->bytes -= s->bytes + SLICE_OVERHEAD;
        }
    }
    if (dirty->pinned_bytes)
        unlink_list(cache, dirty);
    dirty->cache = NULL;
    return taken;
}

void table_cache_put_image(TableCache *cache, TableSlice *slices, TableSliceList *dirty)
{
    dirty->cache = cache;
    if (dirty->pinned_bytes)
        link_list(cache, dirty);
    for (TableSlice *s = slices, *next; s; s = next) {
        next = s->hash_next;
        s->age = cache->age;
        insert(cache, s);
        if (!s->dirty)
            ring_add(cache, s);
    }
}
