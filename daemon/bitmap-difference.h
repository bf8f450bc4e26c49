// SPDX-License-Identifier: LGPL-2.1-or-later
// A dirty bitmap of what a node shows otherwise than a layer below it, although nobody has noted it
// while it was changed: it is what the layers above that one own. From metadata only, so it costs
// what those layers have, and not what the disk has. Control loop.
#pragma once

#include "chain-core/dirty-bitmap.h"
#include "nodes.h"

// Adds the bitmap of `spec` to `named`, with all of that dirty (`base` NULL: with all that the
// chain owns), and what is written from the call on if it is enabled. With the graph lock, which is
// given up while tables are read: the chain stays as it is meanwhile, or the call is refused with
// who is at work on it.
int bitmap_add_difference(Fiber *self, Nodes *nodes, NamedNode *named, const DirtyBitmapSpec *spec,
                          const char *base, GError **error);
