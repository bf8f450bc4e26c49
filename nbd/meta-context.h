// SPDX-License-Identifier: LGPL-2.1-or-later
// Metadata contexts: which there are, how a client's queries select them, and what each says about
// an extent of a node. Pure; any thread.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chain-core/node.h"

typedef enum NbdsContext {
    NBDS_CONTEXT_ALLOCATION, // base:allocation
    NBDS_CONTEXT_DEPTH,      // qemu:allocation-depth
    NBDS_N_CONTEXTS
} NbdsContext;

// A set of contexts: bit 1 << NbdsContext.
typedef uint32_t NbdsContextSet;
enum { NBDS_ALL_CONTEXTS = (1 << NBDS_N_CONTEXTS) - 1 };

const char *nbds_context_name(NbdsContext context);
// The id on the wire, the same on every connection.
uint32_t nbds_context_id(NbdsContext context);
// The set with just this id's context; empty when there is none.
NbdsContextSet nbds_context_from_id(uint32_t id);

// The contexts that one query of LIST_META_CONTEXT (`wildcards`: "base:" stands for all of them) or
// SET_META_CONTEXT selects. Unknown queries select none.
NbdsContextSet nbds_context_match(const uint8_t *query, size_t len, bool wildcards);

// Flags of `extent` in `context`, as node_status() of the export's node gave it.
uint64_t nbds_context_flags(NbdsContext context, const NodeExtent *extent);

// Consecutive extents from one offset; neighbours with equal flags become one. Zero-initialise,
// nbds_extent_list_done().
enum { NBDS_EXTENT_LIST_INLINE = 32 };
typedef struct NbdsExtent {
    uint64_t length;
    uint64_t flags;
} NbdsExtent;
typedef struct NbdsExtentList {
    NbdsExtent *extents; // `inline_extents` or allocated
    unsigned n_extents, n_allocated;
    NbdsExtent inline_extents[NBDS_EXTENT_LIST_INLINE];
} NbdsExtentList;
void nbds_extent_list_done(NbdsExtentList *list);
// Returns false, with nothing changed, when that would be more than `max` extents or memory is
// out; what the list has is then a valid, shorter answer (it always takes the first extent).
bool nbds_extent_list_add(NbdsExtentList *list, uint64_t length, uint64_t flags, unsigned max);
