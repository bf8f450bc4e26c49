// SPDX-License-Identifier: LGPL-2.1-or-later
// Making, opening and checking the model's chains. In fibers of a simulation.
#include "fixture.h"

#include <string.h>

#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2-snapshot.h"
#include "chain-core/qcow2.h"

enum { MAX_MEMORY = 32 << 20 };

// What the layers above the base have at the beginning, in whole clusters or to the disk's end.
typedef struct Content {
    unsigned n_layers, layer;
    uint64_t off, len;
} Content;
static const Content contents[] = {
    {2, 1, 4 * CLUSTER, CLUSTER},     {2, 1, TABLE_BYTES - CLUSTER, CLUSTER},
    {3, 1, 4 * CLUSTER, 2 * CLUSTER}, {3, 1, TABLE_BYTES - 2 * CLUSTER, 2 * CLUSTER - CELL},
    {3, 2, 4 * CLUSTER, CLUSTER},     {3, 2, TABLE_BYTES - CLUSTER, CELL},
};

void layer_name(char path[16], unsigned number)
{
    g_snprintf(path, 16, "/layer-%u", number);
}

// --- opening -------------------------------------------------------------------------------------

int chain_open_layer(Fiber *self, const Chain *chain, unsigned number, Node **ret_node,
                     GError **error)
{
    char path[16];
    layer_name(path, number);
    LayerOptions options = {.memory = chain->memory, .format = "qcow2"};
    Layer *layer = NULL;
    int r = layer_open(self, path, &options, &layer, error);
    if (r == 0)
        r = layer_load(self, layer, ret_node, error);
    layer_drop(self, layer);
    return r;
}

int chain_begin(Fiber *self, const World *world, unsigned top, bool has_overlays, Chain *ret_chain,
                GError **error)
{
    char path[16];
    Chain *chain = ret_chain;
    *chain = (Chain){.world = world, .memory = map_memory_new(MAX_MEMORY), .top = top};
    layer_name(path, top);
    LayerOptions options = {.memory = chain->memory, .format = "qcow2"};
    int r = chain_open(self, path, &options, &chain->head, NULL, error);
    if (r == 0)
        port_init(&chain->port, chain->head, "model");
    for (unsigned i = 0; r == 0 && has_overlays && i < MAX_OVERLAYS; i++)
        r = chain_open_layer(self, chain, world->n_layers + i, &chain->overlays[i], error);
    if (r < 0)
        chain_end(self, chain);
    return r;
}

void chain_end(Fiber *self, Chain *chain)
{
    if (chain->port.node)
        port_done(self, &chain->port);
    node_unref_close(self, chain->head);
    for (unsigned i = 0; i < MAX_OVERLAYS; i++)
        node_unref_close(self, chain->overlays[i]);
    map_memory_free(chain->memory);
}

Node *chain_layer(const Chain *chain, unsigned number)
{
    char path[16];
    Node *node = chain->head;
    layer_name(path, number);
    while (!g_str_equal(node->name, path))
        node = chain_backing(node);
    return node;
}

// --- checking ------------------------------------------------------------------------------------

// The first that is not about a leak.
static const char *first_message(const Qcow2CheckResult *result)
{
    for (guint i = 0; result->messages && i < result->messages->len; i++)
        if (!strstr(result->messages->pdata[i], "leaked"))
            return result->messages->pdata[i];
    return "cannot be checked";
}

// Byte 79 of the header holds the first incompatible bits; 1 is "dirty".
static bool is_dirty(Fiber *self, File *file)
{
    uint8_t bits = 0;
    return file_read(self, file, host_off(79), &bits, 1) == 0 && bits & 1;
}

char *layer_check(Fiber *self, unsigned number)
{
    char path[16], *problem = NULL;
    Qcow2CheckResult result = {0};
    File *file = NULL;
    layer_name(path, number);
    int r = file_open(self, path, 0, &file, NULL);
    if (r == 0 && !is_dirty(self, file))
        r = qcow2_check(self, file, 0, &result, NULL);
    if (r < 0 || result.n_corruptions + result.n_check_errors > 0)
        problem = g_strdup_printf("%s: %s", path, first_message(&result));
    qcow2_check_result_clear(&result);
    file_close(self, file);
    return problem;
}

