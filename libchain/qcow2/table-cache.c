// SPDX-License-Identifier: LGPL-2.1-or-later
// Chained hash for look-up, a circular list with a hand for eviction. A hit costs one hash, one
// compare and one store (the referenced mark); nothing moves in a list. On the loop.

#include "qcow2/table-cache.h"

#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <stdlib.h>

#include "loop/loop-slot.h"

enum { MIN_BUCKETS = 256, SLICE_OVERHEAD = sizeof(TableSlice) + 32 };

struct TableCache {
    Loop *loop;
    MapMemory *memory;
    unsigned n_refs;
    TableSlice **buckets;
    uint64_t mask;
    uint64_t n_slices;
    TableSlice *hand;
};

static const char slot_key[] = "qcow2 table cache";

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
        *slot = cache;
    }
    cache->n_refs++;
    return cache;
}

void table_cache_unref(TableCache *cache)
{
    if (!cache || --cache->n_refs)
        return;
    assert(cache->n_slices == 0);
    *loop_slot(cache->loop, slot_key) = NULL;
    g_free(cache->buckets);
    g_free(cache);
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
    s->referenced = true;
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

static void unlink_and_free(TableCache *cache, TableSlice *s)
{
    assert(!s->n_holders && !s->dirty && fiber_queue_is_empty(&s->loaders));
    TableSlice **p = &cache->buckets[bucket_of(cache, s->image, s->host)];
    while (*p != s)
        p = &(*p)->hash_next;
    *p = s->hash_next;
    if (cache->hand == s)
        cache->hand = s->ring_next == s ? NULL : s->ring_next;
    s->ring_prev->ring_next = s->ring_next;
    s->ring_next->ring_prev = s->ring_prev;
    cache->n_slices--;
    map_memory_add(cache->memory, MAP_MEMORY_SLICES, -(int64_t)(s->bytes + SLICE_OVERHEAD));
    free(s->data);
    g_free(s);
}

// Gives back what exceeds the share, as far as clean slices without holders allow. The hand goes
// round at most twice: once to clear marks, once to take.
static void evict(TableCache *cache)
{
    uint64_t excess = map_memory_excess(cache->memory, MAP_MEMORY_SLICES);
    for (uint64_t steps = cache->n_slices * 2; excess && steps && cache->hand; steps--) {
        TableSlice *s = cache->hand;
        cache->hand = s->ring_next;
        if (s->n_holders || s->dirty || s->loading)
            continue;
        if (s->referenced) {
            s->referenced = false;
            continue;
        }
        uint64_t gain = s->bytes + SLICE_OVERHEAD;
        unlink_and_free(cache, s);
        excess = excess > gain ? excess - gain : 0;
    }
}

// Adds an empty slice in state loading, held once.
static TableSlice *add(TableCache *cache, const Qcow2Image *image, HostOff host,
                       TableSliceKind kind, uint32_t bytes)
{
    evict(cache);
    TableSlice *s = g_try_new0(TableSlice, 1);
    if (!s)
        return NULL;
    // Aligned for direct I/O on devices with 512-byte blocks.
    s->data = aligned_alloc(512, bytes);
    if (!s->data) {
        g_free(s);
        return NULL;
    }
    s->image = image;
    s->host = host;
    s->kind = kind;
    s->bytes = bytes;
    s->loading = true;
    s->n_holders = 1;
    uint64_t b = bucket_of(cache, image, host);
    s->hash_next = cache->buckets[b];
    cache->buckets[b] = s;
    if (cache->hand) {
        s->ring_next = cache->hand;
        s->ring_prev = cache->hand->ring_prev;
        s->ring_prev->ring_next = s->ring_next->ring_prev = s;
    } else {
        cache->hand = s->ring_next = s->ring_prev = s;
    }
    map_memory_add(cache->memory, MAP_MEMORY_SLICES, bytes + SLICE_OVERHEAD);
    if (++cache->n_slices > cache->mask)
        rehash(cache);
    return s;
}

int table_cache_get(Fiber *self, TableCache *cache, const Qcow2Image *image, File *file,
                    HostOff host, TableSliceKind kind, uint32_t bytes, TableSlice **ret_slice)
{
    for (;;) {
        TableSlice *s = look_up(cache, image, host);
        if (s && !s->loading) {
            // A slice of another kind at this place: two tables claim one cluster.
            if (s->kind != kind || s->bytes != bytes)
                return -EUCLEAN;
            s->n_holders++;
            s->referenced = true;
            *ret_slice = s;
            return 0;
        }
        if (s) {
            fiber_queue_wait(self, &s->loaders, false, "slice being loaded");
            continue; // it may have failed and be gone
        }
        s = add(cache, image, host, kind, bytes);
        if (!s)
            return -ENOMEM;
        int r = file_read(self, file, host, s->data, bytes);
        s->loading = false;
        fiber_queue_wake_all(&s->loaders);
        if (r < 0) {
            s->n_holders--;
            unlink_and_free(cache, s);
            return r;
        }
        s->referenced = true;
        *ret_slice = s;
        return 0;
    }
}

void table_slice_set_dirty(TableSlice *s, TableSliceList *list)
{
    if (s->dirty)
        return;
    s->dirty = true;
    s->dirty_prev = NULL;
    s->dirty_next = list->first;
    if (list->first)
        list->first->dirty_prev = s;
    list->first = s;
    list->n++;
}

void table_slice_set_clean(TableSlice *s, TableSliceList *list)
{
    if (!s->dirty)
        return;
    s->dirty = false;
    if (s->dirty_prev)
        s->dirty_prev->dirty_next = s->dirty_next;
    else
        list->first = s->dirty_next;
    if (s->dirty_next)
        s->dirty_next->dirty_prev = s->dirty_prev;
    s->dirty_prev = s->dirty_next = NULL;
    list->n--;
}

bool table_cache_forget(TableCache *cache, const Qcow2Image *image, HostOff host, uint64_t bytes,
                        uint32_t slice_bytes, TableSliceList *dirty)
{
    for (uint64_t o = 0; o < bytes; o += slice_bytes) {
        TableSlice *s = look_up(cache, image, host_off(host.v + o));
        if (!s)
            continue;
        if (s->loading || s->n_holders)
            return false;
        table_slice_set_clean(s, dirty);
        unlink_and_free(cache, s);
    }
    return true;
}

void table_cache_forget_image(TableCache *cache, const Qcow2Image *image, TableSliceList *dirty)
{
    for (uint64_t b = 0; b <= cache->mask; b++) {
        for (TableSlice *s = cache->buckets[b], *next; s; s = next) {
            next = s->hash_next;
            if (s->image != image)
                continue;
            table_slice_set_clean(s, dirty);
            unlink_and_free(cache, s);
        }
    }
}
