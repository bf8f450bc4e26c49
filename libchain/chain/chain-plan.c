// SPDX-License-Identifier: LGPL-2.1-or-later
// One sweep over all layers side by side, from one change of what a layer has to the next. On the
// chain's loop, in a fiber.
#include "chain-core/chain-plan.h"

#include <errno.h>

#include "chain-core/node-fill.h"

enum { STEPS_AT_ONCE = 512 }; // then others get their turn

// Counts whole granules that ranges, in ascending order, touch.
typedef struct GranuleCount {
    uint64_t granule, end; // counted up to there
    uint64_t n;
} GranuleCount;

static void count_granules(GranuleCount *c, uint64_t off, uint64_t end)
{
    uint64_t first = MAX(off / c->granule, c->end);
    uint64_t last = (end + c->granule - 1) / c->granule;
    if (last <= first)
        return;
    c->n += last - first;
    c->end = last;
}

// One layer: what it has at the place of the sweep, and what it would cost if it stayed.
typedef struct Track {
    Node *node;
    uint64_t end; // so far it has that
    NodeExtentKind kind;
    NodeExtentKind below; // what the layers below it show
    uint64_t commit_bytes;
    GranuleCount stream;                     // what a fill moves
    GranuleCount commit_space, stream_space; // clusters
    GranuleCount commit_tables, stream_tables;
} Track;

// How much of the disk one table tells of. A layer that is no image has none.
static uint64_t table_reach(Node *node)
{
    uint64_t cluster = node->preferred_bytes;
    bool has_subclusters = node_fill_granularity(node) < cluster;
    return MAX(cluster / (has_subclusters ? 16 : 8) * cluster, cluster);
}

static void track_init(Track *t, Node *node)
{
    uint64_t cluster = node->preferred_bytes, reach = table_reach(node);
    *t = (Track){
        .node = node,
        .stream.granule = MIN(node_fill_granularity(node), cluster),
        .commit_space.granule = cluster,
        .stream_space.granule = cluster,
        .commit_tables.granule = reach,
        .stream_tables.granule = reach,
    };
}

// A layer shorter than others shows zeros past its end.
static int track_look(Fiber *self, Track *t, uint64_t off, uint64_t end)
{
    uint64_t size = t->node->size_bytes, len;
    if (off >= size) {
        t->kind = NODE_EXTENT_ZERO;
        t->end = end;
        return 0;
    }
    int r = node_find_kind(self, t->node, guest_off(off), MIN(end, size) - off, &t->kind, &len);
    t->end = off + len;
    return r;
}

static NodeExtentKind over(NodeExtentKind upper, NodeExtentKind lower)
{
    return upper != NODE_EXTENT_BELOW ? upper : lower;
}

// [off, end) is of one kind in each layer.
static void count_range(Track *tracks, unsigned n, uint64_t off, uint64_t end)
{
    NodeExtentKind below = NODE_EXTENT_BELOW, above = NODE_EXTENT_BELOW;
    for (unsigned i = 0; i < n; i++) {
        tracks[i].below = below;
        below = over(tracks[i].kind, below);
    }
    for (unsigned i = n; i-- > 0;) {
        Track *t = &tracks[i];
        if (above == NODE_EXTENT_DATA) {
            t->commit_bytes += end - off;
            if (t->kind != NODE_EXTENT_DATA) {
                count_granules(&t->commit_space, off, end);
                count_granules(&t->commit_tables, off, end);
            }
        } else if (over(above, t->kind) == NODE_EXTENT_BELOW && t->below == NODE_EXTENT_DATA) {
            count_granules(&t->stream, off, end);
            count_granules(&t->stream_space, off, end);
            count_granules(&t->stream_tables, off, end);
        }
        above = over(above, t->kind);
    }
}

static int sweep(Fiber *self, Track *tracks, unsigned n, uint64_t size)
{
    unsigned steps = 0;
    for (uint64_t off = 0, end; off < size; off = end) {
        end = size;
        for (unsigned i = 0; i < n; i++) {
            int r = tracks[i].end > off ? 0 : track_look(self, &tracks[i], off, size);
            if (r < 0)
                return r;
            end = MIN(end, tracks[i].end);
        }
        count_range(tracks, n, off, end);
        if (++steps % STEPS_AT_ONCE == 0 && fiber_sleep(self, 0) < 0)
            return -ECANCELED;
    }
    return 0;
}

// What of them lies before `size`; the last one may reach beyond.
static uint64_t granule_bytes(const GranuleCount *c, uint64_t size)
{
    uint64_t end = c->end * c->granule;
    return c->n * c->granule - (end > size ? end - size : 0);
}

// Clusters, the tables that name them, and the blocks that count all of it (16 bits each).
static uint64_t space_of(const Track *t, const GranuleCount *clusters, const GranuleCount *tables)
{
    uint64_t cluster = clusters->granule, n = clusters->n;
    if (t->node->ops->fill && n) {
        n += tables->n;
        n += n / (cluster / 2) + 1;
    }
    return n * cluster;
}

int chain_plan(Fiber *self, Node *const *layers, unsigned n_layers, ChainPlanCost *ret_costs)
{
    g_autofree Track *tracks = g_new(Track, n_layers);
    uint64_t size = 0;
    for (unsigned i = 0; i < n_layers; i++) {
        track_init(&tracks[i], layers[i]);
        size = MAX(size, layers[i]->size_bytes);
    }
    int r = sweep(self, tracks, n_layers, size);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < n_layers; i++) {
        const Track *t = &tracks[i];
        ret_costs[i] = (ChainPlanCost){
            .commit_bytes = t->commit_bytes,
            .stream_bytes = granule_bytes(&t->stream, t->node->size_bytes),
            .commit_space = space_of(t, &t->commit_space, &t->commit_tables),
            .stream_space = space_of(t, &t->stream_space, &t->stream_tables),
        };
    }
    return 0;
}
