// SPDX-License-Identifier: LGPL-2.1-or-later
// For drivers that have no faster way: run by run.
#include "chain-core/node-kinds.h"

#include <errno.h>

// Data is rounded out to cells, zeros in.
static void set_run(const NodeKinds *kinds, NodeExtentKind kind, uint64_t start, uint64_t end,
                    bool is_last)
{
    uint64_t cell = UINT64_C(1) << kinds->cell_bits;
    if (kind == NODE_EXTENT_DATA) {
        uint64_t first = start / cell;
        node_kinds_set(kinds->data, kinds->n_cells, first, (end + cell - 1) / cell - first);
    } else if (kind == NODE_EXTENT_ZERO) {
        uint64_t first = (start + cell - 1) / cell, stop = is_last ? kinds->n_cells : end / cell;
        node_kinds_set(kinds->zero, kinds->n_cells, first, stop > first ? stop - first : 0);
    }
}

static int find_by_runs(Fiber *self, Node *node, GuestOff off, uint64_t len, const NodeKinds *kinds)
{
    for (uint64_t done = 0, n; done < len; done += n) {
        NodeExtentKind kind;
        int r = node_find_kind(self, node, guest_off(off.v + done), len - done, &kind, &n);
        if (r < 0)
            return r;
        set_run(kinds, kind, done, done + n, done + n == len);
    }
    return 0;
}

int node_find_kinds(Fiber *self, Node *node, GuestOff off, uint64_t len, const NodeKinds *kinds)
{
    int r = -ENOTSUP;
    g_assert(off.v <= node->size_bytes && len <= node->size_bytes - off.v);
    if (node->ops->find_kinds)
        r = node->ops->find_kinds(self, node, off, len, kinds);
    return r == -ENOTSUP ? find_by_runs(self, node, off, len, kinds) : r;
}
