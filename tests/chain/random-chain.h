// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: chains of qcow2 images of all kinds (and raw ones at the bottom), of random sizes and
// with random content, on the simulation.
#pragma once

#include "../node/on-sim.h"
#include "chain-core/chain.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-create.h"

enum { MAX_LAYERS = 5, CELL = 512, MAX_BYTES = 3 << 20 };

typedef struct Chain {
    GRand *random;
    MapMemory *memory;
    Node *layers[MAX_LAYERS]; // from the top
    unsigned n_layers;
} Chain;

static inline uint64_t below(Chain *c, uint64_t bound)
{
    return g_rand_int(c->random) % bound;
}

static inline Node *open_image(Fiber *self, Chain *c, const char *path, const char *format)
{
    LayerOptions options = {.format = format, .memory = c->memory};
    Layer *layer;
    Node *node = NULL;
    g_autoptr(GError) error = NULL;
    if (layer_open(self, path, &options, &layer, &error) < 0 ||
        layer_load(self, layer, &node, &error) < 0)
        g_error("%s", error->message);
    layer_drop(self, layer);
    return node;
}

static inline Node *make_layer(Fiber *self, Chain *c, unsigned i, bool is_base)
{
    g_autofree char *path = g_strdup_printf("/layer-%u", i);
    uint64_t size = below(c, 3) ? MAX_BYTES : (1 + below(c, MAX_BYTES / CELL)) * CELL;
    if (is_base && below(c, 2)) {
        File *file;
        fiber_assert_equal(file_open(self, path, FILE_WRITABLE | FILE_CREATE, &file, NULL), 0);
        fiber_assert_equal(file_truncate(self, file, size), 0);
        file_close(self, file);
        return open_image(self, c, path, "raw");
    }
    Qcow2CreateOptions options = {
        .size_bytes = size, .version = below(c, 4) ? 3 : 2, .cluster_bytes = 512u << below(c, 8)};
    if (options.version == 3 && below(c, 3) == 0) {
        options.extended_l2 = true;
        options.cluster_bytes = 16384u << below(c, 2);
    }
    fiber_assert_equal(qcow2_create(self, path, &options, NULL), 0);
    return open_image(self, c, path, "qcow2");
}

static inline void write_layer(Fiber *self, Chain *c, Node *node)
{
    static const uint8_t data[64 * CELL] = {1};
    for (unsigned n = (unsigned)below(c, 20); n; n--) {
        uint64_t most = below(c, 4) ? 64 : 1;
        uint64_t len = MIN((1 + below(c, most)) * CELL, node->size_bytes);
        uint64_t off = below(c, (node->size_bytes - len) / CELL + 1) * CELL;
        int r = below(c, 4) ? node_write(self, node, guest_off(off), data, len, 0)
                            : node_zero(self, node, guest_off(off), len, 0);
        fiber_assert_equal(r, 0);
    }
}

static inline void make_chain(Fiber *self, Chain *c, uint64_t seed)
{
    *c = (Chain){.random = g_rand_new_with_seed((guint32)seed)};
    c->memory = map_memory_new(below(c, 2) ? 64 << 10 : 16 << 20);
    c->n_layers = 2 + (unsigned)below(c, MAX_LAYERS - 1);
    for (unsigned i = c->n_layers; i-- > 0;) {
        Node *lower = i + 1 < c->n_layers ? c->layers[i + 1] : NULL;
        Node *node = make_layer(self, c, i, !lower);
        if (lower)
            chain_set_backing(self, node, lower, c->memory);
        write_layer(self, c, node);
        c->layers[i] = node;
    }
}

static inline void free_chain(Fiber *self, Chain *c)
{
    for (unsigned i = 0; i < c->n_layers; i++)
        node_unref_close(self, c->layers[i]);
    for (unsigned i = 0; i < c->n_layers; i++) {
        g_autofree char *path = g_strdup_printf("/layer-%u", i);
        file_unlink(self, path, NULL);
    }
    map_memory_free(c->memory);
    g_rand_free(c->random);
}
