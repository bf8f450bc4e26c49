// SPDX-License-Identifier: LGPL-2.1-or-later
// Options are compared leaf by leaf, so that the sentence names the very one: "server.port".
#include "reopen-options.h"

#include <string.h>

#include "chain-core/file.h"
#include "daemon/qmp/error.h"

// Those that every node may lose, or have changed. A node's name is looked at as others are.
static bool is_always_free(const char *name)
{
    static const char *const names[] = {"discard", "cache", "read-only", "auto-read-only",
                                        "detect-zeroes"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        if (g_str_equal(names[i], name))
            return true;
    }
    return false;
}

static DriverOptionChange change_of(const Driver *driver, const char *name)
{
    const DriverOption *option = driver_option_find(driver->options, name, strlen(name));
    return option ? option->change : DRIVER_OPTION_STAYS;
}

// As it was described; of what only the header of an image speaks of, that is its file. Owned.
static json_t *values_of(const NamedNode *named)
{
    if (named->config)
        return json_incref(named->config->values);
    return named->driver->is_file ? json_pack("{s:s}", "filename", named_node_file_name(named))
                                  : json_object();
}

static json_t *member(const json_t *value, const char *key, size_t index)
{
    return json_is_array(value) ? json_array_get(value, index) : json_object_get(value, key);
}

static char *join(const char *path, const char *name)
{
    return *path ? g_strdup_printf("%s.%s", path, name) : g_strdup(name);
}

// Where the first leaf of `value` is that `other` does not have (`or_differs`: or has otherwise);
// owned. NULL: there is none. Values are as nested as options are.
static char *find_leaf(const json_t *value, const json_t *other, const char *path, bool or_differs)
{
    char *found = NULL;
    size_t index;
    const char *name;
    json_t *part;
    if (!json_is_object(value) && !json_is_array(value)) {
        bool is_there = other && !json_is_object(other) && !json_is_array(other);
        return is_there && !(or_differs && !json_equal(value, other)) ? NULL : g_strdup(path);
    }
    if (json_is_object(value)) {
        json_object_foreach((json_t *)value, name, part)
        {
            g_autofree char *below = join(path, name);
            found = found ?: find_leaf(part, member(other, name, 0), below, or_differs);
        }
        return found;
    }
    json_array_foreach(value, index, part)
    {
        g_autofree char *number = g_strdup_printf("%zu", index);
        g_autofree char *below = join(path, number);
        found = found ?: find_leaf(part, member(other, NULL, index), below, or_differs);
    }
    return found;
}

// The options of `values` that `others` lack, or have otherwise, though they stay what they are.
static char *find_option(const Driver *driver, const json_t *values, const json_t *others,
                         bool or_differs)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)values, name, value)
    {
        DriverOptionChange change = change_of(driver, name);
        if (is_always_free(name) || (!or_differs && g_str_equal(name, "node-name")) ||
            (change != DRIVER_OPTION_STAYS && (or_differs || change != DRIVER_OPTION_KEPT)))
            continue;
        char *found = find_leaf(value, json_object_get(others, name), name, or_differs);
        if (found)
            return found;
    }
    return NULL;
}

int reopen_check_given(const NamedNode *named, const NodeConfig *config, GError **error)
{
    if (named->driver->stays_as_made)
        return qmp_fail(error,
                        "Block format '%s' used by node '%s' does not support reopening files",
                        named->driver->name, named->name);
    json_t *old = values_of(named);
    g_autofree char *lost = find_option(named->driver, old, config->values, false);
    json_decref(old);
    return lost ? qmp_fail(error, "Option '%s' cannot be reset to its default value", lost) : 0;
}

bool reopen_came_with(const NamedNode *named, const NamedNode *child)
{
    return child && child->origin == named->origin;
}

static int check_child(const NamedNode *named, const NodeConfigChild *wanted, GError **error)
{
    const NamedNode *now = named_node_child(named, wanted->role);
    bool may_be_another = g_str_equal(wanted->role, "backing") || g_str_equal(wanted->role, "file");
    if (wanted->node)
        return may_be_another || (now && g_str_equal(now->name, wanted->node))
                   ? 0
                   : qmp_fail(error, "Cannot change the option '%s'", wanted->role);
    if (!wanted->config)
        return 0;
    if (!reopen_came_with(named, now))
        return qmp_fail(error, "Cannot change the option '%s.driver'", wanted->role);
    int r = wanted->config->driver ? reopen_check_given(now, wanted->config, error) : 0;
    return r < 0 ? r : reopen_check_changes(now, wanted->config, error);
}

// What descriptions nest is bounded.
int reopen_check_changes(const NamedNode *named, const NodeConfig *config, GError **error)
{
    int r = 0;
    if (named->driver != config->driver)
        return qmp_fail(error, "Cannot change the option 'driver'");
    for (unsigned i = 0; r == 0 && i < config->n_children; i++)
        r = check_child(named, &config->children[i], error);
    if (r < 0)
        return r;
    json_t *old = values_of(named);
    g_autofree char *changed = find_option(named->driver, config->values, old, true);
    json_decref(old);
    const char *name = driver_value_str(config->values, "node-name", NULL);
    if (changed && g_str_equal(changed, "node-name") && g_str_equal(name, named->name))
        return 0; // of one that was described without a name
    return changed ? qmp_fail(error, "Cannot change the option '%s'", changed) : 0;
}

bool reopen_needs_driver(const NamedNode *named, const NodeConfig *config)
{
    const json_t *old = named->config ? named->config->values : NULL;
    const DriverOption *option = named->driver->options;
    for (; named->driver->reopen && option && option->name; option++) {
        const json_t *has = json_object_get(old, option->name);
        const json_t *wants = json_object_get(config->values, option->name);
        if (option->change == DRIVER_OPTION_CHANGES && (has || wants) && !json_equal(has, wants))
            return true;
    }
    return false;
}
