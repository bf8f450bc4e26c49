// SPDX-License-Identifier: LGPL-2.1-or-later
// blockdev-reopen. What may change is checked first, of all nodes, and then everything that may
// fail is done, and undone when it does (reopening.h). What an option cannot be changed to is
// refused by its name. Control loop, with the graph lock held.
#include "reopen.h"

#include <errno.h>
#include <string.h>

#include "blockdev-type.h"
#include "daemon/qmp/args.h"
#include "reopen-options.h"
#include "reopening.h"

static const QmpType options_array = {.kind = QMP_ARRAY, .element = &blockdev_options};
static const QmpType blockdev_reopen_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"options", &options_array,
                                    .doc = "all options of each node, as for blockdev-add: what is "
                                           "not given gets its default"},
                                   {0}},
};

// -- children -------------------------------------------------------------------------------------

static int find_backing(const Nodes *nodes, Reopening *r, GError **error)
{
    const NamedNode *named = r->named;
    const NodeConfigChild *wanted = node_config_child(r->config, "backing");
    NamedNode *now = named_node_child(named, "backing");
    if (!wanted || wanted->config)
        return 0; // it has none, or the one that it has is described again
    r->backing = wanted->node ? nodes_get(nodes, wanted->node, error) : NULL;
    if (wanted->node && !r->backing)
        return -ENODEV;
    r->changes_backing = r->backing != now;
    if (!r->changes_backing)
        return 0;
    if (named_node_check_change(named, NODE_PERM_BACKING, "another backing node", error) < 0)
        return -EBUSY;
    if (!r->backing)
        return 0;
    if (named_node_check_no_cycle(named, r->backing, "backing", error) < 0)
        return -EINVAL;
    g_autofree char *user = g_strdup_printf("node '%s'", named->name);
    return named_node_check_use(r->backing, &(NodeUse){.role = "backing", .user = user}, error);
}

// What it does with the one that it has is over then.
static int check_file(const Reopening *r, GError **error)
{
    const NamedNode *named = r->named;
    g_autofree char *user = g_strdup_printf("node '%s'", named->name);
    g_autoptr(GPtrArray) range = g_ptr_array_new();
    NodeUse use = {
        .by = r->named,
        .role = "file",
        .writes = !r->read_only,
        .user = user,
    };
    g_ptr_array_add(range, r->named);
    int result = named_node_check_change(named, NODE_PERM_BACKING, "another file", error);
    if (result == 0)
        result = named_node_check_no_cycle(named, r->file, "file", error);
    if (result == 0)
        result = named_node_check_use_in(r->file, &use, range, error);
    return result < 0 ? result : named_node_check_mode(r->file, node_use_perms(&use), error);
}

// Does it show another part of a file, or one that ends elsewhere? A filter that comes or goes
// changes neither.
static bool shows_other_part(const Reopening *r, NamedNode *now)
{
    const json_t *values = r->config->values;
    uint64_t offset = (uint64_t)driver_value_int(values, "offset", 0);
    if (r->needs_driver && !r->named->node->ops->is_filter)
        return true;
    return r->changes_file && named_node_image(now) != named_node_image(r->file) &&
           !json_object_get(values, "size") &&
           r->file->facts.size_bytes - offset != r->named->facts.size_bytes;
}

static int find_file(const Nodes *nodes, Reopening *r, GError **error)
{
    const NodeConfigChild *wanted = node_config_child(r->config, "file");
    NamedNode *now = named_node_child(r->named, "file");
    int result = 0;
    r->needs_driver = reopen_needs_driver(r->named, r->config);
    if (wanted && wanted->node && now && !g_str_equal(now->name, wanted->node)) {
        if (!r->named->driver->reopen)
            return qmp_fail(error, "Cannot change the option 'file'");
        r->file = nodes_get(nodes, wanted->node, error);
        if (!r->file)
            return -ENODEV;
        r->changes_file = true;
        result = check_file(r, error);
    }
    if (result == 0 && shows_other_part(r, now))
        result = named_node_check_no_overlay_above(r->named, error);
    return result;
}

