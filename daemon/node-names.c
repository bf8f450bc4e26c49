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
                        GError **error)
{
    const char *name = driver_value_str(config->values, "node-name", NULL);
    int r = name ? check_name(by_name, name, given, error) : 0;
    for (unsigned i = 0; r == 0 && i < config->n_children; i++) {
        if (config->children[i].config)
            r = check_config(by_name, config->children[i].config, given, error);
    }
    return r;
}

int node_names_check(GHashTable *by_name, const NodeConfig *config, GError **error)
{
    g_autoptr(GHashTable) given = g_hash_table_new(g_str_hash, g_str_equal);
    return check_config(by_name, config, given, error);
}

int node_names_find_used(GHashTable *by_name, const NodeConfig *config, GPtrArray *used,
                         GError **error)
{
    for (unsigned i = 0; i < config->n_children; i++) {
        const NodeConfigChild *child = &config->children[i];
        int r = child->config ? node_names_find_used(by_name, child->config, used, error) : 0;
        if (r < 0)
            return r;
        NamedNode *named = child->node ? g_hash_table_lookup(by_name, child->node) : NULL;
        if (child->node && !named)
            return qmp_fail(error, "%sCannot find device='%s' nor node-name='%s'",
                            g_str_equal(child->role, "backing") ? "Could not open backing file: "
                                                                : "",
                            child->node, child->node);
        if (!named)
            continue;
        const char *name = driver_value_str(config->values, "node-name", "");
        g_autofree char *user = g_strdup_printf("node '%s'", name);
        const char *role = named_node_role(named, config, child);
        NodeUse use = {
            .role = role,
            .writes = !g_str_equal(role, "backing") && !g_str_equal(role, "snapshot") &&
                      !driver_value_bool(config->values, "read-only", false),
            .user = user,
        };
        r = named_node_check_use(named, &use, error);
        if (r < 0)
            return r;
        if (!g_ptr_array_find(used, named, NULL))
            g_ptr_array_add(used, named);
    }
    return 0;
}
