// SPDX-License-Identifier: LGPL-2.1-or-later
// Descriptions of nodes come from images that nobody vouches for: recursion is bounded, and each
// option is one that its driver's table has. Pure; any thread.
#include "chain-core/node-config.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

void node_config_free(NodeConfig *config)
{
    if (!config)
        return;
    json_decref(config->values);
    for (unsigned i = 0; i < config->n_children; i++) {
        g_free(config->children[i].node);
        node_config_free(config->children[i].config);
    }
    g_free(config);
}

static NodeConfig *config_new(const Driver *driver)
{
    NodeConfig *config = g_new0(NodeConfig, 1);
    config->driver = driver;
    config->values = json_object();
    return config;
}

static NodeConfigChild *add_child(NodeConfig *config, const char *role)
{
    g_assert(config->n_children < NODE_CONFIG_MAX_CHILDREN);
    NodeConfigChild *child = &config->children[config->n_children++];
    child->role = role;
    return child;
}

NodeConfig *node_config_new_over(NodeConfig *file)
{
    NodeConfig *config = config_new(NULL);
    add_child(config, "file")->config = file;
    return config;
}

NodeConfig *node_config_new_path(const char *path, const Driver *format)
{
    NodeConfig *file = config_new(driver_find("file"));
    json_object_set_new(file->values, "filename", json_string_nocheck(path));
    NodeConfig *config = node_config_new_over(file);
    config->driver = format;
    return config;
}

void node_config_apply(const NodeConfig *config, Node *node)
{
    const char *discard = driver_value_str(config->values, "discard", "unmap");
    const char *zeroes = driver_value_str(config->values, "detect-zeroes", "off");
    node->ignores_discards = g_str_equal(discard, "ignore");
    node->zero_detection = g_str_equal(zeroes, "on")      ? NODE_ZEROES_ALLOCATED
                           : g_str_equal(zeroes, "unmap") ? NODE_ZEROES_UNMAPPED
                                                          : NODE_ZEROES_WRITTEN;
}

// Recursion is bounded, as it was when `config` was made.
static NodeConfig *copy_without(const NodeConfig *config, const char *role)
{
    NodeConfig *copy = config_new(config->driver);
    json_decref(copy->values);
    copy->values = json_deep_copy(config->values);
    for (unsigned i = 0; i < config->n_children; i++) {
        const NodeConfigChild *child = &config->children[i];
        if (role && g_str_equal(child->role, role))
            continue;
        NodeConfigChild *of_copy = add_child(copy, child->role);
        of_copy->node = g_strdup(child->node);
        of_copy->config = child->config ? copy_without(child->config, NULL) : NULL;
    }
    return copy;
}

NodeConfig *node_config_new_with(const NodeConfig *config, const char *role, const char *node)
{
    NodeConfig *copy = copy_without(config, role);
    add_child(copy, role)->node = g_strdup(node);
    return copy;
}

const NodeConfigChild *node_config_child(const NodeConfig *config, const char *role)
{
    for (unsigned i = 0; i < config->n_children; i++) {
        if (g_str_equal(config->children[i].role, role))
            return &config->children[i];
    }
    return NULL;
}

const NodeConfigChild *node_config_below(const NodeConfig *config)
{
    return node_config_child(config, "file") ?: node_config_child(config, "image");
}

const NodeConfig *node_config_file(const NodeConfig *config)
{
    while (config && !(config->driver && config->driver->is_file)) {
        const NodeConfigChild *file = NULL;
        if (!config->driver || config->driver->open)
            file = node_config_child(config, "file");
        config = file ? file->config : NULL;
    }
    return config;
}

// -- from JSON ------------------------------------------------------------------------------------

// Where in the description: recursion is bounded in all directions, since flat names
// ("file.file.…") nest without a brace.
typedef struct Place {
    unsigned layer;   // "backing" steps from the outermost object
    unsigned depth;   // steps to other children from its layer's object
    bool is_in_image; // a format's child that is not "backing"
    bool may_name_nodes;
} Place;

enum { MAX_LAYERS = 24 }; // a name of 1,023 bytes holds fewer
enum { MAX_DEPTH = 8 };   // formats and filters over each other

static int refuse_nesting(GError **error)
{
    return error_set(error, -EINVAL, "what describes the node is nested too deeply");
}

// Puts what is written flat ("name.rest": …) into an object at "name". A new reference.
static json_t *unflatten(json_t *object)
{
    json_t *out = json_object();
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        if (!strchr(name, '.'))
            json_object_set_new(out, name,
                                json_is_object(value) ? json_copy(value) : json_incref(value));
    }
    json_object_foreach(object, name, value)
    {
        const char *dot = strchr(name, '.');
        if (!dot)
            continue;
        g_autofree char *head = g_strndup(name, (gsize)(dot - name));
        json_t *nested = json_object_get(out, head);
        if (!json_is_object(nested)) {
            nested = json_object();
            json_object_set_new(out, head, nested);
        }
        json_object_set(nested, dot + 1, value);
    }
    return out;
}

// The array that {"0": …, "1": …} means; NULL: it means none. A new reference.
static json_t *array_of_numbered(json_t *object)
{
    size_t n = json_object_size(object);
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) {
        g_autofree char *name = g_strdup_printf("%zu", i);
        json_t *value = json_object_get(object, name);
        if (!value) {
            json_decref(array);
            return NULL;
        }
        json_array_append(array, value);
    }
    if (n == 0)
        g_clear_pointer(&array, json_decref);
    return array;
}

