// SPDX-License-Identifier: LGPL-2.1-or-later
// The layers of a chain, held while something looks at their tables on their loop. Control loop.
#pragma once

#include "daemon/nodes.h"

typedef struct HeldChain {
    Loop *loop;
    NodeUse *use; // of the top: it stays, and where it is
    unsigned n;
    char **names; // of layers, from the lowest on; filters are left out
    Node **nodes; // of these, references
} HeldChain;

// `what` is for messages: "plan". With the graph lock. QEMU's words when there is no such node.
int held_chain_begin(Fiber *self, Nodes *nodes, const char *device, const char *what,
                     HeldChain *ret_chain, GError **error);
// Without the lock. Also of one that is all 0.
void held_chain_end(Fiber *self, Nodes *nodes, HeldChain *chain);
