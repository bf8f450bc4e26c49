// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of nodes, for those who put nodes into it (nodes-opening.c) and take them out
// (nodes-closing.c).
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/throttle-group.h"
#include "loops.h"
#include "node-instances.h"
#include "node-origin.h"
#include "size-watch.h"

typedef struct Nodes Nodes; // nodes.h

struct Nodes {
    const Loops *loops;
    MapMemory *memory;
    ThrottleGroups *throttle_groups; // NULL: there are none
    TlsCredsTable *tls_creds;        // likewise
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
    GPtrArray *openings; // those that the graph lock is not held for, Opening of nodes-opening.c
};

// The first of `used` (NamedNode) that is made with another machine, or lies in or over what is;
// NULL: none is.
NamedNode *nodes_first_remote(const GPtrArray *used);
// Has all of `used` on one loop, and says on which: if none has to be on one, the next in turn, but
// what is read only stays with what it is made of, and what is over another machine with the
// connection there is. With the graph lock, as the next ones.
int nodes_join(Fiber *self, Nodes *nodes, const NodeConfig *config, const GPtrArray *used,
               NodeFinder *ret_finder, GError **error);
// Is told when the files of `named` get another size; not where another program writes them.
void nodes_watch_sizes(Fiber *self, Nodes *nodes, NamedNode *named);
// Closes instances that nobody uses.
void nodes_trim(Fiber *self, Nodes *nodes);
// The same for those who do not have the lock.
void nodes_trim_later(Fiber *self, Nodes *nodes);
