// SPDX-License-Identifier: LGPL-2.1-or-later
// A handful of entries, found by a linear look, replaced least recently used first. Inflating is
// CPU work of tens of microseconds and more, so it goes to a worker. On the image's loop;
// inflate_work() on a worker.

#include "qcow2/inflated-cache.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "format/qcow2-compression.h"
#include "qcow2/image.h"

enum {
    N_ENTRIES = 16,
    MAX_BYTES = 4 << 20, // of inflated data per image: fewer entries for large clusters
};

typedef struct Entry {
    HostOff host;
    uint8_t *data; // one cluster; NULL: entry unused
    bool loading;
    uint32_t n_users;
    uint64_t last_use;
    FiberQueue waiters;
} Entry;

struct InflatedCache {
    Qcow2Image *image;
    unsigned n_entries;
    uint64_t clock;
    Entry entries[N_ENTRIES];
    FiberQueue full; // waiting for an entry without users
};

InflatedCache *inflated_cache_new(Qcow2Image *image)
{
    InflatedCache *cache = g_new0(InflatedCache, 1);
    cache->image = image;
    cache->n_entries = CLAMP(MAX_BYTES / image->geometry.cluster_bytes, 2, N_ENTRIES);
    return cache;
}

static void drop(Entry *e)
{
    assert(!e->n_users);
    g_clear_pointer(&e->data, g_free);
}

void inflated_cache_free(InflatedCache *cache)
{
    if (!cache)
        return;
    for (unsigned i = 0; i < cache->n_entries; i++)
        drop(&cache->entries[i]);
    g_free(cache);
}

typedef struct InflateJob {
    Qcow2Compression type;
    const uint8_t *in;
    size_t n_in;
    uint8_t *out;
    size_t n_out;
} InflateJob;

static int inflate_work(void *arg)
{
    const InflateJob *job = arg;
    return qcow2_inflate(job->type, job->in, job->n_in, job->out, job->n_out);
}

// Fills an entry that is marked loading.
static int load(Fiber *self, InflatedCache *cache, Entry *e, uint32_t compressed_bytes)
{
    Qcow2Image *image = cache->image;
    g_autofree uint8_t *in = g_try_malloc(compressed_bytes);
    if (!in)
        return -ENOMEM;
    int r = image_see_end(self, image, image->file, e->host.v + compressed_bytes);
    if (r < 0)
        return r;
    if (e->host.v >= file_size(image->file))
        return image_mark_cut_off(image, e->host, 1, "a compressed cluster lies");
    file_debug_event(image->file, DEBUG_READ_COMPRESSED);
    r = file_read(self, image->file, e->host, in, compressed_bytes);
    if (r < 0)
        return r;
    InflateJob job = {image->header.compression, in, compressed_bytes, e->data,
                      image->geometry.cluster_bytes};
    r = loop_work(self, inflate_work, &job);
    if (r < 0)
        file_tell(image->file, FILE_EVENT_DECODE_FAILED, e->host.v, r);
    return r;
}

static Entry *find(InflatedCache *cache, HostOff host)
{
    for (unsigned i = 0; i < cache->n_entries; i++)
        if (cache->entries[i].data && cache->entries[i].host.v == host.v)
            return &cache->entries[i];
    return NULL;
}

static Entry *find_idle(InflatedCache *cache)
{
    Entry *oldest = NULL;
    for (unsigned i = 0; i < cache->n_entries; i++) {
        Entry *e = &cache->entries[i];
        if (!e->n_users &&
            (!oldest || !e->data || (oldest->data && e->last_use < oldest->last_use)))
            oldest = e;
    }
    return oldest;
}

static void put(InflatedCache *cache, Entry *e)
{
    // All of them: one that finds its cluster present meanwhile needs no entry, and would keep the
    // only wake-up to itself.
    if (--e->n_users == 0)
        fiber_queue_wake_all(&cache->full);
}

int inflated_cache_read(Fiber *self, InflatedCache *cache, const CompressedPart *part, void *buf,
                        size_t len)
{
    for (;;) {
        Entry *e = find(cache, part->host);
        if (e && e->loading) {
            e->n_users++;
            while (e->loading)
                fiber_queue_wait(self, &e->waiters, false, "cluster being inflated");
            put(cache, e);
            continue; // it may have failed and be gone
        }
        if (e) {
            e->last_use = ++cache->clock;
            memcpy(buf, e->data + part->in_cluster, len);
            return 0;
        }
        e = find_idle(cache);
        if (!e) {
            fiber_queue_wait(self, &cache->full, false, "inflated cluster cache");
            continue;
        }
        if (!e->data)
            e->data = g_try_malloc(cache->image->geometry.cluster_bytes);
        if (!e->data)
            return -ENOMEM;
        e->host = part->host;
        e->loading = true;
        e->n_users = 1;
        int r = load(self, cache, e, part->compressed_bytes);
        e->loading = false;
        e->last_use = ++cache->clock;
        fiber_queue_wake_all(&e->waiters);
        if (r == 0)
            memcpy(buf, e->data + part->in_cluster, len);
        else
            e->host = host_off(UINT64_MAX); // waiters look again, find nothing and try themselves
        put(cache, e);
        return r;
    }
}

void inflated_cache_forget(InflatedCache *cache, HostOff host, uint64_t bytes)
{
    for (unsigned i = 0; cache && i < cache->n_entries; i++) {
        Entry *e = &cache->entries[i];
        if (e->data && e->host.v - host.v < bytes)
            e->host = host_off(UINT64_MAX);
    }
}
