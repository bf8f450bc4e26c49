// SPDX-License-Identifier: LGPL-2.1-or-later
// Trees of layers: every way in which so many layers can lie on each other, with branches, as
// images in a simulation, and what each of them shows. Cells are either what a layer wrote, or
// zeros; layers have different sizes, clusters and formats. Test code only.
#pragma once

#include "chain-core/map-memory.h"
#include "chain-core/node.h"
#include "chain-core/sim.h"

enum {
    TOPOLOGY_MAX_LAYERS = 6,
    TOPOLOGY_CELL = 512,
    TOPOLOGY_MAX_CELLS = 40,
    TOPOLOGY_NONE = TOPOLOGY_MAX_LAYERS, // no layer
};

// Layer 0 lies at the bottom; each of the others lies on one with a smaller number.
typedef struct Topology {
    unsigned n;
    unsigned below[TOPOLOGY_MAX_LAYERS]; // TOPOLOGY_NONE of layer 0
} Topology;

// All trees of `n` layers that differ in more than numbers: an array of Topology, owned.
GArray *topologies_of(unsigned n);

bool topology_is_over(const Topology *t, unsigned layer, unsigned below); // or it is that itself
bool topology_is_head(const Topology *t, unsigned layer);
unsigned topology_count_over(const Topology *t, unsigned layer); // that lie directly on it

// What is seen. In a cell: 0, zeros; else a tag: what somebody wrote.
typedef struct Picture {
    unsigned n_cells;
    uint8_t cells[TOPOLOGY_MAX_CELLS];
} Picture;

void picture_fill_cell(const Picture *picture, unsigned cell, void *buf); // what a cell holds
// The first cells of what a node shows. Each may have the tag `also`, too, if that is not 0. NULL,
// or what is wrong (owned).
char *picture_check(Fiber *self, const Picture *picture, uint8_t also, Node *node);

typedef struct Tree {
    Topology shape;
    bool is_raw; // layer 0
    Sim *sim;    // whose files are the images: /n0, /n1, …
    Picture pictures[TOPOLOGY_MAX_LAYERS];
} Tree;

Tree *tree_new(const Topology *shape, uint64_t seed);
void tree_free(Tree *tree);

// Opens a layer and all below it as its header says, without locks; on the fiber's loop.
Node *tree_open_layer(Fiber *self, const Tree *tree, unsigned layer, MapMemory *memory,
                      GError **error);
