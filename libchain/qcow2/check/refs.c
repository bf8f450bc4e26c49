// SPDX-License-Identifier: LGPL-2.1-or-later
// Reference counts in chunks of 1,024 clusters, found through an array that grows with the highest
// chunk in use. Both bounds below keep a small hostile image from sizing a large allocation.

#include "qcow2/check/refs.h"

#include <errno.h>
#include <glib.h>
#include <string.h>

// 2^22 chunks are 2^32 clusters: 256 TiB of file with 64 KiB clusters.
#define MAX_CHUNKS (UINT64_C(1) << 22)
// Chunks that need no justification, and how many references justify one more. Images allocate
// densely: one reference in 16 clusters is already far from what a real image looks like.
#define FREE_CHUNKS UINT64_C(16384)
#define REFERENCES_PER_CHUNK UINT64_C(64)

void check_refs_done(CheckRefs *refs)
{
    for (uint64_t i = 0; i < refs->n_chunks; i++)
        g_free(refs->chunks[i]);
    g_free(refs->chunks);
    *refs = (CheckRefs){0};
}

static int grow(CheckRefs *refs, uint64_t chunk)
{
    if (chunk >= MAX_CHUNKS)
        return -EFBIG;
    uint64_t n = MAX(chunk + 1, MIN(2 * refs->n_chunks, MAX_CHUNKS));
    uint32_t **chunks = g_try_realloc_n(refs->chunks, n, sizeof(*chunks));
    if (!chunks)
        return -ENOMEM;
    memset(chunks + refs->n_chunks, 0, (n - refs->n_chunks) * sizeof(*chunks));
    refs->chunks = chunks;
    refs->n_chunks = n;
    return 0;
}

static int allocate(CheckRefs *refs, uint64_t chunk)
{
    if (chunk >= refs->n_chunks) {
        int r = grow(refs, chunk);
        if (r < 0)
            return r;
    }
    if (refs->chunks[chunk])
        return 0;
    if (refs->n_allocated >= FREE_CHUNKS + refs->n_references / REFERENCES_PER_CHUNK)
        return -EFBIG;
    refs->chunks[chunk] = g_try_new0(uint32_t, CHECK_REFS_CHUNK);
    if (!refs->chunks[chunk])
        return -ENOMEM;
    refs->n_allocated++;
    return 0;
}

int check_refs_add(CheckRefs *refs, uint64_t first, uint64_t n, uint32_t weight)
{
    refs->n_references += n;
    for (uint64_t i = first; i < first + n; i++) {
        uint32_t *word = check_refs_find(refs, i);
        if (!word) {
            int r = allocate(refs, i >> CHECK_REFS_CHUNK_BITS);
            if (r < 0)
                return r;
            word = check_refs_find(refs, i);
        }
        uint64_t count = (uint64_t)(*word & CHECK_REFS_MAX_COUNT) + weight;
        *word = (*word & ~CHECK_REFS_MAX_COUNT) | MIN(count, CHECK_REFS_MAX_COUNT);
    }
    return 0;
}

void check_refs_remove(CheckRefs *refs, uint64_t first, uint64_t n, uint32_t weight)
{
    for (uint64_t i = first; i < first + n; i++) {
        uint32_t *word = check_refs_find(refs, i);
        if (word && (*word & CHECK_REFS_MAX_COUNT) != CHECK_REFS_MAX_COUNT)
            *word -= MIN(weight, *word & CHECK_REFS_MAX_COUNT);
    }
}
