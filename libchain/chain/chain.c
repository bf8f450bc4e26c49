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
// nothing (the last step), or a file by itself.
typedef struct Step {
    Layer *layer; // NULL: not a layer
    Node *beside; // an internal snapshot of its image is shown; borrowed. NULL: nothing of the kind
    const NodeConfig *config;
    const Driver *driver;
    Node *node;      // NULL: not loaded
    GArray *targets; // ChainNode: what was opened as its "target"; NULL: nothing was
    GError *error;
} Step;

typedef struct Opening {
    LayerOptions options; // with what the filters above the first layer say
    GArray *steps;        // Step, top first
    Layer *last;          // the lowest layer so far; NULL: none
    Node *base;           // that there was already, below the last step: borrowed; NULL: none
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
    const LayerOptions *options = &o->options;
    const NodeConfigChild *file = node_config_child(config, "file");
    if (!file || !file->node || !options->find_node || !config->driver ||
        !driver_value_str(config->values, "snapshot", NULL))
        return NULL;
    Node *node = options->find_node(options->find_arg, file->node);
    return node && driver_find(node->ops->driver) == config->driver ? node : NULL;
}

static bool describes_file(const NodeConfig *config)
{
    return config->driver && config->driver->is_file;
}

static int open_file_step(Fiber *self, Opening *o, const NodeConfig *config, GError **error)
{
    LayerOptions options = o->options;
    Step step = {.config = config, .driver = config->driver};
    options.read_only |= o->last != NULL;
    int r = layer_open_file(self, config, &options, &step.node, error);
    return r < 0 ? r : add_step(o, step, error);
}

// What lies below a filter has its options, too.
static int add_made_step(Opening *o, const NodeConfig *config, GError **error)
{
    LayerOptions *options = &o->options;
    const json_t *values = config->values;
    if (!o->last) {
        options->read_only |= driver_value_bool(values, "read-only", false);
        options->direct = driver_value_bool(values, "cache.direct", options->direct);
        options->force_share = driver_value_bool(values, "force-share", options->force_share);
        options->auto_read_only =
            driver_value_bool(values, "auto-read-only", options->auto_read_only);
    }
    return add_step(o, (Step){.config = config, .driver = config->driver}, error);
}

static int open_step(Fiber *self, Opening *o, const NodeConfig *config, GError **error)
{
    const Driver *driver = config->driver;
    Node *beside = find_beside(o, config);
    if (beside && driver->open_beside)
        return add_step(o, (Step){.config = config, .driver = driver, .beside = beside}, error);
    if (driver && driver->make)
        return add_made_step(o, config, error);
    if (describes_file(config))
        return open_file_step(self, o, config, error);
    Layer *layer;
    int r = o->last ? layer_open_described(self, o->last, config, &layer, error)
                    : layer_open_config(self, config, &o->options, &layer, error);
    return r < 0 ? r : add_layer(o, layer, error);
}

// What the description says lies below; NULL: it says nothing.
static const NodeConfigChild *described_below(const Step *step)
{
    if (step->layer)
        return node_config_child(step->config, "backing");
    if (step->beside)
        return NULL;
    return node_config_below(step->config);
}

static int find_node(const LayerOptions *options, const char *name, Node **ret_node, GError **error)
{
    *ret_node = options->find_node ? options->find_node(options->find_arg, name) : NULL;
    return *ret_node ? 0
                     : error_set(error, -ENODEV, "Cannot find device='' nor node-name='%s'", name);
}