// The value with all that is flat in it nested, to any depth that options have. A new reference;
// NULL: it is deeper.
static json_t *unflatten_value(json_t *value, unsigned depth)
{
    if (!json_is_object(value))
        return json_incref(value);
    if (depth > MAX_DEPTH)
        return NULL;
    json_t *object = unflatten(value);
    const char *name;
    void *next;
    json_object_foreach_safe(object, next, name, value)
    {
        json_t *made = unflatten_value(value, depth + 1);
        if (!made) {
            json_decref(object);
            return NULL;
        }
        json_object_set_new(object, name, made);
    }
    json_t *array = array_of_numbered(object);
    if (array) {
        json_decref(object);
        return array;
    }
    return object;
}

static int parse_object(json_t *object, Place place, NodeConfig **ret_config, GError **error);

static int parse_child(const DriverOption *option, json_t *value, Place place, NodeConfig *config,
                       GError **error)
{
    bool is_backing = g_str_equal(option->name, "backing");
    const char *name = json_string_value(value);
    bool is_nothing = json_is_null(value) || (name && !*name); // "" is all that dotted keys have
    if (is_nothing && option->may_be_null) {
        add_child(config, option->name);
        return 0;
    }
    if (name && !place.may_name_nodes)
        return error_set(error, -ENOTSUP, "\"%s\" names a node, which a json: name cannot",
                         option->name);
    if (name) {
        add_child(config, option->name)->node = g_strdup(name);
        return 0;
    }
    if (!json_is_object(value))
        return error_set(error, -EINVAL, "\"%s\" is no object that describes a node", option->name);
    if (is_backing ? place.layer == MAX_LAYERS : place.depth == MAX_DEPTH)
        return refuse_nesting(error);
    place = (Place){
        .layer = place.layer + is_backing,
        .depth = is_backing ? 0 : place.depth + 1,
        .is_in_image = !is_backing && (!config->driver || config->driver->open),
        .may_name_nodes = place.may_name_nodes,
    };
    return parse_object(value, place, &add_child(config, option->name)->config, error);
}

static int parse_value(const DriverOption *option, json_t *value, NodeConfig *config,
                       GError **error)
{
    json_t *nested = unflatten_value(value, 0);
    if (!nested)
        return refuse_nesting(error);
    json_t *taken = driver_option_take(option, nested, error);
    json_decref(nested);
    if (!taken)
        return -EINVAL;
    json_object_set_new(config->values, option->name, taken);
    return 0;
}

static int parse_option(const char *name, json_t *value, Place place, NodeConfig *config,
                        GError **error)
{
    const Driver *driver = config->driver;
    const DriverOption *option = driver_find_option(driver, name);
    if (!option && g_str_equal(name, "backing"))
        return error_set(error, -EINVAL, "there is a \"backing\" for a %s node, which has none",
                         driver->name);
    if (!option)
        return error_set(error, -ENOTSUP, "the option '%s' is not supported by %s", name,
                         driver ? driver->name : "every format");
    return option->type == DRIVER_OPTION_CHILD ? parse_child(option, value, place, config, error)
                                               : parse_value(option, value, config, error);
}

static int check_required(const NodeConfig *config, GError **error)
{
    const DriverOption *option = config->driver ? config->driver->options : NULL;
    for (; option && option->name; option++) {
        bool is_given = json_object_get(config->values, option->name) ||
                        node_config_child(config, option->name);
        if (option->is_required && !is_given)
            return error_set(error, -EINVAL, "the description of a %s node has no \"%s\"",
                             config->driver->name, option->name);
    }
    if (!config->driver && !node_config_child(config, "file"))
        return error_set(error, -EINVAL, "the description of a node has no \"file\"");
    const char *path = driver_value_str(config->values, "filename", NULL);
    if (path && !*path)
        return error_set(error, -EINVAL, "The '%s' block driver requires a file name",
                         config->driver ? config->driver->name : "file");
    return 0;
}

// What has metadata of its own has layers below it: a chain inside an image.
static int check_inner(const NodeConfig *config, GError **error)
{
    const Driver *driver = config->driver;
    return driver && driver->probe
               ? error_set(error, -ENOTSUP, "a %s image inside an image is not supported",
                           driver->name)
               : 0;
}

static int parse_driver(json_t *object, const Driver **ret_driver, GError **error)
{
    json_t *value = json_object_get(object, "driver");
    const char *name = json_string_value(value);
    if (value && !name)
        return error_set(error, -EINVAL, "\"driver\" is not a string");
    if (!name && json_object_get(object, "filename"))
        name = "file";
    *ret_driver = name ? driver_find(name) : NULL;
    if (name && !*ret_driver) {
        g_autoptr(GString) names = g_string_new(NULL);
        for (unsigned i = 0; drivers_get(i); i++)
            g_string_append_printf(names, "%s%s", i ? ", " : "", drivers_get(i)->name);
        return error_set(error, -ENOTSUP, "the driver '%s' is not supported, only: %s", name,
                         names->str);
    }
    return 0;
}

static int parse_options(json_t *object, Place place, NodeConfig *config, GError **error)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        int r = g_str_equal(name, "driver") ? 0 : parse_option(name, value, place, config, error);
        if (r < 0)
            return r;
    }
    int r = check_required(config, error);
    return r == 0 && place.is_in_image ? check_inner(config, error) : r;
}

static int parse_object(json_t *object, Place place, NodeConfig **ret_config, GError **error)
{
    const Driver *driver;
    json_t *nested = unflatten(object);
    int r = parse_driver(nested, &driver, error);
    if (r == 0) {
        g_autoptr(NodeConfig) config = config_new(driver);
        r = parse_options(nested, place, config, error);
        if (r == 0)
            *ret_config = g_steal_pointer(&config);
    }
    json_decref(nested);
    return r;
}

int node_config_new(json_t *object, bool may_name_nodes, NodeConfig **ret_config, GError **error)
{
    return parse_object(object, (Place){.may_name_nodes = may_name_nodes}, ret_config, error);
}
