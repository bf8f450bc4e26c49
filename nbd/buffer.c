// SPDX-License-Identifier: LGPL-2.1-or-later
// Free lists of buffers, one per size class, last in first out so that what is taken is warm. What
// the lists keep is bounded; above that buffers go back to malloc. On the pool's loop.
#include "buffer.h"

#include <assert.h>
#include <stdlib.h>

// A few connections' worth of work in flight: four streams of eight 256 KiB requests each.
static const uint64_t MAX_KEPT_BYTES = 16 << 20;

_Static_assert(sizeof(NbdsBuffer) + NBDS_BUFFER_HEADROOM <= NBDS_BUFFER_BYTES_OFFSET,
               "headroom must fit in front of the bytes");

static uint32_t class_capacity(uint32_t size_class)
{
    return size_class ? 4096u << (size_class - 1) : 0;
}

static uint32_t class_of(size_t capacity)
{
    if (!capacity)
        return 0;
    uint32_t size_class = 1;
    while (size_class < NBDS_BUFFER_N_CLASSES && class_capacity(size_class) < capacity)
        size_class++;
    assert(size_class < NBDS_BUFFER_N_CLASSES);
    return size_class;
}

static size_t allocation_bytes(uint32_t size_class)
{
    size_t n = NBDS_BUFFER_BYTES_OFFSET + class_capacity(size_class) + NBDS_BUFFER_SLACK;
    return (n + 511) & ~(size_t)511; // aligned_alloc() wants a multiple
}

void nbds_buffer_pool_done(NbdsBufferPool *pool)
{
    assert(!pool->taken_bytes);
    for (unsigned i = 0; i < NBDS_BUFFER_N_CLASSES; i++) {
        while (pool->free[i]) {
            NbdsBuffer *buffer = pool->free[i];
            pool->free[i] = buffer->next;
            free(buffer);
        }
    }
    pool->kept_bytes = 0;
}

NbdsBuffer *nbds_buffer_take(NbdsBufferPool *pool, size_t capacity)
{
    uint32_t size_class = class_of(capacity);
    size_t bytes = allocation_bytes(size_class);
    NbdsBuffer *buffer = pool->free[size_class];
    if (buffer) {
        pool->free[size_class] = buffer->next;
        pool->kept_bytes -= bytes;
    } else {
        buffer = aligned_alloc(512, bytes);
        if (!buffer)
            return NULL;
        buffer->pool = pool;
        buffer->size_class = size_class;
        buffer->capacity = class_capacity(size_class);
    }
    pool->taken_bytes += bytes;
    buffer->next = NULL;
    buffer->n_refs = 1;
    buffer->start = nbds_buffer_bytes(buffer);
    buffer->length = 0;
    buffer->ends_request = false;
    return buffer;
}

void nbds_buffer_free(NbdsBuffer *buffer)
{
    NbdsBufferPool *pool = buffer->pool;
    size_t bytes = allocation_bytes(buffer->size_class);
    pool->taken_bytes -= bytes;
    if (pool->kept_bytes + bytes > MAX_KEPT_BYTES) {
        free(buffer);
        return;
    }
    buffer->next = pool->free[buffer->size_class];
    pool->free[buffer->size_class] = buffer;
    pool->kept_bytes += bytes;
}
