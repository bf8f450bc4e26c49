// SPDX-License-Identifier: LGPL-2.1-or-later
// What can be told of a named node without its loop. Control loop.
#include "named-node.h"

#include <string.h>

#include "chain-core/file.h"
#include "daemon/qmp/error.h"

NodeUse *named_node_use(NamedNode *used, const NodeUse *as)
{
    NodeUse *use = g_new(NodeUse, 1);
    *use = *as;
    use->used = used;
    use->perms = as->perms ? g_memdup2(as->perms, sizeof *as->perms) : NULL;
    g_ptr_array_add(used->users, use);
    return use;
}

static bool writes_child(const NamedNode *parent, const char *role)
{
    return !parent->facts.read_only && !g_str_equal(role, "backing");
}

void named_node_add_child(NamedNode *parent, NamedNode *child, const char *role)
{
    NodeUse use = {
        .by = parent,
        .role = role,
        .writes = writes_child(parent, role),
        .user = g_strdup_printf("node '%s'", parent->name),
    };
    g_ptr_array_add(parent->children, named_node_use(child, &use));
}

bool named_node_end_use(NodeUse *use)
{
    NamedNode *used = use->used;
    g_ptr_array_remove(used->users, use);
    g_free((gpointer)use->perms);
    g_free(use->user);
    g_free(use);
    return used->users->len == 0;
}

void named_node_mode_changed(NamedNode *named)
{
    for (guint i = 0; i < named->children->len; i++) {
        NodeUse *use = named->children->pdata[i];
        use->writes = writes_child(named, use->role);
    }
}

NodeUse *named_node_edge(const NamedNode *named, const char *role)
{
    for (guint i = 0; i < named->children->len; i++) {
        NodeUse *use = named->children->pdata[i];
        if (g_str_equal(use->role, role))
            return use;
    }
    return NULL;
}

NamedNode *named_node_child(const NamedNode *named, const char *role)
{
    const NodeUse *use = named_node_edge(named, role);
    return use ? use->used : NULL;
}

NamedNode *named_node_below(const NamedNode *named)
{
    if (named->node->ops->is_filter)
        return named_node_lower(named);
    const NodeUse *use = named_node_edge(named, "backing");
    return use && !use->is_moment ? use->used : NULL;
}

NamedNode *named_node_lower(const NamedNode *named)
{
    return named_node_child(named, "file") ?: named_node_child(named, "image");
}

NamedNode *named_node_image(NamedNode *named)
{
    while (named && named->node->ops->is_filter)
        named = named_node_below(named);
    return named;
}

char *named_node_header_name(const NamedNode *named, const char *overlay)
{
    const char *path = named_node_file_name(named);
    if (!*path)
        return NULL;
    g_autofree char *dir = g_path_get_dirname(overlay);
    size_t n = strlen(dir);
    if (g_path_is_absolute(path) || (g_str_equal(dir, ".") && !g_str_has_prefix(path, ".")))
        return g_strdup(path);
    bool is_inside = g_str_has_prefix(path, dir) && path[n] == '/';
    return is_inside ? g_strdup(path + n + 1) : g_canonicalize_filename(path, NULL);
}

const char *named_node_file_name(const NamedNode *named)
{
    for (NamedNode *file; !named->driver->is_file; named = file) {
        file = named_node_lower(named) ?: named_node_child(named, "snapshot");
        if (!file)
            return "";
    }
    return file_path(node_file(named->node));
}

const char *named_node_role(const NamedNode *used, const NodeConfig *config,
                            const NodeConfigChild *child)
{
    bool is_snapshot = g_str_equal(child->role, "file") && used->driver->has_snapshots &&
                       driver_value_str(config->values, "snapshot", NULL);
    return is_snapshot ? "snapshot" : child->role;
}

static bool passes_on(const NamedNode *named)
{
    return named && driver_passes_on(named->driver);
}

// Does the use come from within `range` (NULL: nothing does)? What only lets through what does is
// within it, too.
static bool is_inside(const NodeUse *use, const GPtrArray *range)
{
    if (!range || !use->by)
        return false;
    if (g_ptr_array_find((GPtrArray *)range, use->by, NULL))
        return true;
    if (!passes_on(use->by) || !use->by->users->len)
        return false;
    for (guint i = 0; i < use->by->users->len; i++)
        if (!is_inside(use->by->users->pdata[i], range))
            return false;
    return true;
}

