// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of nodes, for those who put nodes into it (nodes.c) and take them out
// (nodes-closing.c).
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/throttle-group.h"
#include "loops.h"
#include "node-origin.h"
#include "size-watch.h"

typedef struct Nodes Nodes; // nodes.h

struct Nodes {
    const Loops *loops;
    MapMemory *memory;
    ThrottleGroups *throttle_groups; // NULL: there are none
    NodeOriginEmit *emit;
    void *emit_arg;
    GHashTable *by_name; // NamedNode, borrowed
    GPtrArray *all;      // the same, owned, in order
    SizeWatch *watch;
    unsigned n_opened;  // also those that failed
    unsigned n_made_up; // names
    FiberMutex graph_lock;
    FiberRwLock move_lock;
    bool is_trimming;    // a fiber is about to
    GPtrArray *openings; // those that the graph lock is not held for, NodeOpening of nodes.c
};

// Closes instances that nobody uses. For those who do not have the graph lock.
void nodes_trim_later(Fiber *self, Nodes *nodes);