// Goes on below the last step. 0 when that was the end, 1 when there is another step.
static int open_next(Fiber *self, Opening *o, GError **error)
{
    const Step *step = step_at(o, o->steps->len - 1);
    const NodeConfigChild *child = described_below(step);
    if (child && child->node)
        return find_node(&o->options, child->node, &o->base, error);
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

static int load_one(Fiber *self, Opening *o, Step *step)
{
    int r = layer_load(self, step->layer, &step->node, &step->error);
    if (r == 0)
        node_config_apply(step->config, step->node);
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

// What a filter copies to, which may be a chain of its own.
static int find_target(Fiber *self, const Opening *o, Step *step, Node **ret_target)
{
    const NodeConfigChild *child = node_config_child(step->config, "target");
    LayerOptions options = o->options;
    *ret_target = NULL;
    if (!child)
        return 0;
    options.read_only = false;
    int r = child->node
                ? find_node(&options, child->node, ret_target, &step->error)
                : chain_open_nodes(self, child->config, &options, &step->targets, &step->error);
    if (r == 0 && !child->node)
        *ret_target = g_array_index(step->targets, ChainNode, 0).node;
    return r == 0 ? layer_lock_node(self, *ret_target, true, &step->error) : r;
}

static int make_step(Fiber *self, Opening *o, Step *step, Node *below)
{
    if (step->beside) {
        const char *snapshot = driver_value_str(step->config->values, "snapshot", NULL);
        return step->driver->open_beside(self, step->beside, snapshot, &step->node, &step->error);
    }
    const LayerOptions *options = &o->options;
    int r = below ? node_remeasure(self, below) : 0; // an image in it may have made it longer
    if (r < 0)
        return error_set(&step->error, r, "%s: cannot tell its size: %s", below->name,
                         g_strerror(-r));
    bool is_read_only = options->read_only || is_backing(o, step) ||
                        driver_value_bool(step->config->values, "read-only", false);
    DriverOptions made_of = {
        .name = driver_value_str(step->config->values, "node-name", step->driver->name),
        .is_writable = !is_read_only,
        .values = step->config->values,
        .memory = options->memory,
        .throttle_groups = options->throttle_groups,
        .tls_creds = options->tls_creds,
        .events = options->events,
        .find_node = options->find_node,
        .find_arg = options->find_arg,
    };
    r = find_target(self, o, step, &made_of.target);
    if (r == 0)
        r = step->driver->make(self, &made_of, below, &step->node, &step->error);
    if (r == 0)
        node_config_apply(step->config, step->node);
    return r;
}

static int join_steps(Fiber *self, Opening *o)
{
    Node *below = o->base;
    for (guint i = o->steps->len; i-- > 0;) {
        Step *step = step_at(o, i);
        int r = 0;
        if (!step->layer && !step->node)
            r = make_step(self, o, step, below);
        else if (!step->node)
            r = load_one(self, o, step);
        if (r == 0 && step->layer && below)
            r = layer_lock_node(self, below, false, &step->error);
        if (r < 0)
            return r;
        if (step->layer && below)
            chain_set_backing(self, step->node, below, o->options.memory);
        below = step->node;
    }
    return 0;
}

static void opening_done(Fiber *self, Opening *o)
{
    for (guint i = 0; i < o->steps->len; i++)
        node_unref_close(self, step_at(o, i)->node);
    for (guint i = 0; i < o->steps->len; i++) {
        if (step_at(o, i)->targets)
            chain_nodes_close(self, step_at(o, i)->targets);
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
    *o = (Opening){.options = *options, .steps = g_array_new(FALSE, TRUE, sizeof(Step))};
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

// What a layer lies in, unless it was there already.
static void add_sources(GArray *nodes, unsigned parent, Layer *layer, const char *role)
{
    Node *node = g_array_index(nodes, ChainNode, parent).node;
    const GArray *made = layer_nodes(layer, role, node);
    unsigned first = nodes->len;
    for (guint i = 0; made && i < made->len; i++) {
        const LayerNode *each = &g_array_index(made, LayerNode, i);
        ChainNode source = {
            .node = node_ref(each->node),
            .driver = driver_find(each->node->ops->driver),
            .config = each->config,
            .parent = each->above < 0 ? parent : first + (unsigned)each->above,
            .role = each->above < 0 ? role : each->role,
        };
        g_array_append_val(nodes, source);
    }
}

static void add_targets(GArray *nodes, unsigned parent, GArray *targets)
{
    unsigned first = nodes->len;
    for (guint i = 0; i < targets->len; i++) {
        ChainNode target = g_array_index(targets, ChainNode, i);
        target.parent = i ? target.parent + first : parent;
        target.role = i ? target.role : "target";
        g_array_append_val(nodes, target);
    }
    g_array_unref(targets);
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
        if (step->targets)
            add_targets(nodes, parent, g_steal_pointer(&step->targets));
        if (!step->layer)
            continue;
        add_sources(nodes, parent, step->layer, "file");
        add_sources(nodes, parent, step->layer, "data-file");
    }
}

int chain_open_nodes(Fiber *self, const NodeConfig *config, const LayerOptions *options,
                     GArray **ret_nodes, GError **error)
{
    GArray *nodes = g_array_new(FALSE, TRUE, sizeof(ChainNode));
    Opening o;
    opening_init(&o, options);
    int r = open_below(self, &o, open_step(self, &o, config, error), error);
    if (r == 0)
        r = load_and_join(self, &o, error);
    if (r == 0)
        add_nodes(&o, nodes);
    opening_done(self, &o);
    if (r < 0)
        chain_nodes_close(self, nodes);
    else
        *ret_nodes = nodes;
    return r;
}
