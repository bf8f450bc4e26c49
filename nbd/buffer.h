// SPDX-License-Identifier: LGPL-2.1-or-later
// Buffers for what comes from and goes to clients: counted references, sizes in classes, kept in
// free lists of one loop so that the data path does not allocate. On that loop.
//
//     NbdsBuffer | … headroom … | bytes: capacity + slack
//     ^ 512-byte aligned        ^ 512: a header can be written in front of aligned data
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "admission.h"

typedef struct NbdsBuffer NbdsBuffer;
typedef struct NbdsBufferPool NbdsBufferPool;

enum {
    NBDS_BUFFER_HEADROOM = 64, // bytes in front of nbds_buffer_bytes() for headers
    NBDS_BUFFER_SLACK = 64,    // bytes behind the capacity (the next request's header)
    NBDS_BUFFER_BYTES_OFFSET = 512,
    NBDS_BUFFER_N_CLASSES = 16, // 0, 4 KiB, 8 KiB … 64 MiB
};

struct NbdsBuffer {
    NbdsBuffer *next; // free list, or the owner's queue
    NbdsBufferPool *pool;
    uint32_t n_refs;
    uint32_t size_class;
    uint32_t capacity;
    uint32_t length; // a reply: bytes to send, header included
    uint8_t *start;  // a reply: first byte to send
    // What sending this reply gives back, if it is its request's last.
    NbdsCharge charge;
    bool ends_request;
};

struct NbdsBufferPool {
    NbdsBuffer *free[NBDS_BUFFER_N_CLASSES];
    uint64_t kept_bytes;  // in the free lists
    uint64_t taken_bytes; // out of them
};

void nbds_buffer_pool_done(NbdsBufferPool *pool); // nothing may be taken

// A buffer of at least `capacity` (≤ 64 MiB) bytes with one reference, contents undefined, or NULL
// when memory is out.
NbdsBuffer *nbds_buffer_take(NbdsBufferPool *pool, size_t capacity);
void nbds_buffer_free(NbdsBuffer *buffer);

static inline uint8_t *nbds_buffer_bytes(NbdsBuffer *buffer)
{
    return (uint8_t *)buffer + NBDS_BUFFER_BYTES_OFFSET;
}
static inline NbdsBuffer *nbds_buffer_ref(NbdsBuffer *buffer)
{
    buffer->n_refs++;
    return buffer;
}
static inline void nbds_buffer_unref(NbdsBuffer *buffer) // accepts NULL
{
    if (buffer && --buffer->n_refs == 0)
        nbds_buffer_free(buffer);
}