// -- modes ----------------------------------------------------------------------------------------

// As it is once all are reopened.
static bool will_be_read_only(const GArray *all, const NamedNode *named)
{
    for (guint i = 0; i < all->len; i++) {
        const Reopening *r = &g_array_index(all, Reopening, i);
        if (r->named == named)
            return r->read_only;
    }
    return named->facts.read_only;
}

static bool keeps_writer(const GArray *all, const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        bool writes = node_use_perms(use).held & (NODE_PERM_WRITE | NODE_PERM_WRITE_UNCHANGED);
        if (writes && !(use->by && will_be_read_only(all, use->by)))
            return true;
    }
    return false;
}

// What came with `named`, and stays read-only though it is written through it: NULL, nothing does.
// What is described anew follows `named` unless it says otherwise; what is only named keeps its
// mode, unless the one above says its own (`is_said`). As in QEMU. What descriptions nest is
// bounded.
static const NamedNode *find_read_only(const GArray *all, const NamedNode *named,
                                       const NodeConfig *config, bool is_said)
{
    const NamedNode *found = NULL;
    is_said |= json_object_get(config->values, "read-only") != NULL;
    for (guint i = 0; !found && i < named->children->len; i++) {
        const NodeUse *use = named->children->pdata[i];
        const NodeConfigChild *wanted = node_config_child(config, use->role);
        if (!wanted || g_str_equal(use->role, "backing") || !reopen_came_with(named, use->used))
            continue;
        bool is_kept = wanted->config
                           ? driver_value_bool(wanted->config->values, "read-only", false)
                           : !is_said && will_be_read_only(all, use->used);
        found = is_kept          ? use->used
                : wanted->config ? find_read_only(all, use->used, wanted->config, is_said)
                                 : NULL;
    }
    return found;
}

static int refuse_writer(const NamedNode *named, GError **error)
{
    return qmp_fail(error, "Read-only block node '%s' cannot support read-write users",
                    named->name);
}

static int check_written_through(const GArray *all, const Reopening *r, GError **error)
{
    const NamedNode *named = r->named;
    if (r->read_only || driver_passes_on(named->driver))
        return 0;
    const NamedNode *found = find_read_only(all, named, r->config, false);
    if (!found)
        return 0;
    return found->facts.read_only ? qmp_fail(error, "Block node is read-only")
                                  : refuse_writer(found, error);
}

// A layer has a mode of its own, which is changed by options of its own.
static int check_layer_modes(const GArray *all, const NamedNode *named, const NodeConfig *config,
                             GError **error)
{
    const NodeConfigChild *wanted;
    for (; config; config = wanted ? wanted->config : NULL) {
        wanted = node_config_child(config, "backing");
        named = named_node_child(named, "backing");
        if (!wanted || !wanted->config || !named)
            return 0;
        bool is_wanted = will_be_read_only(all, named);
        if (driver_value_bool(wanted->config->values, "read-only", is_wanted) != is_wanted)
            return qmp_fail(error,
                            "Cannot change the option 'backing.read-only' of node '%s' within "
                            "another one: give it options of its own",
                            named->name);
    }
    return 0;
}

// Does nobody else rely on what it lies in, so that it may write there? What came with it becomes
// writable with it, other nodes do not.
static int check_may_write(const GArray *all, const NamedNode *named, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < named->children->len; i++) {
        NodeUse use = *(const NodeUse *)named->children->pdata[i];
        use.writes = !g_str_equal(use.role, "backing");
        if (use.writes && !driver_passes_on(named->driver) && !reopen_came_with(named, use.used) &&
            will_be_read_only(all, use.used))
            return qmp_fail(error, "Block node is read-only");
        r = named_node_check_use(use.used, &use, error);
    }
    return r;
}

// -- one node -------------------------------------------------------------------------------------

