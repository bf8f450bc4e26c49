// SPDX-License-Identifier: LGPL-2.1-or-later
// What is kept are lists through the buffers' first bytes, one for each size of clusters. As many
// of a size as the requests of one turn use as a rule; what more are in use are freed after it.
#include "qcow2/cow-buffers.h"

#include <assert.h>
#include <stdlib.h>

#include <glib.h>

#include "format/qcow2-header.h"
#include "loop/loop-slot.h"

enum { KEPT_OF_A_SIZE = 8, ALIGNMENT = 4096 };

typedef struct FreeBuffer FreeBuffer;
struct FreeBuffer {
    FreeBuffer *next;
};

typedef struct Kept {
    FreeBuffer *first;
    unsigned n;
} Kept;

struct CowBuffers {
    Loop *loop;
    unsigned n_refs;
    Kept kept[QCOW2_MAX_CLUSTER_BITS + 1]; // by the length's power of two
};

static const char slot_key[] = "qcow2: buffers for copy-on-write";

CowBuffers *cow_buffers_ref(Loop *loop)
{
    void **slot = loop_slot(loop, slot_key);
    CowBuffers *buffers = *slot;
    if (!buffers) {
        buffers = *slot = g_new0(CowBuffers, 1);
        buffers->loop = loop;
    }
    buffers->n_refs++;
    return buffers;
}

void cow_buffers_unref(CowBuffers *buffers)
{
    if (!buffers || --buffers->n_refs)
        return;
    *loop_slot(buffers->loop, slot_key) = NULL;
    for (unsigned bits = 0; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
        for (FreeBuffer *b = buffers->kept[bits].first, *next; b; b = next) {
            next = b->next;
            free(b);
        }
    }
    g_free(buffers);
}

static unsigned bits_of(uint32_t cluster_bytes)
{
    return (unsigned)__builtin_ctz(cluster_bytes);
}

void *cow_buffers_take(CowBuffers *buffers, uint32_t cluster_bytes)
{
    Kept *kept = &buffers->kept[bits_of(cluster_bytes)];
    FreeBuffer *first = kept->first;
    if (!first)
        return aligned_alloc(ALIGNMENT, MAX(cluster_bytes, ALIGNMENT));
    kept->first = first->next;
    kept->n--;
    return first;
}

void cow_buffers_put(CowBuffers *buffers, void *buffer, uint32_t cluster_bytes)
{
    Kept *kept = &buffers->kept[bits_of(cluster_bytes)];
    FreeBuffer *first = buffer;
    if (!buffer || kept->n == KEPT_OF_A_SIZE) {
        free(buffer);
        return;
    }
    first->next = kept->first;
    kept->first = first;
    kept->n++;
}

size_t cow_buffers_kept_bytes(const CowBuffers *buffers)
{
    size_t bytes = 0;
    for (unsigned bits = 0; bits <= QCOW2_MAX_CLUSTER_BITS; bits++)
        bytes += (size_t)buffers->kept[bits].n << bits;
    return bytes;
}