// Chains are long, what lies between their layers is not: only that is recursion.
static bool lies_below(const NamedNode *wanted, const NamedNode *top)
{
    for (; top; top = named_node_child(top, "backing")) {
        if (top == wanted)
            return true;
        for (guint i = 0; i < top->children->len; i++) {
            const NodeUse *use = top->children->pdata[i];
            if (!g_str_equal(use->role, "backing") && lies_below(wanted, use->used))
                return true;
        }
    }
    return false;
}

int named_node_check_no_cycle(const NamedNode *named, const NamedNode *child, const char *role,
                              GError **error)
{
    return lies_below(named, child)
               ? qmp_fail(error, "Making '%s' a %s child of '%s' would create a cycle", child->name,
                          role, named->name)
               : 0;
}

// It may be read-only because what it lies in is, and not by itself.
bool named_node_says_read_only(const NamedNode *named)
{
    const NamedNode *below = passes_on(named) ? named_node_lower(named) : NULL;
    if (named->is_inactive)
        return !named->is_writable_then;
    if (!named->facts.read_only || !below)
        return named->facts.read_only;
    return !below->facts.read_only || named->is_said_read_only;
}

static NodePerms perms_of(const NodeUse *use, const GPtrArray *range);

NodePerms named_node_perms_through(const Driver *driver, const json_t *values, NodePerms above)
{
    bool is_part = driver_value_int(values, "offset", 0) || json_object_get(values, "size");
    if (driver->reads_write)
        above.held |= NODE_PERM_WRITE_UNCHANGED;
    if (is_part)
        above.shared &= ~NODE_PERM_RESIZE;
    return above;
}

void named_node_perms_add_kept(const Driver *driver, NodePerms *perms)
{
    static const NodePerms kept = {
        .held = NODE_PERM_CONSISTENT_READ,
        .shared = NODE_PERM_ALL & ~(NODE_PERM_WRITE | NODE_PERM_RESIZE),
    };
    if (driver->keeps_below)
        node_perms_add(perms, kept);
}

// Of all that goes through a filter to what it filters. Filters are few, and end somewhere.
static NodePerms perms_through(const NamedNode *filter, const GPtrArray *range)
{
    NodePerms perms = {.shared = NODE_PERM_ALL};
    for (guint i = 0; i < filter->users->len; i++)
        if (!is_inside(filter->users->pdata[i], range))
            node_perms_add(&perms, perms_of(filter->users->pdata[i], range));
    if (filter->users->len)
        named_node_perms_add_kept(filter->driver, &perms);
    const json_t *values = filter->config ? filter->config->values : NULL;
    return named_node_perms_through(filter->driver, values, perms);
}

// Nobody sees through the overlay what lies below it.
static bool is_unread_scratch(const NodeUse *use, const GPtrArray *range)
{
    if (!use->is_scratch || use->is_moment)
        return false;
    for (guint i = 0; i < use->by->users->len; i++)
        if (perms_of(use->by->users->pdata[i], range).held & NODE_PERM_CONSISTENT_READ)
            return false;
    return true;
}

static NodePerms perms_of_active(const NodeUse *use, const GPtrArray *range)
{
    static const struct {
        const char *role;
        NodeUser user;
    } users[] = {
        {"root", NODE_USER_OUTSIDE},
        {"backing", NODE_USER_BACKING},
        {"snapshot", NODE_USER_SNAPSHOT},
        {"target", NODE_USER_TARGET},
    };
    if (use->perms)
        return *use->perms;
    if ((use->by && use->by->driver->is_view) || use->is_moment || is_unread_scratch(use, range))
        return node_perms_of(NODE_USER_VIEW, false);
    if (passes_on(use->by) && !g_str_equal(use->role, "target"))
        return perms_through(use->by, range);
    for (unsigned i = 0; i < G_N_ELEMENTS(users); i++)
        if (g_str_equal(use->role, users[i].role))
            return node_perms_of(users[i].user, use->writes);
    NodePerms perms = node_perms_of(NODE_USER_FORMAT, use->writes);
    if (use->by)
        perms.held |= perms_through(use->by, range).held & NODE_PERM_WRITE_UNCHANGED;
    return perms;
}

void named_node_perms_make_inactive(NodePerms *perms)
{
    const unsigned changes = NODE_PERM_WRITE | NODE_PERM_RESIZE;
    perms->held &= ~changes;
    perms->shared |= changes;
}

