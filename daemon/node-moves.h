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

// Has only `named` itself, and no instances of it, on the loop of those who use it: it is about to be
// changed. Refused, with who they are, while they are on several.
int node_make_single(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error);

// Brings all of `used` (NamedNode), which `config` names, to one loop: those that have to be there
// themselves, the smaller components to the largest; of the others there are instances then.
// `finder->loop` says which, if none has to be on one, and is set.
int node_moves_join(Fiber *self, NodeFinder *finder, const NodeConfig *config,
                    const GPtrArray *used, GError **error);
