// SPDX-License-Identifier: LGPL-2.1-or-later
// What all loops share of the chain maps: for each sequence of layers, the regions that some loop
// holds. Reached only on a miss; a hit is answered by the merged node's own table (region-table.h).
// Any thread.
#pragma once

#include "chain-core/node.h"
#include "chain/region.h"

typedef struct RegionCache RegionCache;

// The cache that goes with `memory`, made at first use; lives as long as `memory`.
RegionCache *region_cache_get(MapMemory *memory);

// The set of chains that consist of these layers (their identities, top first), on whatever loop:
// they see the same bytes, so they can share regions. One reference.
RegionSet *region_set_get(RegionCache *cache, const NodeIdentity *layers, unsigned n_layers);
void region_set_unref(RegionSet *set); // NULL is fine; its regions may outlive it
// A new reference on the region, or NULL.
Region *region_set_find(RegionSet *set, uint64_t number);
// Takes the reference on `region`; returns one on it, or on the one that another loop added first.
Region *region_set_add(RegionSet *set, Region *region);
void region_unref(Region *region);
