// SPDX-License-Identifier: LGPL-2.1-or-later
// Goes through a disk in blocks, and tells of each which cells every layer has data in, and zeros:
// from metadata only. A cell is so small that all clusters begin and end at cells, and so do layers
// that are shorter than others.
#pragma once

#include "chain-core/node.h"

// One block, or less at the end of the disk.
typedef struct LayerBlock {
    uint64_t off, end;
    uint32_t cell_bits;
    unsigned n_words; // of 64 cells
} LayerBlock;

// What a layer has in the block, a bit for each cell. The one who is told may overwrite it.
typedef struct LayerBits {
    Node *node;
    bool has_something; // else all is 0
    unsigned n_words;   // that may be other than 0: raised by who sets bits beyond
    uint64_t *data, *zero;
} LayerBits;

// Layers from the lowest on. Blocks in which no layer has anything are left out.
typedef void LayerSweepFn(void *arg, const LayerBlock *block, LayerBits *layers, unsigned n_layers);

// Looks at each table of theirs once; others get their turn meanwhile, so the nodes must be kept.
// Guests may go on. A layer shorter than others shows zeros past its end. 0, -ECANCELED, or -errno
// of a look-up. On the chain's loop.
int layer_sweep(Fiber *self, Node *const *layers, unsigned n_layers, LayerSweepFn *fn, void *arg);
// The largest cells that there will be: words of 64 of them begin at multiples of their length.
uint64_t layer_sweep_cell_bytes(Node *const *layers, unsigned n_layers);
// How far it goes: the size of the largest.
uint64_t layer_sweep_size(Node *const *layers, unsigned n_layers);
