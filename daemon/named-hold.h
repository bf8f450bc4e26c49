// SPDX-License-Identifier: LGPL-2.1-or-later
// What a job holds of named nodes from before it begins until its end: in control's table, where
// other commands find it in their way, and on the nodes' loop (chain-core/node-hold.h, which says
// what which job needs). All of it or nothing. Control loop, with the graph lock held.
#pragma once

#include "chain-core/node-hold.h"
#include "nodes.h"

typedef struct NamedHold NamedHold;

// What is needed of one node.
typedef struct NamedNeed {
    NamedNode *named;
    const char *role; // a literal, as QEMU's jobs call it: "main node"
    NodePerms perms;
} NamedNeed;

// Holds the `needs`, each node once, on the loop of the first, where they all are, as themselves or
// as instances (nodes_bring_to()). What is to be changed must be there once: it is brought to the
// loop of those who use it, and refused while chains on several loops read it; so is what another
// program changed behind our back. `owner` (copied) is for messages: "block job 'j'". The error
// names who is in the way.
int named_hold_new(Fiber *self, Nodes *nodes, const char *owner, const NamedNeed *needs,
                   unsigned n_needs, NamedHold **ret_hold, GError **error);
// The same as the loop has it: for who works there. Borrowed.
NodeHold *named_hold_on_loop(const NamedHold *hold);
// Ends it, and closes what nobody uses any more. The result of the flush.
int named_hold_release(Fiber *self, Nodes *nodes, NamedHold *hold);
