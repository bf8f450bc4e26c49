// SPDX-License-Identifier: LGPL-2.1-or-later
// Which layer owns what of a disk, in the large: the disk is divided into parts, and of each it is
// counted how many bytes of it come from which layer. From metadata only.
#pragma once

#include "chain-core/node.h"

typedef struct ChainMapLayer {
    uint64_t data_bytes;  // that it has itself, seen or not
    uint64_t shown_bytes; // of these, seen at the top
    uint64_t *parts;      // shown bytes in each part; of the caller, zeroed
} ChainMapLayer;

// How long the parts are, for at most `n_parts` of them: a multiple of what layers are counted in.
uint64_t chain_map_part_bytes(Node *const *layers, unsigned n_layers, unsigned n_parts);

// `layers` are neighbours, from the lowest on; ret_layers[i] is of layers[i]. Looks at each table
// of theirs once; others get their turn meanwhile, so the nodes must be kept. 0, -ECANCELED, or
// -errno of a look-up. On the chain's loop.
int chain_map(Fiber *self, Node *const *layers, unsigned n_layers, uint64_t part_bytes,
              ChainMapLayer *ret_layers);
