// SPDX-License-Identifier: LGPL-2.1-or-later
// Opens a chain in three steps: from the top down, since each image names the next, all files are
// opened and their headers read; then the layers are loaded, many at a time; then they are joined
// from the bottom up, so that no edge ever appears below a finished chain. What is to be written is
// loaded when all below it is there: a chain that is refused has not been touched. In a fiber.
#include "chain-core/chain.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/fiber-sync.h"

enum { LOADS_AT_ONCE = 32 };

// One step down the chain: a layer, or what a driver makes of the step below (a filter) or of
// nothing (the last step).
typedef struct Step {
    Layer *layer; // NULL: not a layer
    Node *beside; // an internal snapshot of its image is shown; borrowed. NULL: nothing of the kind
    const NodeConfig *config;
    const Driver *driver;
    Node *node; // NULL: not loaded
    GError *error;
} Step;

typedef struct Opening {
    const LayerOptions *options;
    GArray *steps; // Step, top first
    Layer *last;   // the lowest layer so far; NULL: none
    Node *base;    // that there was already, below the last step: borrowed; NULL: none
    guint next_load;
    FiberWaitGroup loads;
    int result; // of the loads
} Opening;

static Step *step_at(const Opening *o, guint i)
{
    return &g_array_index(o->steps, Step, i);
}

// -- from the top down ----------------------------------------------------------------------------

static int add_step(Opening *o, Step step, GError **error)
{
    g_array_append_val(o->steps, step); // also one too many: it is closed with the others
    if (step.layer)
        o->last = step.layer;
    if (o->steps->len <= CHAIN_MAX_LAYERS)
        return 0;
    const Layer *top = step_at(o, 0)->layer;
    return error_set(error, -E2BIG,
                     "%s: the chain has more than %u layers; make it shorter with qemu-img commit "
                     "or rebase",
                     top ? layer_path(top) : step_at(o, 0)->driver->name, CHAIN_MAX_LAYERS);
}

static int add_layer(Opening *o, Layer *layer, GError **error)
{
    return add_step(o, (Step){.layer = layer, .config = layer_config(layer)}, error);
}

// The image that is open already whose internal snapshot is to be shown: it is given as the file.
// NULL: none is.
static Node *find_beside(const Opening *o, const NodeConfig *config)
{
    const LayerOptions *options = o->options;
    const NodeConfigChild *file = node_config_child(config, "file");
    if (!file || !file->node || !options->find_node || !config->driver ||
        !driver_value_str(config->values, "snapshot", NULL))
        return NULL;
    Node *node = options->find_node(options->find_arg, file->node);
    return node && driver_find(node->ops->driver) == config->driver ? node : NULL;
}

static int open_step(Fiber *self, Opening *o, const NodeConfig *config, GError **error)
{
    const Driver *driver = config->driver;
    Node *beside = find_beside(o, config);
    if (beside && driver->open_beside)
        return add_step(o, (Step){.config = config, .driver = driver, .beside = beside}, error);
    if (driver && driver->make)
        return add_step(o, (Step){.config = config, .driver = driver}, error);
    Layer *layer;
    int r = o->last ? layer_open_described(self, o->last, config, &layer, error)
                    : layer_open_config(self, config, o->options, &layer, error);
    return r < 0 ? r : add_layer(o, layer, error);
}

// What the description says lies below; NULL: it says nothing.
static const NodeConfigChild *described_below(const Step *step)
{
    if (step->layer)
        return node_config_child(step->config, "backing");
    if (step->beside)
        return NULL;
    return step->config->n_children ? &step->config->children[0] : NULL;
}

static int use_base(Opening *o, const char *name, GError **error)
{
    const LayerOptions *options = o->options;
    o->base = options->find_node ? options->find_node(options->find_arg, name) : NULL;
    return o->base ? 0
                   : error_set(error, -ENODEV, "Cannot find device='' nor node-name='%s'", name);
}

// Goes on below the last step. 0 when that was the end, 1 when there is another step.
static int open_next(Fiber *self, Opening *o, GError **error)
{
    const Step *step = step_at(o, o->steps->len - 1);
    const NodeConfigChild *child = described_below(step);
    if (child && child->node)
        return use_base(o, child->node, error);
    if (child && child->config) {
        int r = open_step(self, o, child->config, error);
        return r < 0 ? r : 1;
    }
    if (child || !step->layer)
        return 0;
    Layer *layer;
    int r = layer_open_next(self, step->layer, &layer, error);
    if (r == 0 && layer)
        r = add_layer(o, layer, error);
    return r < 0 ? r : layer != NULL;
}

