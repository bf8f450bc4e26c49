// SPDX-License-Identifier: LGPL-2.1-or-later
// A fill rounds out to clusters of the overlay, so it may read what another chunk is about to
// write. That is right: whoever writes has filled the same cluster before, and of two fills the one
// that is linked first counts, which read what no one had written yet.
//
// One flush serves all fills that ended before it. On the nodes' loop.
#include "keep-points.h"

#include "chain-core/mutant.h"
#include "chain-core/node-fill.h"

void keep_points_init(KeepPoints *keep, Node *const *nodes, unsigned n)
{
    keep->points = g_new0(KeptPoint, n);
    keep->n = n;
    for (unsigned i = 0; i < n; i++) {
        Port *port = &keep->points[i].port;
        port_init(port, nodes[i], "commit: a point in time");
        port->is_background = true;
        port->perms = (NodePerms){.held = NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED,
                                  .shared = NODE_PERM_ALL};
    }
}

void keep_points_done(Fiber *self, KeepPoints *keep)
{
    for (unsigned i = 0; i < keep->n; i++)
        port_done(self, &keep->points[i].port);
    g_free(keep->points);
    *keep = (KeepPoints){0};
}

static int fill(Fiber *self, KeptPoint *point, CopyChunk *chunk)
{
    NodeFillResult result = {0};
    Node *node = port_enter(self, &point->port, REQUEST_WRITE);
    uint64_t off = chunk->off, end = MIN(off + chunk->len, node->size_bytes);
    int r = off < end && !MUTANT("keep-points-fill")
                ? node_fill(self, node, guest_off(off), end - off, 0, &result)
                : 0;
    port_leave(&point->port, REQUEST_WRITE);
    chunk->beside_copied += result.copied_bytes;
    chunk->beside_shared += result.shared_bytes;
    chunk->failed_reading |= result.failed_reading;
    return r;
}

// Does the point perhaps own something that no flush has covered? What it owned before the fill
// counts, too: guests that write to it, and other chunks, own it from the moment at which entries
// change, which is before their requests end.
static bool may_lack_flush(const KeptPoint *point)
{
    Node *node = point->port.node;
    if (node->ops->is_filter || node->n_flushed < node->n_changes)
        return true;
    bool is_changing = point->port.n_in_flight[REQUEST_WRITE] || port_load_above(node).n_in_flight;
    return is_changing && !MUTANT("keep-points-beside-writes");
}

// docs/ordering.md §18 (c).
static int make_durable(Fiber *self, KeptPoint *point)
{
    if (!may_lack_flush(point) || MUTANT("keep-points-durable-first"))
        return 0;
    Node *node = port_enter(self, &point->port, REQUEST_FLUSH);
    int r = node_flush(self, node);
    port_leave(&point->port, REQUEST_FLUSH);
    return r;
}

int keep_points_save(Fiber *self, const KeepPoints *keep, CopyChunk *chunk)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < keep->n; i++)
        r = fill(self, &keep->points[i], chunk);
    for (unsigned i = 0; r == 0 && i < keep->n; i++)
        r = make_durable(self, &keep->points[i]);
    return r;
}