static NodePerms perms_of(const NodeUse *use, const GPtrArray *range)
{
    NodePerms perms = perms_of_active(use, range);
    if (use->by && use->by->is_inactive)
        named_node_perms_make_inactive(&perms);
    return perms;
}

NodePerms node_use_perms(const NodeUse *use)
{
    return perms_of(use, NULL);
}

static bool is_disks(const NodeUse *use)
{
    return g_str_equal(use->role, NODE_USE_ROLE_DISK);
}

// Disks keep their layers where they are.
static int refuse_of_disk(const NamedNode *named, const NodeUse *use, GError **error)
{
    return qmp_fail(error,
                    "Node '%s' belongs to %s, whose layers only the commands of disks put "
                    "elsewhere: use those (disk-…), or remove the disk first",
                    named->name, use->user);
}

// `holder` has `held`, or is to have it; `sharer` shares `shared`. Both are of `named`.
static int check_pair(const NamedNode *named, const NodeUse *holder, NodePerms held,
                      const NodeUse *sharer, NodePerms shared, GError **error)
{
    unsigned conflict = node_perms_conflict(held, shared);
    g_autofree char *text = node_perms_text(conflict);
    if (!conflict)
        return 0;
    if (is_disks(sharer))
        return refuse_of_disk(named, sharer, error);
    return qmp_fail(error,
                    "Permission conflict on node '%s': permissions '%s' are both required by %s "
                    "(uses node '%s' as '%s' child) and unshared by %s (uses node '%s' as '%s' "
                    "child).",
                    named->name, text, holder->user, named->name, holder->role, sharer->user,
                    named->name, sharer->role);
}

bool named_node_is_written(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (!use->perms && (!use->by || passes_on(use->by)) &&
            perms_of(use, NULL).held & NODE_PERM_WRITE)
            return true;
    }
    return false;
}

// Whoever is about to read an overlay that nobody has read yet relies on what lies below it.
static int check_scratch(const NamedNode *overlay, const GPtrArray *range, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < overlay->children->len; i++) {
        const NodeUse *edge = overlay->children->pdata[i];
        NodePerms perms = node_perms_of(NODE_USER_BACKING, false);
        NodeUse with = *edge;
        with.perms = &perms;
        if (is_unread_scratch(edge, range))
            r = named_node_check_use_in(edge->used, &with, range, error);
    }
    return r;
}

static int check_below(const NamedNode *filter, const NodeUse *use, const GPtrArray *range,
                       GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < filter->children->len; i++) {
        const NodeUse *through = filter->children->pdata[i];
        if (g_str_equal(through->role, "target"))
            continue;
        NodePerms perms = perms_of(through, range);
        node_perms_add(&perms, perms_of(use, range));
        named_node_perms_add_kept(filter->driver, &perms);
        NodeUse with = *through;
        with.perms = &perms;
        with.allows_inactive = true; // the filter has been asked
        r = named_node_check_use_in(through->used, &with, range, error);
    }
    return r;
}

int named_node_check_mode(const NamedNode *named, NodePerms perms, GError **error)
{
    for (;;) {
        if (perms.held & (NODE_PERM_WRITE | NODE_PERM_WRITE_UNCHANGED) &&
            named_node_says_read_only(named))
            return qmp_fail(error, "Block node is read-only");
        const NamedNode *below = passes_on(named) ? named_node_lower(named) : NULL;
        if (!below)
            return 0;
        const json_t *values = named->config ? named->config->values : NULL;
        perms = named_node_perms_through(named->driver, values, perms);
        named = below;
    }
}

int named_node_check_active(const NamedNode *named, GError **error)
{
    return named->is_inactive
               ? qmp_fail(error,
                          "Node '%s' is inactive: make it active with blockdev-set-active first",
                          named->name)
               : 0;
}

static int check_active_for(const NamedNode *named, unsigned held, GError **error)
{
    static const struct {
        unsigned perm;
        const char *name;
    } changes[] = {{NODE_PERM_WRITE, "write"}, {NODE_PERM_RESIZE, "resize"}};
    for (unsigned i = 0; i < G_N_ELEMENTS(changes); i++)
        if (named->is_inactive && held & changes[i].perm)
            return qmp_fail(error, "Permission '%s' unavailable on inactive node", changes[i].name);
    return named_node_check_active(named, error);
}

