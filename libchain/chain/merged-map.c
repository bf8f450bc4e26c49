// SPDX-License-Identifier: LGPL-2.1-or-later
// Reads find their region in the node's own table, its run by bisection, and start on the file that
// owns the data. A region that is missing is taken from the cache that all loops share, or built;
// requests that miss the same one wait for whoever builds it. On the chain's loop, in a fiber.
//
// A region found is used at once and never kept over a suspend point, where the table may drop it.
#include "chain/merged-map.h"

#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain/region-build.h"
#include "chain/region-cache.h"
#include "chain/region-table.h"

// A region under way, on the stack of the fiber that loads it.
typedef struct Load Load;
struct Load {
    uint64_t number;
    FiberQueue waiters;
    Load *next;
};

typedef struct MergedMap {
    Node node;
    MapMemory *memory;
    MapLayer *layers; // NULL until collected
    unsigned n_layers;
    RegionSet *set;
    RegionTable table;
    Load *loads;
} MergedMap;

enum { MAX_LAYERS = 60000 }; // a run's layer number has 16 bits; deeper is read through a barrier

static atomic_uint_fast64_t n_unshared; // makes identities for layers that have none

static Node *layer_below(const Node *node)
{
    Node *below = node->backing;
    while (below && below->ops->covers_below)
        below = below->backing;
    return below;
}

static NodeIdentity layer_identity(const MapLayer *layer)
{
    static const NodeIdentity none;
    NodeIdentity identity = layer->node->identity;
    if (!layer->is_barrier && memcmp(&identity, &none, sizeof none) != 0) {
        identity.ops = layer->node->ops;
        identity.size_bytes = layer->node->size_bytes;
        return identity;
    }
    return (NodeIdentity){.view = atomic_fetch_add(&n_unshared, 1) + 1};
}

static void collect_layers(MergedMap *m)
{
    g_autoptr(GArray) layers = g_array_new(FALSE, FALSE, sizeof(MapLayer));
    g_autoptr(GArray) identities = g_array_new(FALSE, FALSE, sizeof(NodeIdentity));
    for (Node *n = layer_below(&m->node); n; n = layer_below(n)) {
        MapLayer layer = {.node = n, .file = node_file(n)};
        layer.is_barrier = n->ops->is_filter || !n->read_only || layers->len + 1 == MAX_LAYERS;
        NodeIdentity identity = layer_identity(&layer);
        g_array_append_val(layers, layer);
        g_array_append_val(identities, identity);
        if (layer.is_barrier)
            break;
    }
    m->n_layers = layers->len;
    m->layers = g_memdup2(layers->data, layers->len * sizeof(MapLayer));
    m->set =
        region_set_get(region_cache_get(m->memory), (NodeIdentity *)identities->data, m->n_layers);
}

// Drained: nobody waits for a region.
static void forget_layers(MergedMap *m)
{
    g_assert(!m->loads);
    region_table_clear(&m->table);
    region_set_unref(m->set);
    g_free(m->layers);
    m->set = NULL;
    m->layers = NULL;
    m->n_layers = 0;
}

static void merged_below_changed(Node *node)
{
    forget_layers((MergedMap *)node);
    node->size_bytes = node->backing->size_bytes;
}

static const NodeOps merged_ops;

// The map that a layer had when it was the head: the same layers from the next one on. It may
// answer only if both see the same layers.
static MergedMap *map_below(const MergedMap *m, unsigned layer)
{
    const MapLayer *above = &m->layers[layer];
    Node *below = above->is_barrier ? NULL : above->node->backing;
    MergedMap *b = below && below->ops == &merged_ops ? (MergedMap *)below : NULL;
    return b && b->layers && b->n_layers + layer + 1 == m->n_layers ? b : NULL;
}

// What the nearest map below that knows the region says of it, with a reference, and how many
// layers lie above that. It leaves that map where nobody but those above it can reach it any more.
static Region *take_region_below(const MergedMap *m, uint64_t number, uint32_t len,
                                 unsigned *ret_n_above)
{
    for (unsigned i = 0; i < m->n_layers; i++) {
        MergedMap *b = map_below(m, i);
        Region *region = b ? region_set_find(b->set, number) : NULL;
        if (!region)
            continue;
        if (region->len != len) {
            region_unref(region);
            return NULL;
        }
        const Node *above = m->layers[i].node;
        if (above->ports->len == 0 && above->parents->len == 1)
            region_table_drop(&b->table, number);
        *ret_n_above = i + 1;
        return region;
    }
    return NULL;
}

static int build(Fiber *self, MergedMap *m, uint64_t number, Region **ret_region)
{
    Region *region = region_set_find(m->set, number);
    if (!region) {
        uint64_t len = MIN(m->node.size_bytes - (number << REGION_BITS), REGION_BYTES);
        RegionPlan plan = {m->layers, m->n_layers, number, (uint32_t)len, NULL};
        Region *below = take_region_below(m, number, plan.len, &plan.n_layers);
        plan.below = below;
        int r = region_build(self, &plan, m->memory, &region);
        if (below)
            region_unref(below);
        if (r < 0)
            return r;
        region = region_set_add(m->set, region);
    }
    *ret_region = region;
    return 0;
}

