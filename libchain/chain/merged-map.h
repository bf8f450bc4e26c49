// SPDX-License-Identifier: LGPL-2.1-or-later
// The merged map: a node between an overlay and its backing layer that answers for the whole chain
// below it, however deep, in one step. On the chain's loop.
//
//     overlay ──▸ merged ──▸ layer 0 ──▸ merged ──▸ layer 1 ──▸ merged ──▸ layer 2
//                   │           ▴                      ▴                      ▴
//                   └─ layers[] ┴──────────────────────┴──────────────────────┘
//
// Every overlay has its own merged node, but only the one that requests reach ever fills its map;
// the others cost a struct each. So any layer can be served by itself, and a reader that has to go
// through a layer (a barrier) still finds one step below it. layers[] is collected at first use by
// following `backing`; it ends after a barrier: a filter, or a layer that may be written to.
#pragma once

#include "chain-core/map-memory.h"
#include "chain-core/node.h"

// A node over `below` (takes a new reference). `memory` is borrowed and outlives the node.
Node *merged_map_new(Fiber *self, Node *below, MapMemory *memory);
