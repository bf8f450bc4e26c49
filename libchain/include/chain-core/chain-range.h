// SPDX-License-Identifier: LGPL-2.1-or-later
// Which layers of a chain own a range, from metadata only: what a job will have to move. What has
// no tables costs next to nothing however long it is, so the first answer about a large sparse disk
// comes at once. Nothing of it is kept in the chain's map. On the chain's loop.
#pragma once

#include "chain-core/node.h"

// Layers from `top` down to, and without, `base`. For a stream into a node that is `above`, for a
// commit into a base it is NULL.
typedef struct ChainLayers {
    Node *above; // what this node owns does not count; NULL: all does. `top` lies below it
    Node *top;
    Node *base; // NULL: down to the end of the chain
} ChainLayers;

typedef struct ChainRange {
    uint64_t len;  // bytes from the offset asked for, ≥1
    bool is_owned; // one of the layers decides what is seen there
    bool is_zero;  // and that is zeros: explicit ones, or past the end of a layer
    Node *owner;   // it; borrowed
} ChainRange;

// What is at `off`, at most `len` long. Adjacent ranges of one kind may come in pieces. The range
// lies inside the topmost node of them.
int chain_range_find(Fiber *self, const ChainLayers *layers, GuestOff off, uint64_t len,
                     ChainRange *ret_range);
