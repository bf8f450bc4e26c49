// SPDX-License-Identifier: LGPL-2.1-or-later
// How a chunk gets from one node to another: zeros as such, data from file to file where the host
// does that, else through a buffer. For commit, mirror and backup. On the nodes' loop.
#pragma once

#include "chain-core/port.h"
#include "copy-engine.h"
#include "range-lock.h"

typedef struct CopyNodes {
    Node *source, *target; // borrowed
    Port *port;      // from which both can be reached, entered for each chunk: a drain waits for it
    RangeLock *lock; // of the target, where guests change it, too; NULL: nobody else does
    // Not 0: what was read may be newer than what is wanted, and is not written (COPY_AGAIN). NULL:
    // it never is.
    const int *broken;
    bool uses_buffers;      // bytes are never moved within the host
    bool verifies;          // what was written is read back and compared (copy-verify.h)
    bool compresses;        // what gets smaller by that: node_can_compress()
    bool skips_zeros;       // where the target shows zeros already, they are not written
    bool owns_zeros;        // the target comes to own them, though nothing lies below it yet
    NodeIoFlags zero_flags; // with which they are
} CopyNodes;

// CopyEngineOps.copy.
int copy_nodes_chunk(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk);
// The same for who has entered the port.
int copy_nodes_move(Fiber *self, const CopyNodes *nodes, CopyChunk *chunk);
