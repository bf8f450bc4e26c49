// SPDX-License-Identifier: LGPL-2.1-or-later
// blockdev-reopen. Everything that may fail comes first, and is undone when it does: the new modes
// of all nodes, then the new backing nodes up to the moment of the switch. What an option cannot be
// changed to is refused by its name. Control loop, with the graph lock held.
#include "reopen.h"

#include <errno.h>
#include <string.h>

#include "blockdev-type.h"
#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "chain-core/switch.h"
#include "daemon/daemon.h"
#include "daemon/node-instances.h"
#include "daemon/qmp/args.h"

static const QmpType options_array = {.kind = QMP_ARRAY, .element = &blockdev_options};
static const QmpType blockdev_reopen_args = {
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"options", &options_array,
                                    .doc = "all options of each node, as for blockdev-add: what is "
                                           "not given gets its default"},
                                   {0}},
};

// One node that is reopened.
typedef struct Reopening {
    NamedNode *named;
    NodeConfig *config; // as it is to be; owned until it is done
    bool read_only, was_read_only;
    bool changes_backing;
    NamedNode *backing; // the new one; NULL: none
    Node *below;        // it, on the node's loop
    MapMemory *memory;
    Switch *change;
    int result;
    GError *error;
} Reopening;

// -- checks ---------------------------------------------------------------------------------------

static int refuse_change(const char *name, GError **error)
{
    return qmp_fail(error, "Cannot change the option '%s'", name);
}

// Options that nothing can be made of while the node is open. Those of filters are theirs.
static bool is_fixed(const Driver *driver, const char *name)
{
    static const char *const fixed[] = {"filename", "offset",  "size",
                                        "snapshot", "locking", "force-share"};
    for (size_t i = 0; i < G_N_ELEMENTS(fixed); i++) {
        if (g_str_equal(fixed[i], name))
            return true;
    }
    return driver->make && driver_option_find(driver->options, name, strlen(name));
}

// Those that one has, against the other.
static int check_values(const NamedNode *named, const json_t *has, const json_t *other,
                        GError **error)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)has, name, value)
    {
        if (is_fixed(named->driver, name) && !json_equal(value, json_object_get(other, name)))
            return refuse_change(name, error);
    }
    if (driver_value_bool(has, "cache.direct", false) !=
        driver_value_bool(other, "cache.direct", false))
        return refuse_change("cache.direct", error);
    return 0;
}

static bool is_same_child(const NamedNode *now, const NodeConfigChild *wanted);

// One that was made of options.
static bool is_same_made(const NamedNode *now, const NodeConfig *wanted)
{
    if (now->driver != wanted->driver || !now->config)
        return false;
    for (const DriverOption *option = now->driver->options; option && option->name; option++) {
        const json_t *has = json_object_get(now->config->values, option->name);
        const json_t *wants = json_object_get(wanted->values, option->name);
        if ((has || wants) && !json_equal(has, wants))
            return false;
    }
    for (unsigned i = 0; i < wanted->n_children; i++) {
        const NamedNode *child = named_node_child(now, wanted->children[i].role);
        if (!child || !is_same_child(child, &wanted->children[i]))
            return false;
    }
    return true;
}

// What descriptions nest is bounded.
static bool is_same_child(const NamedNode *now, const NodeConfigChild *wanted)
{
    if (wanted->node)
        return g_str_equal(now->name, wanted->node);
    const char *name = driver_value_str(wanted->config->values, "node-name", NULL);
    if (name && !g_str_equal(name, now->name))
        return false;
    if (wanted->config->driver && wanted->config->driver->make)
        return is_same_made(now, wanted->config);
    const NodeConfig *file = node_config_file(wanted->config);
    const char *path = file ? driver_value_str(file->values, "filename", NULL) : NULL;
    return path && g_str_equal(path, named_node_file_name(now));
}

// What lies in what cannot be changed, but for the backing node.
static int check_children(const NamedNode *named, const NodeConfig *config, GError **error)
{
    for (unsigned i = 0; i < config->n_children; i++) {
        const NodeConfigChild *child = &config->children[i];
        const NamedNode *now = named_node_child(named, child->role);
        if (!g_str_equal(child->role, "backing") && (!now || !is_same_child(now, child)))
            return refuse_change(child->role, error);
    }
    return 0;
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

static int find_backing(const Nodes *nodes, Reopening *r, GError **error)
{
    const NamedNode *named = r->named;
    const NodeConfigChild *wanted = node_config_child(r->config, "backing");
    NamedNode *now = named_node_child(named, "backing");
    if (!wanted)
        return 0; // it has none
    if (wanted->config)
        return now && is_same_child(now, wanted) ? 0 : refuse_change("backing", error);
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
    if (lies_below(named, r->backing))
        return qmp_fail(error, "Making '%s' a backing child of '%s' would create a cycle",
                        r->backing->name, named->name);
    g_autofree char *user = g_strdup_printf("node '%s'", named->name);
    return named_node_check_use(r->backing, &(NodeUse){.role = "backing", .user = user}, error);
}

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
        if (use->writes && !(use->by && will_be_read_only(all, use->by)))
            return true;
    }
    return false;
}

