// SPDX-License-Identifier: LGPL-2.1-or-later
// Buffers that are kept are a list through their first bytes. All are of one size, so any will do;
// what is not touched of one takes no memory.
#include "chain-core/io-buffers.h"

#include <stdlib.h>

#include <glib.h>

#include "loop/loop-slot.h"

enum { ALIGNMENT = 4096 };

typedef struct FreeBuffer FreeBuffer;
struct FreeBuffer {
    FreeBuffer *next;
};

// There while the buffers of a loop are held.
typedef struct IoBuffers {
    unsigned n_holders;
    FreeBuffer *free;
} IoBuffers;

static const char slot_key[] = "buffers";

static IoBuffers **buffers_of(Loop *loop)
{
    return (IoBuffers **)loop_slot(loop, slot_key);
}

void io_buffers_hold(Loop *loop)
{
    IoBuffers **slot = buffers_of(loop);
    if (!*slot)
        *slot = g_new0(IoBuffers, 1);
    (*slot)->n_holders++;
}

void io_buffers_release(Loop *loop)
{
    IoBuffers **slot = buffers_of(loop), *b = *slot;
    if (--b->n_holders)
        return;
    *slot = NULL;
    while (b->free) {
        FreeBuffer *first = b->free;
        b->free = first->next;
        free(first);
    }
    g_free(b);
}

void *io_buffer_take(Loop *loop, size_t len)
{
    IoBuffers *b = *buffers_of(loop);
    if (b && b->free && len <= IO_BUFFER_BYTES) {
        FreeBuffer *first = b->free;
        b->free = first->next;
        return first;
    }
    size_t bytes = MAX(len, IO_BUFFER_BYTES);
    return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

void io_buffer_put(Loop *loop, void *buffer, size_t len)
{
    IoBuffers *b = *buffers_of(loop);
    if (!buffer || !b || len > IO_BUFFER_BYTES) {
        free(buffer);
        return;
    }
    FreeBuffer *first = buffer;
    first->next = b->free;
    b->free = first;
}
