// SPDX-License-Identifier: LGPL-2.1-or-later
// A region: what a whole chain shows in one aligned piece of the guest's range, as sorted runs. An
// immutable, atomically counted value that holds no pointer into the graph (a run names its layer
// by number), so that chains on any loop can share it. Pure; any thread.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "chain-core/map-memory.h"

// A run is located by 32 bits inside its region, and a region costs one pass over all layers: large
// enough to make passes rare, small enough that one touched block does not map half an image.
enum { REGION_BITS = 23, REGION_BYTES = 1 << REGION_BITS };

// Ends where the next run starts. `kind` is a NodeExtentKind; BELOW: no layer has anything. `layer`
// counts from the top of the chain, `host` is meant for DATA. A layer that ends early is a ZERO
// run.
typedef struct Run {
    uint64_t host;
    uint32_t start;
    uint16_t layer;
    uint8_t kind;
} Run;

typedef struct RegionSet RegionSet;

typedef struct Region {
    atomic_uint n_refs;
    uint32_t len; // REGION_BYTES, less for the last region of a chain
    uint32_t n_runs;
    uint64_t number; // guest offset >> REGION_BITS
    RegionSet *set;  // where it is found by others (region-cache.h), or NULL
    MapMemory *memory;
    Run runs[];
} Region;

static inline uint32_t region_run_end(const Region *region, const Run *run)
{
    return run + 1 < region->runs + region->n_runs ? run[1].start : region->len;
}

// The run that holds `at` < len.
static inline const Run *region_find_run(const Region *region, uint32_t at)
{
    uint32_t low = 0, n = region->n_runs;
    while (n > 1) {
        uint32_t half = n / 2;
        low = region->runs[low + half].start <= at ? low + half : low;
        n -= half;
    }
    return &region->runs[low];
}

size_t region_bytes(const Region *region);
// The last reference must be gone. Gives the memory back.
void region_free(Region *region);

// A region in the making. Layers are laid under each other from the top: each decides what the ones
// above left open.
typedef struct Span {
    uint32_t start, end;
} Span;
typedef struct Piece {
    Span span;
    Run run; // run.host belongs to span.start; run.start is not used
} Piece;
typedef struct RegionDraft {
    uint32_t len;
    GArray *open;   // of Span, sorted: not decided yet
    GArray *pieces; // of Piece, in no order
} RegionDraft;

void region_draft_init(RegionDraft *draft, uint32_t len);
void region_draft_done(RegionDraft *draft);
static inline bool region_draft_is_complete(const RegionDraft *draft)
{
    return draft->open->len == 0;
}
// `pieces` of one layer: sorted, disjoint, none of kind BELOW; parts above open spans are cut off.
void region_draft_add_layer(RegionDraft *draft, const Piece *pieces, size_t n_pieces);
// With one reference, its memory charged; NULL when there is none to be had. What is still open
// becomes BELOW.
Region *region_draft_finish(RegionDraft *draft, uint64_t number, MapMemory *memory);