// Brings the region into the table. After 0 it is there, unless the caller had to wait in between;
// so callers look again.
static int load(Fiber *self, MergedMap *m, uint64_t number)
{
    if (!m->layers)
        collect_layers(m);
    for (Load *other = m->loads; other; other = other->next) {
        if (other->number == number)
            return fiber_queue_wait(self, &other->waiters, false, "chain map: region");
    }

    Load own = {.number = number, .next = m->loads};
    m->loads = &own;
    Region *region;
    int r = build(self, m, number, &region);
    if (r == 0)
        r = region_table_insert(&m->table, region);
    Load **at = &m->loads;
    while (*at != &own)
        at = &(*at)->next;
    *at = own.next;
    fiber_queue_wake_all(&own.waiters);
    return r;
}

// The region that holds `off`, valid until the caller suspends.
static inline int find_region(Fiber *self, MergedMap *m, GuestOff off, const Region **ret_region)
{
    uint64_t number = off.v >> REGION_BITS;
    const Region *region;
    while (!(region = region_table_find(&m->table, number))) {
        int r = load(self, m, number);
        if (r < 0)
            return r;
    }
    *ret_region = region;
    return 0;
}

static int merged_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                             IoBatch *batch)
{
    MergedMap *m = (MergedMap *)node;
    while (len > 0) {
        const Region *region;
        int r = find_region(self, m, off, &region);
        if (r < 0)
            return r;
        uint32_t at = (uint32_t)(off.v & (REGION_BYTES - 1));
        const Run *run = region_find_run(region, at);
        size_t n = MIN(len, region_run_end(region, run) - at);
        const MapLayer *layer = &m->layers[run->layer];
        switch ((NodeExtentKind)run->kind) {
        case NODE_EXTENT_DATA:
            file_read_data_start(layer->file, host_off(run->host + (at - run->start)), buf, n,
                                 batch);
            break;
        case NODE_EXTENT_OPAQUE:
            r = node_read_start(self, layer->node, off, buf, n, batch);
            break;
        case NODE_EXTENT_BELOW:
        case NODE_EXTENT_ZERO:
        case NODE_EXTENT_ZERO_ALLOCATED:
            memset(buf, 0, n);
            break;
        }
        if (r < 0)
            return r;
        off.v += n;
        buf = (uint8_t *)buf + n;
        len -= n;
    }
    return 0;
}

static int merged_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    MergedMap *m = (MergedMap *)node;
    const Region *region;
    int r = find_region(self, m, off, &region);
    if (r < 0)
        return r;
    uint32_t at = (uint32_t)(off.v & (REGION_BYTES - 1));
    const Run *run = region_find_run(region, at);
    uint64_t n = region_run_end(region, run) - at;
    const MapLayer *layer = &m->layers[run->layer];
    *ret_extent = (NodeExtent){.len = MIN(len, n), .kind = run->kind, .depth = run->layer};
    if (run->kind == NODE_EXTENT_DATA) {
        ret_extent->file = layer->file;
        ret_extent->node = layer->node;
        ret_extent->host = host_off(run->host + (at - run->start));
    } else if (run->kind == NODE_EXTENT_OPAQUE) {
        ret_extent->node = layer->node;
    }
    return 0;
}

static bool region_may_have(const Region *region, uint32_t at, uint64_t len)
{
    const Run *run = region_find_run(region, at);
    return run->kind != NODE_EXTENT_BELOW || region_run_end(region, run) < at + len;
}

static bool merged_may_have(Node *node, GuestOff off, uint64_t len)
{
    MergedMap *m = (MergedMap *)node;
    if (!m->layers)
        collect_layers(m);
    uint64_t number = off.v >> REGION_BITS, last = (off.v + MAX(len, 1) - 1) >> REGION_BITS;
    const Region *region = number == last ? region_table_find(&m->table, number) : NULL;
    if (region)
        return region_may_have(region, (uint32_t)(off.v & (REGION_BYTES - 1)), len);
    for (unsigned i = 0; i < m->n_layers; i++) {
        Node *layer = m->layers[i].node;
        if (m->layers[i].is_barrier || !layer->ops->may_have || off.v + len > layer->size_bytes ||
            layer->ops->may_have(layer, off, len))
            return true;
    }
    return false;
}

static void merged_detach(Fiber *self, Node *node)
{
    MergedMap *m = (MergedMap *)node;
    g_assert(!m->loads);
    region_table_detach(self, &m->table);
}

static void merged_attach(Node *node)
{
    region_table_attach(&((MergedMap *)node)->table, node->loop);
}

static void merged_close(Fiber *self, Node *node)
{
    MergedMap *m = (MergedMap *)node;
    forget_layers(m);
    region_table_close(self, &m->table);
}

static const NodeOps merged_ops = {
    .driver = "merged",
    .covers_below = true,
    .read_start = merged_read_start,
    .map = merged_map,
    .may_have = merged_may_have,
    .below_changed = merged_below_changed,
    .detach = merged_detach,
    .attach = merged_attach,
    .close = merged_close,
};

Node *merged_map_new(Fiber *self, Node *below, MapMemory *memory)
{
    MergedMap *m = g_new0(MergedMap, 1);
    node_init(&m->node, &merged_ops, below->loop, below->name, below->size_bytes);
    m->node.read_only = true;
    m->node.preferred_bytes = below->preferred_bytes;
    m->memory = memory;
    region_table_init(&m->table, below->loop, memory);
    node_set_backing(self, &m->node, below);
    return &m->node;
}
