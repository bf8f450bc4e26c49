// SPDX-License-Identifier: LGPL-2.1-or-later
// A node in memory for tests: it can be held (requests wait until released), told to fail, and
// remembers what it was asked. On its loop; the counters are atomics, so that a test's thread may
// look.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/node.h"

enum { MEMORY_NODE_BLOCK = 4096 }; // granule of what reads as unallocated

typedef struct MemoryNode {
    Node node;
    uint8_t *data;
    uint8_t *kinds; // NodeExtentKind of each block; DATA is reported as OPAQUE
    bool is_held;
    FiberQueue held;
    bool no_fast_zero;
    atomic_int fail_with; // negative errno for each operation, 0: none
    atomic_uint n_reads, n_writes, n_zeroes, n_discards, n_flushes, n_fua, n_maps;
    atomic_uint n_waiting; // held now
} MemoryNode;

MemoryNode *memory_node_new(Loop *loop, uint64_t size_bytes); // one reference
void memory_node_hold(MemoryNode *m);
void memory_node_release(MemoryNode *m);