// Does nobody else rely on what it lies in, so that it may write there? What came with it becomes
// writable with it, other nodes do not.
static int check_may_write(const GArray *all, const NamedNode *named, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < named->children->len; i++) {
        NodeUse use = *(const NodeUse *)named->children->pdata[i];
        use.writes = !g_str_equal(use.role, "backing");
        if (use.writes && use.used->origin != named->origin && will_be_read_only(all, use.used))
            return qmp_fail(error, "Block node is read-only");
        r = named_node_check_use(use.used, &use, error);
    }
    return r;
}

static bool has_backing(const NamedNode *named)
{
    return named_node_child(named, "backing") ||
           json_object_get(named->facts.info, "backing-filename");
}

static int check(const Nodes *nodes, const GArray *all, Reopening *r, GError **error)
{
    const NamedNode *named = r->named;
    const json_t *old = named->config ? named->config->values : NULL;
    if (has_backing(named) && !node_config_child(r->config, "backing"))
        return qmp_fail(error, "backing is missing for '%s'", named->name);
    json_t *none = json_object();
    if (named->driver != r->config->driver) {
        json_decref(none);
        return refuse_change("driver", error);
    }
    int result = check_values(named, r->config->values, old ?: none, error);
    if (result == 0)
        result = check_values(named, old ?: none, r->config->values, error);
    json_decref(none);
    if (result == 0)
        result = check_children(named, r->config, error);
    if (result == 0 && r->read_only && keeps_writer(all, named))
        return qmp_fail(error, "Read-only block node '%s' cannot support read-write users",
                        named->name);
    if (result == 0)
        result = find_backing(nodes, r, error);
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
    r->memory = daemon->memory;
    r->was_read_only = r->named->facts.read_only;
    r->read_only = driver_value_bool(r->config->values, "read-only", false);
    if (!r->read_only && r->was_read_only &&
        driver_value_bool(r->config->values, "auto-read-only", false))
        r->read_only = true; // it could not be written when it was opened
    return 0;
}

// -- on the node's loop ---------------------------------------------------------------------------

static void set_read_only(Fiber *self, void *arg)
{
    Reopening *r = arg;
    Node *node = r->named->node;
    node_drain_begin(self, node, REQUESTS_ALL);
    r->result = node_set_writable(self, node, !r->read_only, &r->error);
    node_drain_end(node, REQUESTS_ALL);
}

static void restore_read_only(Fiber *self, void *arg)
{
    Reopening *r = arg;
    r->read_only = r->was_read_only;
    set_read_only(self, r);
    g_clear_error(&r->error); // it is stopped then, and says so to each write
}

static void check_below(Fiber *self, void *arg)
{
    Reopening *r = arg;
    r->result = chain_check_unchanged(self, r->below, &r->error);
}

typedef struct Acceptance {
    Node *node;
    int result;
    GError *error;
} Acceptance;

static void accept_change(Fiber *self, void *arg)
{
    Acceptance *a = arg;
    a->result = node_accept_change(self, a->node, &a->error);
}

// Also what cannot fail any more.
static void switch_node(Fiber *self, void *arg)
{
    Reopening *r = arg;
    Node *node = r->named->node;
    node_config_apply(r->config, node);
    if (!r->changes_backing)
        return;
    Node *below = r->backing ? chain_below_new(self, r->below, r->memory) : NULL;
    Switch *change = switch_new(REQUESTS_ALL);
    switch_set_backing(change, node, below);
    switch_drain_always(self, change);
    switch_commit(change);
    switch_resume(change);
    switch_end(self, change);
    node_unref_close(self, below);
}

// -- all of them ----------------------------------------------------------------------------------

static int call_loop(Fiber *self, Reopening *r, FiberFn *fn, GError **error)
{
    r->result = 0;
    if (remote_call_fiber_reserve(self, named_node_loop(r->named), fn, r) < 0)
        return qmp_fail(error, "no memory for a fiber's stack");
    if (r->result < 0 && r->error)
        g_propagate_error(error, g_steal_pointer(&r->error));
    return r->result;
}