// --- the beginning -------------------------------------------------------------------------------

static void create_layer(Fiber *self, const World *world, unsigned number)
{
    char path[16], below[16];
    layer_name(path, number);
    layer_name(below, number - 1);
    Qcow2CreateOptions options = {.size_bytes = world->size_bytes, .cluster_bytes = CLUSTER};
    if (number != TARGET_LAYER) {
        options.backing_name = below + 1;
        options.backing_format = number == 1 ? "raw" : "qcow2";
    }
    g_assert(qcow2_create(self, path, &options, NULL) == 0);
}

static void add_stored_bitmap(Fiber *self, Node *node)
{
    DirtyBitmapSpec spec = {
        .name = "p", .node_name = "head", .granularity_bits = 9, .is_persistent = true};
    DirtyBitmap *bitmap;
    uint8_t data[CELL];
    g_assert(dirty_bitmap_add(node, &spec, &bitmap, NULL) == 0);
    g_assert(node_read(self, node, guest_off(DIRTY_OFF), data, CELL) == 0);
    g_assert(node_write(self, node, guest_off(DIRTY_OFF), data, CELL, 0) == 0);
}

static void fill_layer(Fiber *self, const World *world, unsigned number)
{
    char path[16];
    layer_name(path, number);
    MapMemory *memory = map_memory_new(MAX_MEMORY);
    LayerOptions options = {.memory = memory, .format = "qcow2"};
    Node *node;
    g_assert(chain_open(self, path, &options, &node, NULL, NULL) == 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(contents); i++) {
        const Content *c = &contents[i];
        uint8_t data[2 * CLUSTER];
        if (c->n_layers != world->n_layers || c->layer != number)
            continue;
        uint32_t version = shadow_model_set_initial(world->model, SHADOW_DATA, c->off, c->len);
        shadow_model_fill(world->model, version, c->off, data, c->len);
        g_assert(node_write(self, node, guest_off(c->off), data, c->len, 0) == 0);
    }
    if (world->n_layers == 2) {
        add_stored_bitmap(self, node);
        g_assert(qcow2_snapshot_create(self, node, "old", NULL, NULL) == 0);
    }
    g_assert(node_flush(self, node) == 0);
    node_unref_close(self, node);
    map_memory_free(memory);
}

static void make_layers(Fiber *self, void *arg)
{
    const World *world = arg;
    for (unsigned i = 1; i < world->n_layers + MAX_OVERLAYS; i++)
        create_layer(self, world, i);
    create_layer(self, world, TARGET_LAYER);
    for (unsigned i = 1; i < world->n_layers; i++)
        fill_layer(self, world, i);
}

World *world_new(unsigned n_layers)
{
    static SimChooser plain;
    World *world = g_new0(World, 1);
    world->n_layers = n_layers;
    // Of three layers the disk ends in the middle of a cluster, and growing takes one more table.
    world->size_bytes = n_layers == 2 ? 2 * TABLE_BYTES : TABLE_BYTES - CELL;
    world->model = shadow_model_new(MAX_DISK_BYTES, CELL);
    uint32_t version = shadow_model_set_initial(world->model, SHADOW_DATA, 0, world->size_bytes);
    shadow_model_set_initial_size(world->model, world->size_bytes);
    // The base goes on behind the disk's end.
    g_autofree uint8_t *content = g_malloc(MAX_DISK_BYTES);
    shadow_model_fill(world->model, version, 0, content, MAX_DISK_BYTES);
    world->sim = sim_new(&(SimConfig){.seed = 1});
    sim_write_file(world->sim, "/layer-0", content, MAX_DISK_BYTES);
    sim_set_chooser(world->sim, &plain);
    g_assert(sim_run(world->sim, make_layers, world));
    return world;
}

void world_free(World *world)
{
    sim_free(world->sim);
    shadow_model_free(world->model);
    g_free(world);
}