static int open_below(Fiber *self, Opening *o, int r, GError **error)
{
    while (r >= 0 && (r = open_next(self, o, error)) > 0)
        ;
    return r;
}

// -- loading and joining --------------------------------------------------------------------------

static bool is_loaded_last(const Step *step)
{
    return !step->layer || layer_is_writable(step->layer);
}

void chain_set_modes(Node *node, const NodeConfig *config)
{
    const char *discard = driver_value_str(config->values, "discard", "unmap");
    const char *zeroes = driver_value_str(config->values, "detect-zeroes", "off");
    node->ignores_discards = g_str_equal(discard, "ignore");
    node->zero_detection = g_str_equal(zeroes, "on")      ? NODE_ZEROES_ALLOCATED
                           : g_str_equal(zeroes, "unmap") ? NODE_ZEROES_UNMAPPED
                                                          : NODE_ZEROES_WRITTEN;
}

static int load_one(Fiber *self, Opening *o, Step *step)
{
    int r = layer_load(self, step->layer, &step->node, &step->error);
    if (r == 0)
        chain_set_modes(step->node, step->config);
    if (r < 0 && o->result == 0)
        o->result = r;
    return r;
}

static void load_some(Fiber *self, Opening *o)
{
    while (o->result == 0 && o->next_load < o->steps->len) {
        Step *step = step_at(o, o->next_load++);
        if (!is_loaded_last(step))
            load_one(self, o, step);
    }
}

static void load_fiber(Fiber *self, void *arg)
{
    Opening *o = arg;
    load_some(self, o);
    fiber_wait_group_done(&o->loads);
}

// All that can be loaded side by side.
static int load_layers(Fiber *self, Opening *o)
{
    for (guint i = 1; i < MIN(o->steps->len, LOADS_AT_ONCE); i++) {
        fiber_wait_group_add(&o->loads, 1);
        if (fiber_spawn(fiber_loop(self), "load layer", load_fiber, o, NULL) < 0)
            fiber_wait_group_done(&o->loads);
    }
    load_some(self, o);
    fiber_wait_group_wait(self, &o->loads);
    return o->result;
}

// Whether it lies below a layer, and is never written then.
static bool is_backing(const Opening *o, const Step *step)
{
    for (guint i = 0; step_at(o, i) != step; i++)
        if (step_at(o, i)->layer)
            return true;
    return false;
}

static int make_step(Fiber *self, Opening *o, Step *step, Node *below)
{
    if (step->beside) {
        const char *snapshot = driver_value_str(step->config->values, "snapshot", NULL);
        return step->driver->open_beside(self, step->beside, snapshot, &step->node, &step->error);
    }
    const LayerOptions *options = o->options;
    bool is_read_only = options->read_only || is_backing(o, step) ||
                        driver_value_bool(step->config->values, "read-only", false);
    DriverOptions made_of = {
        .name = driver_value_str(step->config->values, "node-name", step->driver->name),
        .is_writable = !is_read_only,
        .values = step->config->values,
        .memory = options->memory,
        .throttle_groups = options->throttle_groups,
        .events = options->events,
    };
    int r = step->driver->make(self, &made_of, below, &step->node, &step->error);
    if (r == 0)
        chain_set_modes(step->node, step->config);
    return r;
}

static int join_steps(Fiber *self, Opening *o)
{
    Node *below = o->base;
    for (guint i = o->steps->len; i-- > 0;) {
        Step *step = step_at(o, i);
        int r = 0;
        if (!step->layer)
            r = make_step(self, o, step, below);
        else if (!step->node)
            r = load_one(self, o, step);
        if (r < 0)
            return r;
        if (step->layer && below)
            chain_set_backing(self, step->node, below, o->options->memory);
        below = step->node;
    }
    return 0;
}

static void opening_done(Fiber *self, Opening *o)
{
    for (guint i = 0; i < o->steps->len; i++)
        node_unref_close(self, step_at(o, i)->node);
    for (guint i = 0; i < o->steps->len; i++) {
        layer_drop(self, step_at(o, i)->layer);
        g_clear_error(&step_at(o, i)->error);
    }
    g_array_unref(o->steps);
}

static int load_and_join(Fiber *self, Opening *o, GError **error)
{
    int r = load_layers(self, o);
    if (r == 0)
        r = join_steps(self, o);
    for (guint i = 0; r < 0 && i < o->steps->len; i++) {
        GError **of_step = &step_at(o, i)->error;
        if (!*of_step)
            continue;
        g_propagate_error(error, g_steal_pointer(of_step));
        break;
    }
    return r;
}

static void opening_init(Opening *o, const LayerOptions *options)
{
    *o = (Opening){.options = options, .steps = g_array_new(FALSE, TRUE, sizeof(Step))};
}

