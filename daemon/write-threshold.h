// SPDX-License-Identifier: LGPL-2.1-or-later
// The write threshold of a named node: who crosses it is told to monitors, once. It is the node's
// and control's together; what is left of it may be read by either.
#pragma once

#include <stdatomic.h>

#include "named-node.h"

struct WriteThreshold {
    NodeThreshold head; // first
    atomic_uint n_refs;
    _Atomic uint64_t off; // 0: it has been crossed
    char *node_name;
    NodeOrigin *origin; // whom to tell; outlives it
};

// Replaces the one that the node has; 0: none. Control loop.
void write_threshold_set(Fiber *self, NamedNode *named, uint64_t off);
// 0: there is none, or it has been crossed.
uint64_t write_threshold_get(const NamedNode *named);
void write_threshold_unref(WriteThreshold *threshold); // accepts NULL; any thread
