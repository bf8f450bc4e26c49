// SPDX-License-Identifier: LGPL-2.1-or-later
// What can be told of a named node without its loop. Control loop.
#include "named-node.h"

#include "chain-core/file.h"
#include "daemon/qmp/error.h"

NamedNode *named_node_child(const NamedNode *named, const char *role)
{
    for (guint i = 0; i < named->children->len; i++) {
        const NodeUse *use = named->children->pdata[i];
        if (g_str_equal(use->role, role))
            return use->used;
    }
    return NULL;
}

const char *named_node_file_name(const NamedNode *named)
{
    for (NamedNode *file; !named->driver->is_file; named = file) {
        file = named_node_child(named, "file") ?: named_node_child(named, "snapshot");
        if (!file)
            return "";
    }
    return file_path(node_file(named->node));
}

// What an overlay or a format relies on must not change under it; whoever comes from outside sees
// changes as they are made.
static bool relies_on_content(const char *role)
{
    return !g_str_equal(role, "root") && !g_str_equal(role, "snapshot");
}

const char *named_node_role(const NamedNode *used, const NodeConfig *config,
                            const NodeConfigChild *child)
{
    bool is_snapshot = g_str_equal(child->role, "file") && used->driver->has_snapshots &&
                       driver_value_str(config->values, "snapshot", NULL);
    return is_snapshot ? "snapshot" : child->role;
}

// `writer` and `reader` are both of `named`, which one of them already has.
static int refuse_both(const NamedNode *named, const NodeUse *writer, const NodeUse *reader,
                       GError **error)
{
    const char *permissions = relies_on_content(writer->role) ? "write, resize" : "write";
    return qmp_fail(error,
                    "Permission conflict on node '%s': permissions '%s' are both required by %s "
                    "(uses node '%s' as '%s' child) and unshared by %s (uses node '%s' as '%s' "
                    "child).",
                    named->name, permissions, writer->user, named->name, writer->role, reader->user,
                    named->name, reader->role);
}

int named_node_check_use(const NamedNode *named, const NodeUse *use, GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *other = named->users->pdata[i];
        if (use->writes && relies_on_content(other->role))
            return refuse_both(named, use, other, error);
        if (other->writes && relies_on_content(use->role))
            return refuse_both(named, other, use, error);
    }
    return 0;
}

char *named_node_users_text(const NamedNode *named)
{
    g_autoptr(GString) text = g_string_new(NULL);
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        g_string_append_printf(text, "%s%s", i ? ", " : "", use->user);
        if (use->by)
            g_string_append_printf(text, " (as '%s')", use->role);
    }
    return g_string_free(g_steal_pointer(&text), FALSE);
}
