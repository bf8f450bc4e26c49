// SPDX-License-Identifier: LGPL-2.1-or-later
// What it costs to make one layer of several neighbours in a chain, so that the points in time
// between them are gone: from metadata only, for each of the layers as the one that stays. What
// lies above it is committed into it, then what lies below is streamed into it.
//
//     layers[n-1]  ─┐
//         …         ├─ commit
//                   ▼
//     layers[stays]
//                   ▲
//         …         ├─ stream
//     layers[0]    ─┘
#pragma once

#include "chain-core/node.h"

// In bytes. Moved are whole clusters of the layer that stays (subclusters) where it has none
// itself; what it takes for that includes tables, and is more rather than less.
typedef struct ChainPlanCost {
    uint64_t commit_bytes, stream_bytes; // to be moved
    uint64_t commit_space, stream_space; // that the layer that stays takes in addition
} ChainPlanCost;

// `layers` are `n_layers` (≥2) neighbours, from the lowest on; ret_costs[i] is for layers[i] as the
// one that stays. Looks at each table of theirs once; others get their turn meanwhile, so the nodes
// must be kept. Guests may go on. 0, -ECANCELED, or -errno of a look-up. On the chain's loop.
int chain_plan(Fiber *self, Node *const *layers, unsigned n_layers, ChainPlanCost *ret_costs);