// What another program changed is not built on. Whoever reopens a node that is read-only, and stays so,
// says that it was only touched.
static int check_files(Fiber *self, Reopening *r, GError **error)
{
    int result = r->below ? call_loop(self, r, check_below, error) : 0;
    Acceptance a = {0};
    for (unsigned n = 0; result == 0 && r->read_only && r->was_read_only; n++) {
        a.node = node_instances_nth(r->named, n);
        if (!a.node)
            break;
        if (remote_call_fiber_reserve(self, a.node->loop, accept_change, &a) < 0)
            return qmp_fail(error, "no memory for a fiber's stack");
        if (a.error)
            g_propagate_error(error, a.error);
        result = a.result;
    }
    return result;
}

static int bring_backing(Fiber *self, Nodes *nodes, Reopening *r, GError **error)
{
    if (!r->changes_backing || !r->backing)
        return 0;
    Loop *loop = named_node_loop(r->named);
    int result = nodes_bring_to(self, nodes, r->backing, loop, error);
    if (result == 0)
        r->below = node_instances_get(r->backing, loop);
    return result;
}

// What lies in a file is written only while the file can be: that one first, or last.
static gint compare_modes(gconstpointer a, gconstpointer b)
{
    const Reopening *of_a = *(const Reopening *const *)a, *of_b = *(const Reopening *const *)b;
    bool a_is_file = of_a->named->driver->is_file, b_is_file = of_b->named->driver->is_file;
    if (of_a->read_only != of_b->read_only)
        return of_a->read_only ? 1 : -1;
    return a_is_file == b_is_file ? 0 : a_is_file == of_a->read_only ? 1 : -1;
}

// On failure they are as before.
static int change_modes(Fiber *self, GArray *all, GError **error)
{
    g_autoptr(GPtrArray) changing = g_ptr_array_new();
    for (guint i = 0; i < all->len; i++) {
        Reopening *r = &g_array_index(all, Reopening, i);
        if (r->read_only != r->was_read_only)
            g_ptr_array_add(changing, r);
    }
    g_ptr_array_sort(changing, compare_modes);
    int result = 0;
    guint n = 0;
    for (; result == 0 && n < changing->len; n++)
        result = call_loop(self, changing->pdata[n], set_read_only, error);
    while (result < 0 && --n > 0)
        call_loop(self, changing->pdata[n - 1], restore_read_only, NULL);
    return result;
}

// Everything that may fail. On failure all is as before.
static int prepare(Fiber *self, const Daemon *daemon, const json_t *options, GArray *all,
                   GError **error)
{
    int result = 0;
    g_array_set_size(all, (guint)json_array_size(options));
    for (guint i = 0; result == 0 && i < all->len; i++)
        result = read_options(daemon, json_array_get(options, i), &g_array_index(all, Reopening, i),
                              error);
    for (guint i = 0; result == 0 && i < all->len; i++)
        result = check(daemon->nodes, all, &g_array_index(all, Reopening, i), error);
    for (guint i = 0; result == 0 && i < all->len; i++) {
        Reopening *r = &g_array_index(all, Reopening, i);
        if (r->changes_backing || r->read_only != r->was_read_only)
            result = nodes_make_single(self, daemon->nodes, r->named, error);
        if (result == 0)
            result = bring_backing(self, daemon->nodes, r, error);
        if (result == 0)
            result = check_files(self, r, error);
    }
    return result < 0 ? result : change_modes(self, all, error);
}

static int reopen(Fiber *self, Daemon *daemon, const json_t *options, GArray *all, GError **error)
{
    Nodes *nodes = daemon->nodes;
    int result = prepare(self, daemon, options, all, error);
    for (guint n = 0; result == 0 && n < all->len; n++) {
        Reopening *r = &g_array_index(all, Reopening, n);
        call_loop(self, r, switch_node, NULL);
        nodes_set_config(r->named, g_steal_pointer(&r->config));
        if (r->changes_backing)
            nodes_set_child(self, nodes, r->named, "backing", r->backing);
        nodes_refresh(self, r->named);
    }
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
        node_config_free(g_array_index(all, Reopening, i).config);
    g_array_unref(all);
    return r;
}

static const QmpCommand commands[] = {
    {"blockdev-reopen", &blockdev_reopen_args, NULL,
     "Changes options of nodes while they are in use, of all of them or of none: read-only, "
     "discard, detect-zeroes, the backing node, and those that do nothing.",
     blockdev_reopen},
    {0},
};

const QmpFamily qmp_reopen_family = {.title = "Options of nodes in use", .commands = commands};
