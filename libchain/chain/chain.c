// SPDX-License-Identifier: LGPL-2.1-or-later
// Opens a chain in three steps: from the top down, since each image names the next, all files are
// opened and their headers read; then the layers are loaded, many at a time, and last the top, if
// it is to be written: a chain that is refused has not been touched. Then they are joined from the
// bottom up, so that no edge ever appears below a finished chain. In a fiber.
#include "chain-core/chain.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/fiber-sync.h"

enum { LOADS_AT_ONCE = 32 };

typedef struct Opening {
    GPtrArray *layers; // Layer, top first
    Node **nodes;      // of each layer; NULL: not loaded
    GError **errors;   // of each layer's load
    guint next_load;
    FiberWaitGroup loads;
    int result; // of the loads
} Opening;

static int open_layers(Fiber *self, Opening *o, const char *path, const LayerOptions *options,
                       GError **error)
{
    Layer *layer;
    int r = layer_open(self, path, options, &layer, error);
    while (r == 0 && layer) {
        g_ptr_array_add(o->layers, layer);
        r = layer_open_next(self, layer, &layer, error);
        if (r == 0 && layer && o->layers->len == CHAIN_MAX_LAYERS) {
            layer_drop(self, layer);
            r = error_set(error, -E2BIG,
                          "%s: the chain has more than %u layers; make it shorter with qemu-img "
                          "commit or rebase",
                          path, CHAIN_MAX_LAYERS);
        }
    }
    return r;
}

static void load_one(Fiber *self, Opening *o, guint i)
{
    int r = layer_load(self, o->layers->pdata[i], &o->nodes[i], &o->errors[i]);
    if (r < 0 && o->result == 0)
        o->result = r;
}

static void load_some(Fiber *self, Opening *o)
{
    while (o->result == 0 && o->next_load < o->layers->len)
        load_one(self, o, o->next_load++);
}

static void load_fiber(Fiber *self, void *arg)
{
    Opening *o = arg;
    load_some(self, o);
    fiber_wait_group_done(&o->loads);
}

static int load_layers(Fiber *self, Opening *o, GError **error)
{
    guint n = o->layers->len;
    bool is_writable = layer_is_writable(o->layers->pdata[0]);
    o->nodes = g_new0(Node *, n);
    o->errors = g_new0(GError *, n);
    o->next_load = is_writable;
    for (guint i = 1; i < MIN(n, LOADS_AT_ONCE); i++) {
        fiber_wait_group_add(&o->loads, 1);
        if (fiber_spawn(fiber_loop(self), "load layer", load_fiber, o, NULL) < 0)
            fiber_wait_group_done(&o->loads);
    }
    load_some(self, o);
    fiber_wait_group_wait(self, &o->loads);
    if (o->result == 0 && is_writable)
        load_one(self, o, 0);
    for (guint i = 0; i < n; i++) {
        if (o->errors[i] && error && !*error)
            g_propagate_error(error, g_steal_pointer(&o->errors[i]));
        g_clear_error(&o->errors[i]);
    }
    return o->result;
}

// Each node's reference passes to the merged map above it; the top's to the caller.
static Node *join_nodes(Fiber *self, Opening *o, MapMemory *memory)
{
    for (guint i = o->layers->len - 1; i > 0; i--) {
        chain_set_backing(self, o->nodes[i - 1], o->nodes[i], memory);
        node_unref_close(self, o->nodes[i]);
    }
    return o->nodes[0];
}

static void close_nodes(Fiber *self, Opening *o)
{
    for (guint i = 0; o->nodes && i < o->layers->len; i++)
        node_unref_close(self, o->nodes[i]);
}

int chain_open(Fiber *self, const char *path, const LayerOptions *options, Node **ret_node,
               ChainInfo *ret_info, GError **error)
{
    Opening o = {.layers = g_ptr_array_new()};
    int r = open_layers(self, &o, path, options, error);
    if (r == 0)
        r = load_layers(self, &o, error);
    if (r < 0)
        close_nodes(self, &o);
    else
        *ret_node = join_nodes(self, &o, options->memory);
    if (r == 0 && ret_info)
        *ret_info = (ChainInfo){o.layers->len, layer_format(o.layers->pdata[0])};
    for (guint i = 0; i < o.layers->len; i++)
        layer_drop(self, o.layers->pdata[i]);
    g_ptr_array_unref(o.layers);
    g_free(o.nodes);
    g_free(o.errors);
    return r;
}
