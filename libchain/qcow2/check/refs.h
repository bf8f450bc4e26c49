// SPDX-License-Identifier: LGPL-2.1-or-later
// How often each host cluster is referenced, as a check counts it. Sparse: memory follows what is
// referenced, not the size of a file, which can be 2^63 bytes of hole. Plain values; one fiber.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CHECK_REFS_CHUNK_BITS = 10,
    CHECK_REFS_CHUNK = 1 << CHECK_REFS_CHUNK_BITS,
};
#define CHECK_REFS_COPIED (UINT32_C(1) << 31)     // an active entry says: referenced once
#define CHECK_REFS_NOT_COPIED (UINT32_C(1) << 30) // an active entry says: shared
#define CHECK_REFS_MAX_COUNT (CHECK_REFS_NOT_COPIED - 1)

typedef struct CheckRefs {
    uint32_t **chunks; // NULL where nothing is referenced; each word: two flags, a count
    uint64_t n_chunks;
    uint64_t n_allocated;  // chunks
    uint64_t n_references; // references counted, the measure for how much memory is fair
} CheckRefs;

void check_refs_done(CheckRefs *refs);

// Counts `weight` more references (saturating) to `n` clusters from `first` on. 0; -ENOMEM; or
// -EFBIG when the references are so far apart that only a hostile image explains it.
int check_refs_add(CheckRefs *refs, uint64_t first, uint64_t n, uint32_t weight);
// Takes references away again.
void check_refs_remove(CheckRefs *refs, uint64_t first, uint64_t n, uint32_t weight);

// One past the last cluster that may be referenced.
static inline uint64_t check_refs_end(const CheckRefs *refs)
{
    return refs->n_chunks << CHECK_REFS_CHUNK_BITS;
}

// The word of one cluster, or NULL when its whole chunk is unreferenced.
static inline uint32_t *check_refs_find(const CheckRefs *refs, uint64_t cluster)
{
    uint64_t chunk = cluster >> CHECK_REFS_CHUNK_BITS;
    if (chunk >= refs->n_chunks || !refs->chunks[chunk])
        return NULL;
    return &refs->chunks[chunk][cluster & (CHECK_REFS_CHUNK - 1)];
}

static inline uint32_t check_refs_count(const CheckRefs *refs, uint64_t cluster)
{
    const uint32_t *word = check_refs_find(refs, cluster);
    return word ? *word & CHECK_REFS_MAX_COUNT : 0;
}
