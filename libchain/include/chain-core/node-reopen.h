// SPDX-License-Identifier: LGPL-2.1-or-later
// A node takes other options, or another child, while it is in use (blockdev-reopen):
//
//     node_reopen_prepare → node_reopen_commit, or node_reopen_abort
//        (may fail)            (cannot)
//
// Its driver says what can change (Driver.reopen). Requests are kept out for the commit; those
// above see the node as it was, or as it is then. On the node's loop, while nobody else changes the
// graph.
#pragma once

#include "chain-core/node-config.h"

typedef struct NodeReopen NodeReopen;

// As it is to be. All borrowed for the call.
typedef struct NodeReopenWish {
    const NodeConfig *config;
    Node *was_below, *below; // its child now, and from then on; the same perhaps
    bool is_read_only;       // as it is said; nodes that pass on are it where the child is, too
    ThrottleGroups *throttle_groups;
} NodeReopenWish;

// Other programs are kept out of a child that is new as they were out of the old one. The error is
// one sentence. Returned owned: one of the two below.
int node_reopen_prepare(Fiber *self, Node *node, const NodeReopenWish *wish,
                        NodeReopen **ret_reopen, GError **error);
void node_reopen_commit(Fiber *self, NodeReopen *reopen);
// Accepts NULL.
void node_reopen_abort(Fiber *self, NodeReopen *reopen);

// The file of `node`, a driver's of files, is read and written past the host's page cache from now
// on, or not. On failure it is as before.
int node_set_direct(Fiber *self, Node *node, bool is_direct, GError **error);
