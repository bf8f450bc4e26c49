// SPDX-License-Identifier: LGPL-2.1-or-later
// Makes a region by asking the layers of a chain, top to bottom, what they have in it. In a fiber
// on the layers' loop.
#pragma once

#include "chain-core/node.h"
#include "chain/region.h"

// One layer as the merged map sees it.
typedef struct MapLayer {
    Node *node;      // borrowed from the chain below the merged node
    File *file;      // of its DATA runs, from node_file(); NULL: it has none, and none are made
    bool is_barrier; // a filter, or writable: may change, so it is read and never mapped
} MapLayer;

typedef struct RegionPlan {
    const MapLayer *layers; // to be asked, top first
    unsigned n_layers;
    uint64_t number;
    uint32_t len;
    // What all layers under those show in it, of the same length, numbered from the first of them
    // on. NULL: there are none.
    const Region *below;
} RegionPlan;

// What `plan` points to must stay during the call. Fails only with -ENOMEM: where a layer cannot
// tell what it has (an unreadable table), the region says to read that layer, and the reader gets
// the error.
int region_build(Fiber *self, const RegionPlan *plan, MapMemory *memory, Region **ret_region);
