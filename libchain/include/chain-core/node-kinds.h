// SPDX-License-Identifier: LGPL-2.1-or-later
// What a node has itself in each cell of a range, as bits: for those who count over whole disks. On
// the node's loop.
#pragma once

#include "chain-core/node.h"

// Bit i of each stands for the cell at off + i * (1 << cell_bits). Neither: nothing of its own
// there.
struct NodeKinds {
    uint64_t *data, *zero;
    uint64_t n_cells;
    uint32_t cell_bits;
};

// Sets the bits of [off, off+len); the others stay. `off` is a multiple of a cell, and `len`,
// unless it ends at the node's end. A cell that is in part data counts as data. Others get their
// turn as with other look-ups, and what guests change meanwhile is seen or not. 0 or -errno.
int node_find_kinds(Fiber *self, Node *node, GuestOff off, uint64_t len, const NodeKinds *kinds);

// Of cells from `first` on, those that there are.
static inline void node_kinds_set(uint64_t *bits, uint64_t n_cells, uint64_t first, uint64_t n)
{
    uint64_t end = first + n < n_cells ? first + n : n_cells;
    while (first < end) {
        uint64_t in_word = 64 - first % 64, some = in_word < end - first ? in_word : end - first;
        bits[first / 64] |= (some < 64 ? (UINT64_C(1) << some) - 1 : UINT64_MAX) << first % 64;
        first += some;
    }
}