int named_node_check_use_in(const NamedNode *named, const NodeUse *use, const GPtrArray *range,
                            GError **error)
{
    NodePerms perms = perms_of(use, range);
    int r = use->allows_inactive ? 0 : check_active_for(named, perms.held, error);
    // What the others share comes second, as in QEMU, and the last user first.
    for (guint n = 2 * named->users->len; r == 0 && n-- > 0;) {
        const NodeUse *other = named->users->pdata[n % named->users->len];
        if (use->by && other->by == use->by && g_str_equal(other->role, use->role))
            continue; // what it is to be instead
        if (is_inside(other, range))
            continue;
        NodePerms of_other = perms_of(other, range);
        r = n >= named->users->len ? check_pair(named, other, of_other, use, perms, error)
                                   : check_pair(named, use, perms, other, of_other, error);
    }
    if (r == 0 && passes_on(named))
        r = check_below(named, use, range, error);
    if (r == 0 && perms.held & NODE_PERM_CONSISTENT_READ)
        r = check_scratch(named, range, error);
    return r;
}

int named_node_check_use(const NamedNode *named, const NodeUse *use, GError **error)
{
    return named_node_check_use_in(named, use, NULL, error);
}

static int refuse_beside(const NamedNode *named, const NodeUse *use, const char *what,
                         GError **error)
{
    if (is_disks(use))
        return refuse_of_disk(named, use, error);
    return qmp_fail(error,
                    "Node '%s' is busy: %s is at work on it, and does not allow %s; wait for its "
                    "end, or end it",
                    named->name, use->user, what);
}

int named_node_check_change(const NamedNode *named, unsigned perms, const char *what,
                            GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->perms && perms & ~use->perms->shared)
            return refuse_beside(named, use, what, error);
    }
    return 0;
}

int named_node_check_job(const NamedNode *named, NodePerms perms, GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->perms &&
            (node_perms_conflict(perms, *use->perms) || node_perms_conflict(*use->perms, perms)))
            return refuse_beside(named, use, "another job", error);
    }
    return 0;
}

int named_node_check_root(const NamedNode *named, GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && !g_str_equal(use->role, "snapshot"))
            return qmp_fail(error, "Need a root block node");
    }
    return 0;
}

int named_node_check_no_image(const NamedNode *named, const char *what, GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        bool is_file = g_str_equal(use->role, "file") || g_str_equal(use->role, "data-file");
        if (use->by && is_file && !use->by->node->ops->is_filter)
            return qmp_fail(error, "Node '%s' is the file of node '%s': take %s of that one",
                            named->name, use->by->name, what);
    }
    return 0;
}

int named_node_check_no_overlay(const NamedNode *named, GError **error)
{
    for (guint i = named->users->len; i-- > 0;) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && g_str_equal(use->role, "backing"))
            return qmp_fail(error, "Node '%s' is busy: node is used as backing hd of '%s'",
                            named->name, use->by->name);
    }
    return 0;
}

int named_node_check_no_overlay_above(const NamedNode *named, GError **error)
{
    int r = named_node_check_no_overlay(named, error);
    for (guint i = 0; r == 0 && i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (passes_on(use->by))
            r = named_node_check_no_overlay_above(use->by, error);
    }
    return r;
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

// -- words ----------------------------------------------------------------------------------------

// "20 GiB", "512 bytes", "1.5 TiB"
static char *size_text(uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    double value = (double)bytes;
    for (; value >= 1024 && unit + 1 < G_N_ELEMENTS(units); unit++)
        value /= 1024;
    return g_strdup_printf("%.*f %s", value == (double)(uint64_t)value ? 0 : 1, value, units[unit]);
}

char *named_node_summary(const NamedNode *named)
{
    unsigned n_layers = 0;
    for (const NamedNode *n = named; n; n = named_node_child(n, "backing"))
        n_layers++;
    const char *snapshot =
        named->config ? driver_value_str(named->config->values, "snapshot", NULL) : NULL;
    g_autofree char *size = size_text(named->facts.size_bytes);
    g_autofree char *view = snapshot ? g_strdup_printf(", snapshot %s", snapshot)
                            : named->driver->has_snapshots ? g_strdup(", head")
                                                           : g_strdup("");
    return g_strdup_printf("%s %s, %u layer%s%s%s", size, named->driver->name, n_layers,
                           n_layers == 1 ? "" : "s", view,
                           named->is_inactive       ? ", inactive"
                           : named->facts.read_only ? ", read-only"
                                                    : "");
}
