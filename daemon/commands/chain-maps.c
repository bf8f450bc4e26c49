// SPDX-License-Identifier: LGPL-2.1-or-later
// Control's table says which layers there are; the nodes' loop looks at their metadata meanwhile
// others work. Control loop.
#include "chain-maps.h"

#include <string.h>

#include "chain-core/chain-map.h"
#include "chain-core/remote-call.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"
#include "held-chain.h"

enum { DEFAULT_PARTS = 256, MAX_PARTS = 4096 }; // a screen; a picture

static const QmpType parts_count = {
    .name = "int",
    .kind = QMP_INT,
    .min = 1,
    .max = MAX_PARTS,
    .expected = "1..4096",
};
static const QmpType counts_type = {.kind = QMP_ARRAY, .element = &qmp_int};
static const QmpType layer_type = {
    .name = "ChainMapLayer",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node-name", &qmp_str, .doc = "the layer"},
                                   {"data", &qmp_int, .doc = "bytes that it has itself"},
                                   {"shown", &qmp_int,
                                    .doc = "of these, seen at the top: no layer above has "
                                           "anything there"},
                                   {"parts", &counts_type,
                                    .doc = "bytes that are seen of it in each part of the disk"},
                                   {0}},
};
static const QmpType layers_type = {.kind = QMP_ARRAY, .element = &layer_type};
static const QmpType map_type = {
    .name = "ChainMap",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"size", &qmp_int, .doc = "of the disk"},
                                   {"part-size", &qmp_int,
                                    .doc = "of each part; the last one may be cut off"},
                                   {"layers", &layers_type, .doc = "from the top down"},
                                   {0}},
};
static const QmpType map_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"device", &qmp_str, .doc = "the top node of the chain"},
                                   {"parts", &parts_count, true,
                                    "into how many parts the disk is divided at most; 256"},
                                   {0}},
};

typedef struct MapCall {
    HeldChain chain;
    unsigned max_parts, n_parts;
    uint64_t size, part_bytes;
    ChainMapLayer *layers;
    int result;
} MapCall;

static void map_on_loop(Fiber *self, void *arg)
{
    MapCall *map = arg;
    Node *const *nodes = map->chain.nodes;
    unsigned n = map->chain.n;
    map->size = nodes[n - 1]->size_bytes;
    map->part_bytes = chain_map_part_bytes(nodes, n, map->max_parts);
    uint64_t largest = 0;
    for (unsigned i = 0; i < n; i++)
        largest = MAX(largest, nodes[i]->size_bytes);
    map->n_parts = (unsigned)((largest + map->part_bytes - 1) / map->part_bytes);
    map->layers = g_new0(ChainMapLayer, n);
    for (unsigned i = 0; i < n; i++)
        map->layers[i].parts = g_new0(uint64_t, map->n_parts);
    map->result = chain_map(self, nodes, n, map->part_bytes, map->layers);
}

static json_t *describe_layer(const MapCall *map, unsigned i)
{
    const ChainMapLayer *layer = &map->layers[i];
    uint64_t n_shown = (map->size + map->part_bytes - 1) / map->part_bytes;
    json_t *parts = json_array();
    for (unsigned p = 0; p < n_shown; p++)
        json_array_append_new(parts, json_integer((json_int_t)layer->parts[p]));
    return json_pack("{s:s, s:I, s:I, s:o}", "node-name", map->chain.names[i], "data",
                     (json_int_t)layer->data_bytes, "shown", (json_int_t)layer->shown_bytes,
                     "parts", parts);
}

static json_t *describe(const MapCall *map)
{
    json_t *layers = json_array();
    for (unsigned i = map->chain.n; i-- > 0;)
        json_array_append_new(layers, describe_layer(map, i));
    return json_pack("{s:I, s:I, s:o}", "size", (json_int_t)map->size, "part-size",
                     (json_int_t)map->part_bytes, "layers", layers);
}

static void map_clear(MapCall *map)
{
    for (unsigned i = 0; map->layers && i < map->chain.n; i++)
        g_free(map->layers[i].parts);
    g_free(map->layers);
}

static int query_chain_map(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                           GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    const char *device = qmp_args_str(args, "device");
    MapCall map = {.max_parts = (unsigned)qmp_args_int(args, "parts", DEFAULT_PARTS)};
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    int r = held_chain_begin(self, nodes, device, "map", &map.chain, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    if (r == 0 && !map.chain.n)
        r = qmp_fail(error, "Node '%s' has no layers", device);
    if (r == 0 && remote_call_fiber_reserve(self, map.chain.loop, map_on_loop, &map) < 0)
        r = qmp_fail(error, "No memory for a fiber's stack");
    if (r == 0 && map.result < 0)
        r = qmp_fail(error, "Failed to read the tables of the chain of '%s': %s", device,
                     g_strerror(-map.result));
    if (r == 0)
        *ret_reply = describe(&map);
    map_clear(&map);
    held_chain_end(self, nodes, &map.chain);
    return r;
}

static const QmpCommand commands[] = {
    {"query-chain-map", &map_args, &map_type,
     "Which layer of a chain owns what, in the large: of each part of the disk, how many bytes of "
     "what is seen come from which layer. From metadata only.",
     query_chain_map, .is_query = true},
    {0},
};

const QmpFamily qmp_chain_maps_family = {.title = "Maps", .commands = commands};
