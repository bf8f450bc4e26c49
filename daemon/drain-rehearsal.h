// SPDX-License-Identifier: LGPL-2.1-or-later
// Before a command holds back what guests write, it is seen whether the writes that are under way
// end: while the storage of a disk does not answer, that disk waits, and neither others of the same
// transaction nor other commands do. Control loop.
#pragma once

#include "nodes.h"

// Drains the node of that name (there need be none: somebody else refuses that) of requests that
// write, and lets them go on. Without the graph lock, which is not held while this waits. The error
// says that `what` ("no snapshot was taken") has not been done, and why.
int drain_rehearse(Fiber *self, Nodes *nodes, const char *name, const char *what, GError **error);
// The same sentence for a drain that took too long after all; negative.
int drain_fail(const NamedNode *named, const char *what, GError **error);
