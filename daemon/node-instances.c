// SPDX-License-Identifier: LGPL-2.1-or-later
// Opening and closing instances. Whether one is used is not counted but seen: a user of the node
// lives on that loop, or has an instance there itself.
#include "node-instances.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"
#include "node-names.h"

struct NodeInstance {
    Loop *loop;
    NodeOrigin *origin; // for its events, which come on that loop
    GArray *opened;     // ChainNode; the first is the node
};

Node *node_instance_node(const NodeInstance *instance)
{
    return g_array_index(instance->opened, ChainNode, 0).node;
}

static NodeInstance *find(const NamedNode *named, const Loop *loop)
{
    for (guint i = 0; named->instances && i < named->instances->len; i++) {
        NodeInstance *instance = named->instances->pdata[i];
        if (instance->loop == loop)
            return instance;
    }
    return NULL;
}

Node *node_instances_get(const NamedNode *named, const Loop *loop)
{
    if (named_node_loop(named) == loop)
        return named->node;
    const NodeInstance *instance = find(named, loop);
    return instance ? node_instance_node(instance) : NULL;
}

Node *node_instances_nth(const NamedNode *named, unsigned n)
{
    if (n == 0)
        return named->node;
    return named->instances && n <= named->instances->len
               ? node_instance_node(named->instances->pdata[n - 1])
               : NULL;
}

Node *node_instances_find(void *arg, const char *name)
{
    const NodeFinder *finder = arg;
    const NamedNode *named = g_hash_table_lookup(finder->by_name, name);
    return named ? node_instances_get(named, finder->loop) : NULL;
}

// A view on an internal snapshot may share its image with a head that is written.
static bool is_possible_alone(const NamedNode *named)
{
    if (!named->config || !named->facts.read_only || named->is_inactive ||
        driver_value_str(named->config->values, "snapshot", NULL))
        return false;
    for (guint i = 0; i < named->users->len; i++)
        if (((const NodeUse *)named->users->pdata[i])->writes)
            return false;
    return named->driver->is_file || named->driver->open;
}

bool node_instances_are_possible(const NamedNode *named)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new();
    g_ptr_array_add(all, (gpointer)named);
    for (guint i = 0; i < all->len; i++) {
        named = all->pdata[i];
        // What a header names is opened again with the image, whose description says enough.
        bool is_described = named->config || i > 0;
        if (!named->facts.read_only || !is_described ||
            (named->config && !is_possible_alone(named)))
            return false;
        for (guint c = 0; c < named->children->len; c++)
            g_ptr_array_add(all, ((const NodeUse *)named->children->pdata[c])->used);
    }
    return true;
}

// --- opening -------------------------------------------------------------------------------------

typedef struct Opening {
    const NodeFinder *finder;
    const NodeConfig *config;
    NodeInstance *instance;
    int result;
    GError *error;
} Opening;

static void open_on_loop(Fiber *self, void *arg)
{
    Opening *o = arg;
    LayerOptions options = {
        .read_only =
            true, // as the node is, perhaps since it has an overlay, whatever it was made of
        .find_node = node_instances_find,
        .find_arg = (void *)o->finder,
        .memory = o->finder->memory,
        .events = &o->instance->origin->events,
        .file_event = node_origin_file_event,
        .file_event_arg = o->instance->origin,
    };
    o->result = chain_open_nodes(self, o->config, &options, &o->instance->opened, &o->error);
}

static NodeInstance *instance_new(const NamedNode *named, Loop *loop)
{
    const NodeOrigin *origin = named->origin;
    NodeInstance *instance = g_new0(NodeInstance, 1);
    instance->loop = loop;
    instance->origin = node_origin_new(origin->label, NULL, origin->emit, origin->emit_arg);
    instance->origin->name = g_strdup(named->name);
    return instance;
}

static int open_one(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error)
{
    Opening o = {.finder = finder, .config = named->config};
    o.instance = instance_new(named, finder->loop);
    int r = remote_call_fiber_reserve(self, finder->loop, open_on_loop, &o);
    if (r < 0)
        qmp_fail(&o.error, "'%s' cannot be opened: no memory for a fiber's stack", named->name);
    else
        r = o.result;
    if (r < 0) {
        if (o.error)
            g_propagate_error(error, o.error);
        else
            qmp_fail(error, "'%s' cannot be opened: %s", named->name, g_strerror(-r));
        node_origin_unref(o.instance->origin);
        g_free(o.instance);
        return r;
    }
    if (!named->instances)
        named->instances = g_ptr_array_new();
    g_ptr_array_add(named->instances, o.instance);
    return 0;
}

// What descriptions name comes behind those who name it, also when several do.
static int collect_named(const NodeFinder *finder, NamedNode *named, GPtrArray *all, GError **error)
{
    g_ptr_array_add(all, named);
    for (guint i = 0; i < all->len; i++) {
        const NamedNode *n = all->pdata[i];
        g_autoptr(GPtrArray) used = g_ptr_array_new();
        int r = node_names_find_used(finder->by_name, n->config, used, error);
        if (r < 0)
            return r;
        for (guint u = 0; u < used->len; u++) {
            guint before;
            if (g_ptr_array_find(all, used->pdata[u], &before) && before > i)
                continue;
            if (g_ptr_array_find(all, used->pdata[u], &before)) {
                g_ptr_array_remove_index(all, before);
                i--;
            }
            g_ptr_array_add(all, used->pdata[u]);
        }
    }
    return 0;
}

int node_instances_open(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new();
    int r = collect_named(finder, named, all, error);
    for (guint i = all->len; r == 0 && i-- > 0;) {
        NamedNode *n = all->pdata[i];
        if (!node_instances_get(n, finder->loop))
            r = open_one(self, finder, n, error);
    }
    return r;
}

// --- closing -------------------------------------------------------------------------------------

static void close_on_loop(Fiber *self, void *arg)
{
    chain_nodes_close(self, ((NodeInstance *)arg)->opened);
}

static bool is_used(const NamedNode *named, const NodeInstance *instance)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->opened_on == instance->loop ||
            (use->by && use->by->node && node_instances_get(use->by, instance->loop)))
            return true;
    }
    return false;
}

static NodeInstance *take(NamedNode *named, NodeInstance *instance)
{
    g_ptr_array_remove_fast(named->instances, instance);
    if (!named->instances->len)
        g_clear_pointer(&named->instances, g_ptr_array_unref);
    return instance;
}

NodeInstance *node_instances_take_unused(NamedNode *named)
{
    for (guint i = 0; named->instances && i < named->instances->len; i++) {
        NodeInstance *instance = named->instances->pdata[i];
        if (!is_used(named, instance))
            return take(named, instance);
    }
    return NULL;
}

NodeInstance *node_instances_take(NamedNode *named, const Loop *loop)
{
    NodeInstance *instance = find(named, loop);
    return instance ? take(named, instance) : NULL;
}

int node_instance_close(Fiber *self, NodeInstance *instance)
{
    int r = remote_call_fiber_reserve(self, instance->loop, close_on_loop, instance);
    if (r == 0) {
        node_origin_unref(instance->origin);
        g_free(instance);
    }
    return r;
}
