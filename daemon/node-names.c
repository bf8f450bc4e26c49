// SPDX-License-Identifier: LGPL-2.1-or-later
// Names of nodes, by QEMU's rules: a letter, then letters, digits and -._; at most 31 of them.
// Pure; control loop.
#include "node-names.h"

#include <errno.h>
#include <string.h>

#include "daemon/qmp/error.h"

enum { MAX_NAME_BYTES = 31 };

bool node_names_is_id(const char *id)
{
    return g_ascii_isalpha(*id) && !id[strspn(id, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-._")];
}

bool node_names_is_allowed(const char *name)
{
    return node_names_is_id(name) && strlen(name) <= MAX_NAME_BYTES;
}

static int check_name(GHashTable *by_name, const char *name, GHashTable *given, GError **error)
{
    if (strlen(name) > MAX_NAME_BYTES)
        return qmp_fail(error, "Node name too long");
    if (!node_names_is_allowed(name))
        return qmp_fail(error, "Invalid node-name: '%s'", name);
    if (g_hash_table_contains(by_name, name) || !g_hash_table_add(given, (gpointer)name))
        return qmp_fail(error, "Duplicate nodes with node-name='%s'", name);
    return 0;
}

// Recursion is bounded by what node_config_new() takes.
static int check_config(GHashTable *by_name, const NodeConfig *config, GHashTable *given,
                        bool is_active, GError **error)
{
    if (driver_value_bool(config->values, "active", is_active) != is_active)
        return qmp_fail(error, "What is made together is active, or inactive, together: give "
                               "'active' once, for all");
    const char *name = driver_value_str(config->values, "node-name", NULL);
    int r = name ? check_name(by_name, name, given, error) : 0;
    for (unsigned i = 0; r == 0 && i < config->n_children; i++) {
        if (config->children[i].config)
            r = check_config(by_name, config->children[i].config, given, is_active, error);
    }
    return r;
}

int node_names_check(GHashTable *by_name, const NodeConfig *config, GError **error)
{
    g_autoptr(GHashTable) given = g_hash_table_new(g_str_hash, g_str_equal);
    return check_config(by_name, config, given, driver_value_bool(config->values, "active", true),
                        error);
}

// Who uses what a description names: the nodes above the one of `config`, which is to be.
typedef struct Above {
    NodePerms perms; // what they do with it
    bool is_read_only;
    bool is_used; // there is one
} Above;

static NodePerms perms_of_child(const NamedNode *child, const NodeConfig *config, const char *role,
                                const Above *above)
{
    const Driver *driver = config->driver;
    if (g_str_equal(role, "target"))
        return node_perms_of(NODE_USER_TARGET, true);
    if (driver && driver->is_view)
        return node_perms_of(NODE_USER_VIEW, false);
    if (driver && driver_passes_on(driver)) {
        NodePerms perms = named_node_perms_through(driver, config->values, above->perms);
        if (above->is_used)
            named_node_perms_add_kept(driver, &perms);
        return perms;
    }
    if (g_str_equal(role, "backing")) {
        bool is_scratch =
            child && !above->is_used && !above->is_read_only && named_node_is_written(child);
        return node_perms_of(is_scratch ? NODE_USER_VIEW : NODE_USER_BACKING, false);
    }
    if (g_str_equal(role, "snapshot"))
        return node_perms_of(NODE_USER_SNAPSHOT, false);
    return node_perms_of(NODE_USER_FORMAT, !above->is_read_only);
}

// A use that is to be, in its node's table as long as the description is checked: others of the
// same description must get along with it, too.
static int plan_use(NamedNode *named, const NodeConfig *config, const char *role, NodePerms perms,
                    GPtrArray *all, GError **error)
{
    const char *user = driver_value_str(config->values, "node-name", "");
    NodeUse use = {
        .role = role,
        .user = g_strdup_printf("node '%s'", user),
        .perms = &perms,
        .allows_inactive = true,
    };
    int r = named_node_check_mode(named, perms, error);
    if (r == 0)
        r = named_node_check_use(named, &use, error);
    g_ptr_array_add(all, named_node_use(named, &use));
    return r;
}

static int check_activity(const NamedNode *named, const NodeConfig *config, const char *role,
                          bool is_active, GError **error)
{
    return named->is_inactive && is_active
               ? qmp_fail(error, "Inactive '%s' can't be a %s child of active '%s'", named->name,
                          role, driver_value_str(config->values, "node-name", ""))
               : 0;
}

// What find_used() looks for, and has found.
typedef struct Search {
    GHashTable *by_name;
    GPtrArray *used; // NULL: nobody asks
    GPtrArray *planned;
    bool is_active; // what is described
} Search;

// Recursion is bounded by what a description may be.
static int find_used(const Search *s, const NodeConfig *config, Above above, GError **error)
{
    above.is_read_only |= driver_value_bool(config->values, "read-only", false);
    for (unsigned i = 0; i < config->n_children; i++) {
        const NodeConfigChild *child = &config->children[i];
        bool is_backing = g_str_equal(child->role, "backing");
        Above of_child = {perms_of_child(NULL, config, child->role, &above),
                          above.is_read_only || is_backing, true};
        int r = child->config ? find_used(s, child->config, of_child, error) : 0;
        if (r < 0)
            return r;
        NamedNode *named = child->node ? g_hash_table_lookup(s->by_name, child->node) : NULL;
        if (child->node && !named)
            return qmp_fail(error, "%sCannot find device='%s' nor node-name='%s'",
                            is_backing ? "Could not open backing file: " : "", child->node,
                            child->node);
        if (!named)
            continue;
        const char *role = named_node_role(named, config, child);
        NodePerms perms = perms_of_child(named, config, role, &above);
        if (!s->is_active)
            named_node_perms_make_inactive(&perms);
        r = check_activity(named, config, role, s->is_active, error);
        if (r == 0)
            r = plan_use(named, config, role, perms, s->planned, error);
        if (r < 0)
            return r;
        if (s->used && !g_ptr_array_find(s->used, named, NULL))
            g_ptr_array_add(s->used, named);
    }
    return 0;
}

int node_names_find_used(GHashTable *by_name, const NodeConfig *config, GPtrArray *used,
                         GError **error)
{
    g_autoptr(GPtrArray) planned = g_ptr_array_new();
    Search search = {by_name, used, planned, driver_value_bool(config->values, "active", true)};
    int r = find_used(&search, config, (Above){.perms.shared = NODE_PERM_ALL}, error);
    for (guint i = 0; i < planned->len; i++)
        named_node_end_use(planned->pdata[i]);
    return r;
}

int node_names_use(GHashTable *by_name, const NodeConfig *config, GPtrArray *uses, GError **error)
{
    Search search = {by_name, NULL, uses, driver_value_bool(config->values, "active", true)};
    return find_used(&search, config, (Above){.perms.shared = NODE_PERM_ALL}, error);
}
