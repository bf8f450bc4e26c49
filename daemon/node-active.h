// SPDX-License-Identifier: LGPL-2.1-or-later
// Nodes that are inactive: another program, the other end of a migration say, may write what they
// lie in, and here they are only read, by exports that allow it and by nodes that are inactive,
// too.
//
//              node_active_set(true)
//     inactive ──────────────────────▶ active        blockdev-add makes either
//              ◀──────────────────────
//              node_active_set(false)
//
// A node that is active lies in, and over, what is active. Control loop, with the graph lock held.
#pragma once

#include "nodes.h"

// Makes `named`, and all below it, active: the files are locked and read anew, and written again as
// they were to be. Or makes it inactive, and what lies below it and has no active node over it.
// QEMU's words where that cannot be. What has been done stays done when a later part fails.
int node_active_set(Fiber *self, Nodes *nodes, NamedNode *named, bool is_active, GError **error);
