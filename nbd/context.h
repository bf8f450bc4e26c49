// SPDX-License-Identifier: LGPL-2.1-or-later
// Metadata contexts: what BLOCK_STATUS can tell about an export. Each is an object of its export,
// with a name that clients ask for, an id on the wire, and a kind that knows how to walk over its
// extents and what it pins. Arrays of contexts are GPtrArrays that hold a reference each: those of
// an export, in the order of contexts.c, and those that a client selected, in the same order.
//
// Names, ids and references: any thread. Walks: on the export's loop.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain-core/node.h"
#include "extent-list.h"

typedef struct NbdsContext NbdsContext;

enum {
    // Of an option: more queries, or contexts selected by them, are answered TOO_BIG. They bound
    // what a client can make its session hold, and an option take.
    NBDS_MAX_CONTEXT_QUERIES = 1024,
    NBDS_MAX_SELECTED_CONTEXTS = 256,
    // Steps that a walk takes before it lets others have their turn.
    NBDS_WALK_STEPS = 256,
};

// A walk over a range for contexts of one kind that are wanted together.
typedef struct NbdsWalk {
    uint64_t offset, end;         // what is left; `end` moves down when nothing more is wanted
    NbdsContext *const *contexts; // n
    NbdsExtentList *lists;        // n, one for each; from the same offset
    unsigned n;
} NbdsWalk;

typedef struct NbdsContextKind {
    // Adds extents from walk->offset on to every list that takes them, and moves the offset behind
    // them; returns after NBDS_WALK_STEPS at most, to be called again. 0 or -errno.
    int (*walk)(Fiber *self, Node *node, NbdsWalk *walk);
    // Gives up what the context pins (NULL: nothing). On the export's loop, when it has no client
    // any more; the object itself may outlive it.
    void (*release)(Fiber *self, NbdsContext *context);
} NbdsContextKind;

// The head of a kind's own struct, which comes from g_new0().
struct NbdsContext {
    const NbdsContextKind *kind;
    gatomicrefcount refs;
    char *name; // "namespace:leaf"
    size_t name_len;
    uint32_t id; // within its export; from 1
};

// The next context of `contexts`, which takes the reference.
void nbds_context_init(NbdsContext *context, const NbdsContextKind *kind, const char *name,
                       GPtrArray *contexts);
NbdsContext *nbds_context_ref(NbdsContext *context);
void nbds_context_unref(NbdsContext *context); // accepts NULL
GPtrArray *nbds_context_array_new(void);

// Marks the contexts that one query of SET_META_CONTEXT selects, or of LIST_META_CONTEXT
// (`wildcards`: what ends with a colon stands for every name that begins so). Unknown queries
// select none.
void nbds_context_match(const GPtrArray *contexts, const uint8_t *query, size_t len, bool wildcards,
                        bool *marks);
// Those that are marked; returned owned.
GPtrArray *nbds_context_select(const GPtrArray *contexts, const bool *marks);