int chain_open(Fiber *self, const char *path, const LayerOptions *options, Node **ret_node,
               ChainInfo *ret_info, GError **error)
{
    Opening o;
    opening_init(&o, options);
    Layer *layer;
    int r = layer_open(self, path, options, &layer, error);
    if (r == 0)
        r = open_below(self, &o, add_layer(&o, layer, error), error);
    if (r == 0)
        r = load_and_join(self, &o, error);
    if (r == 0 && ret_info)
        *ret_info = (ChainInfo){o.steps->len, layer_format(layer)};
    if (r == 0)
        *ret_node = g_steal_pointer(&step_at(&o, 0)->node);
    opening_done(self, &o);
    return r;
}

// -- with all its nodes ---------------------------------------------------------------------------

void chain_nodes_close(Fiber *self, GArray *nodes)
{
    for (guint i = 0; i < nodes->len; i++) {
        ChainNode *each = &g_array_index(nodes, ChainNode, i);
        node_unref_close(self, each->node);
        node_config_free(each->own_config);
    }
    g_array_unref(nodes);
}

static const NodeConfig *file_child_config(const NodeConfig *config, const char *role)
{
    const NodeConfigChild *child = node_config_child(config, role);
    if (!child || !child->config)
        return NULL;
    bool is_made = child->config->driver && child->config->driver->make;
    return is_made ? child->config : node_config_file(child->config);
}

// Adds what the layer lies in, and what lies below that where it is a filter.
static void add_file_nodes(GArray *nodes, unsigned parent, const char *role, Node *node,
                           const NodeConfig *config)
{
    for (const NodeConfigChild *child;; node = node->backing, role = child->role) {
        ChainNode file = {
            .node = node_ref(node),
            .driver = driver_find(node->ops->driver),
            .config = config,
            .parent = parent,
            .role = role,
        };
        if (config)
            chain_set_modes(node, config);
        parent = nodes->len;
        g_array_append_val(nodes, file);
        child = config && node->ops->is_filter ? &config->children[0] : NULL;
        if (!child || child->node)
            return;
        config = child->config;
    }
}

// Adds a file of the layer, unless it belongs to a node that there was already.
static void add_file(GArray *nodes, unsigned parent, const Layer *layer, const char *role,
                     Node *node)
{
    const NodeConfigChild *child = node_config_child(layer_config(layer), role);
    if (node && !(child && child->node))
        add_file_nodes(nodes, parent, role, node, file_child_config(layer_config(layer), role));
}

static void add_nodes(Opening *o, GArray *nodes)
{
    unsigned parent = 0;
    for (guint i = 0; i < o->steps->len; i++) {
        Step *step = step_at(o, i);
        const NodeConfigChild *child = i ? described_below(step_at(o, i - 1)) : NULL;
        ChainNode made = {
            .node = g_steal_pointer(&step->node),
            .driver = step->layer ? driver_find(layer_format(step->layer)) : step->driver,
            .config = step->config,
            .own_config = step->layer ? layer_take_config(step->layer) : NULL,
            .parent = parent,
            .role = i == 0  ? NULL
                    : child ? child->role
                            : "backing",
        };
        parent = nodes->len;
        g_array_append_val(nodes, made);
        if (!step->layer)
            continue;
        Node *node = made.node;
        add_file(nodes, parent, step->layer, "file", layer_file_node(step->layer, node));
        add_file(nodes, parent, step->layer, "data-file", layer_data_node(step->layer, node));
    }
}

static int open_file_node(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                          GArray *nodes, GError **error)
{
    Node *node;
    int r = layer_open_file(self, config, options, &node, error);
    if (r < 0)
        return r;
    chain_set_modes(node, config);
    ChainNode file = {.node = node, .driver = config->driver, .config = config};
    g_array_append_val(nodes, file);
    return 0;
}

static int open_steps(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                      GArray *nodes, GError **error)
{
    Opening o;
    opening_init(&o, options);
    int r = open_below(self, &o, open_step(self, &o, config, error), error);
    if (r == 0)
        r = load_and_join(self, &o, error);
    if (r == 0)
        add_nodes(&o, nodes);
    opening_done(self, &o);
    return r;
}

int chain_open_nodes(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                     GArray **ret_nodes, GError **error)
{
    GArray *nodes = g_array_new(FALSE, TRUE, sizeof(ChainNode));
    bool is_file = config->driver && config->driver->is_file;
    int r = is_file ? open_file_node(self, config, options, nodes, error)
                    : open_steps(self, config, options, nodes, error);
    if (r < 0)
        chain_nodes_close(self, nodes);
    else
        *ret_nodes = nodes;
    return r;
}