static bool has_backing(const NamedNode *named)
{
    return named_node_child(named, "backing") ||
           json_object_get(named->facts.info, "backing-filename");
}

static int check(const Nodes *nodes, const GArray *all, Reopening *r, GError **error)
{
    const NamedNode *named = r->named;
    int result = reopen_check_given(named, r->config, error);
    if (result == 0)
        result = named_node_check_active(named, error);
    if (result == 0 && has_backing(named) && !node_config_child(r->config, "backing"))
        return qmp_fail(error, "backing is missing for '%s'", named->name);
    if (result == 0)
        result = find_backing(nodes, r, error);
    if (result == 0)
        result = find_file(nodes, r, error);
    if (result == 0)
        result = reopen_check_changes(named, r->config, error);
    if (result == 0 && r->read_only && keeps_writer(all, named))
        return refuse_writer(named, error);
    if (result == 0)
        result = check_layer_modes(all, named, r->config, error);
    if (result == 0)
        result = check_written_through(all, r, error);
    if (result == 0 && r->was_read_only && !r->read_only)
        result = check_may_write(all, named, error);
    return result;
}

static int read_options(const Daemon *daemon, json_t *options, Reopening *r, GError **error)
{
    const char *name = qmp_args_str(options, "node-name");
    if (!name)
        return qmp_fail(error, "node-name not specified");
    r->named = nodes_find(daemon->nodes, name);
    if (!r->named)
        return qmp_fail(error, "Failed to find node with node-name='%s'", name);
    int result = node_config_new(options, true, &r->config, error);
    if (result < 0)
        return result;
    if (!driver_value_str(r->config->values, "discard", NULL))
        json_object_set_new(r->config->values, "discard", json_string("ignore"));
    r->daemon = daemon;
    r->was_read_only = r->named->facts.read_only;
    r->read_only = driver_value_bool(r->config->values, "read-only", false);
    if (!r->read_only && r->was_read_only &&
        driver_value_bool(r->config->values, "auto-read-only", false))
        r->read_only = true; // it could not be written when it was opened
    return 0;
}

// -- all of them ----------------------------------------------------------------------------------

static int reopen(Fiber *self, const Daemon *daemon, const json_t *options, GArray *all,
                  GError **error)
{
    int result = 0;
    g_array_set_size(all, (guint)json_array_size(options));
    for (guint i = 0; result == 0 && i < all->len; i++)
        result = read_options(daemon, json_array_get(options, i), &g_array_index(all, Reopening, i),
                              error);
    for (guint i = 0; result == 0 && i < all->len; i++)
        result = check(daemon->nodes, all, &g_array_index(all, Reopening, i), error);
    if (result == 0)
        result = reopenings_prepare(self, all, error);
    for (guint i = 0; result == 0 && i < all->len; i++)
        reopening_commit(self, &g_array_index(all, Reopening, i));
    return result;
}

static int blockdev_reopen(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                           GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    GArray *all = g_array_new(FALSE, TRUE, sizeof(Reopening));
    fiber_mutex_lock(self, nodes_graph_lock(nodes));
    int r = reopen(self, call->daemon, json_object_get(args, "options"), all, error);
    fiber_mutex_unlock(self, nodes_graph_lock(nodes));
    for (guint i = 0; i < all->len; i++)
        reopening_done(&g_array_index(all, Reopening, i));
    g_array_unref(all);
    return r;
}

static const QmpCommand commands[] = {
    {"blockdev-reopen", &blockdev_reopen_args, NULL,
     "Changes options of nodes while they are in use, of all of them or of none: read-only, "
     "discard, detect-zeroes, cache.direct, the backing node, the file node (of an image: filters "
     "over the same one), the part of a raw node that no overlay stands on, the group of a "
     "throttle node, and those that do nothing.",
     blockdev_reopen},
    {0},
};

const QmpFamily qmp_reopen_family = {.title = "Options of nodes in use", .commands = commands};
