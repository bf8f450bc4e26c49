// SPDX-License-Identifier: LGPL-2.1-or-later
// Which loop a node is on, and how nodes that are to be joined come to the same one. Control loop,
// with the graph lock held. What is left behind, or was opened for a move that failed, may have
// instances that nobody uses: the caller closes them.
#pragma once

#include "node-instances.h"

// Moves `named`, and all that has to be on the same loop, to finder->loop. Layers that only show
// what nobody changes stay where they are; there is an instance of them there. -EBUSY and others
// with a sentence: nothing has changed.
int node_move(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error);

// Has only `named` itself, and no instances of it, on the loop of those who use it: it is about to
// be changed. Refused, with who they are, while they are on several.
int node_make_single(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error);

// Where all of `used` (NamedNode), which `config` names, are to be: that of the largest component,
// if one of them has to be there itself; else `finder->loop` as it is. Does anything have to come
// there?
bool node_moves_choose(NodeFinder *finder, const NodeConfig *config, const GPtrArray *used);
// Brings all of them there; of those that need not be there themselves there are instances then.
int node_moves_join(Fiber *self, const NodeFinder *finder, const NodeConfig *config,
                    const GPtrArray *used, GError **error);
