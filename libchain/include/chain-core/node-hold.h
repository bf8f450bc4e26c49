// SPDX-License-Identifier: LGPL-2.1-or-later
// Who uses a node, for what, and what he lets others do meanwhile (node-perm.h). Edges and ports
// are uses by themselves: what they need follows from the graph as it is, so none is forgotten.
// Whoever does more than a request through a port, a job above all, holds what it needs until its
// end, before it begins: it gets all of it, or a refusal that names the other user.
//
//     user                          holds                        does not share
//     port of an export             consistent read (+ write)    -
//     overlay, of what lies below   consistent read              write, resize
//     image, of its file            consistent read (+ write,    write, resize
//                                   resize)
//     filter, of what it filters    what goes through it         what that does not share
//     filter, of its other child    consistent read, write       -
//     view                          -                            -
//     hold                          as it says                   as it says
//
// Other programs hold and share by locks on the file (file.h). They are asked when a node becomes
// writable: a job that writes a read-only node has it made so (node_set_writable()) before it
// begins.
//
// What a job that reshapes a chain has to ask for (all of them "place" and "backing link" of every
// node that they name, unshared, so that the chain stays as it is but for what they do themselves):
//
//     job      node                  holds                               does not share
//     stream   the one that is       consistent read, write unchanged,   resize
//              filled                backing link
//              layers below it,      consistent read                     write, resize
//              the base
//     commit   the base              consistent read, write, resize      consistent read, write,
//                                                                        resize
//              layers above it       consistent read, backing link,      consistent read (of who
//              down to the base      place                               looks on), write, resize
//              the top               consistent read, place              resize
//     mirror   the source            consistent read, place              resize
//              the target            consistent read, write, place       consistent read, write,
//                                                                        resize
//     backup   the source            consistent read, a filter over it   resize, place
//              the target            consistent read, write              write, resize
//
// On the nodes' loop.
#pragma once

#include "chain-core/node-perm.h"
#include "chain-core/node.h"

typedef struct NodeHold NodeHold;

// What somebody needs of one node.
typedef struct NodeNeed {
    Node *node;
    NodePerms perms;
} NodeNeed;

// Holds all of `needs` (nodes of one loop, each once), with a reference on each node, or nothing:
// -EBUSY with a sentence that names the conflict. What those nodes need of each other is the
// holder's own business: an edge from one to another, through filters perhaps, is in no way.
// `owner` (copied) is for messages: "job 'j'".
int node_hold_new(const char *owner, const NodeNeed *needs, unsigned n_needs, NodeHold **ret_hold,
                  GError **error);
// Does somebody hold one of `perms` of it?
bool node_is_held(const Node *node, unsigned perms);
// Ends it; what only it has kept is closed. Accepts NULL.
void node_hold_release(Fiber *self, NodeHold *hold);

// The same question of who is done before he suspends, or sees to it otherwise that nobody asks for
// something else meanwhile. `own` (may be NULL) is a hold of his that is in no way.
int node_check_need(const char *owner, const NodeNeed *need, const NodeHold *own, GError **error);
