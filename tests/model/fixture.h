// SPDX-License-Identifier: LGPL-2.1-or-later
// The disk that the model's operations work on: a chain of two or three layers in a simulation,
// with overlays made ready for external snapshots, and what it holds at the beginning.
//
//     /layer-0    raw, all of it data
//     /layer-1    qcow2: the head of two layers, with an internal snapshot "old" and a stored
//                 bitmap "p"; or the middle one of three
//     /layer-2    of three: the head
//     …           three more, empty, each over the one before: the next heads
//     /layer-6    empty, over nothing: the target of a mirror or a backup
//
// Operations go to the head. Test code only.
#pragma once

#include "../crash/shadow-model.h"
#include "chain-core/chain.h"
#include "chain-core/dirty-bitmap.h"
#include "chain-core/port.h"
#include "chain-core/sim-choice.h"

enum {
    CELL = 512,
    CLUSTER = 1024,
    TABLE_BYTES = CLUSTER / 8 * CLUSTER, // what an L2 table says
    MAX_DISK_BYTES = 2 * TABLE_BYTES + 4 * CLUSTER,
    DIRTY_OFF = 30 * CLUSTER, // a cell that the stored bitmap calls dirty
    MAX_OVERLAYS = 3,
    MAX_LAYERS = 3 + MAX_OVERLAYS,
    TARGET_LAYER = MAX_LAYERS,
};

// How the chain begins, for every run again. One for each kind of chain.
typedef struct World {
    unsigned n_layers; // 2 or 3
    uint64_t size_bytes;
    Sim *sim;           // whose files are the disk
    ShadowModel *model; // what it shows
} World;

World *world_new(unsigned n_layers);
void world_free(World *world);

// A run's chain.
typedef struct Chain {
    const World *world;
    MapMemory *memory;
    Node *head;
    Port port; // where requests enter
    Node *overlays[MAX_OVERLAYS];
    unsigned n_taken; // external snapshots: so many overlays are in use
    unsigned top;     // number of the layer that is the head
} Chain;

// Opens it from layer `top`, which is writable, with the overlays where `has_overlays`.
int chain_begin(Fiber *self, const World *world, unsigned top, bool has_overlays, Chain *ret_chain,
                GError **error);
void chain_end(Fiber *self, Chain *chain);

// A layer by itself, writable, without what its header names.
int chain_open_layer(Fiber *self, const Chain *chain, unsigned number, Node **ret_node,
                     GError **error);

void layer_name(char path[16], unsigned number);
// Layer `number` of an open chain, which has it; borrowed.
Node *chain_layer(const Chain *chain, unsigned number);

// What is wrong with the image of a layer: NULL, or a sentence (owned). Leaks are allowed, and with
// the dirty bit what the next writable open repairs.
char *layer_check(Fiber *self, unsigned number);
