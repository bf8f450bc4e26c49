// SPDX-License-Identifier: LGPL-2.1-or-later
// What moves together, as control's table knows it: nodes that use each other, but for overlays and
// the layers below them of which each loop may have an instance.
#include "node-moves.h"

#include "chain-core/chain.h"
#include "chain-core/component.h"
#include "chain-core/remote-call.h"
#include "chain-core/switch.h"
#include "daemon/qmp/error.h"

static bool is_separable(const NodeUse *use)
{
    return use->by && g_str_equal(use->role, "backing") && !use->is_moment &&
           node_instances_are_possible(use->used);
}

// NamedNode, `named` first. Returned owned.
static GPtrArray *collect(NamedNode *named)
{
    GPtrArray *all = g_ptr_array_new();
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    g_ptr_array_add(all, named);
    g_hash_table_add(seen, named);
    for (guint i = 0; i < all->len; i++) {
        named = all->pdata[i];
        for (guint c = 0; c < named->children->len; c++) {
            const NodeUse *use = named->children->pdata[c];
            if (!is_separable(use) && g_hash_table_add(seen, use->used))
                g_ptr_array_add(all, use->used);
        }
        for (guint u = 0; u < named->users->len; u++) {
            const NodeUse *use = named->users->pdata[u];
            // An overlay on this loop is on the node itself, not on another instance.
            bool is_joined = use->by && (!is_separable(use) ||
                                         named_node_loop(use->by) == named_node_loop(named));
            if (is_joined && g_hash_table_add(seen, use->by))
                g_ptr_array_add(all, use->by);
        }
    }
    return all;
}

// --- layers that stay ----------------------------------------------------------------------------

// An overlay that moves, and what it will find below.
typedef struct Below {
    const NodeFinder *finder;
    Node *instance, *below;
} Below;

static void make_below(Fiber *self, void *arg)
{
    Below *b = arg;
    b->below = chain_below_new(self, b->instance, b->finder->memory);
}

static void drop_below(Fiber *self, void *arg)
{
    node_unref_close(self, ((Below *)arg)->below);
}

static int provide_below(Fiber *self, const NodeFinder *finder, NamedNode *layer, Below *ret_below,
                         GError **error)
{
    int r = node_instances_open(self, finder, layer, error);
    if (r < 0)
        return r;
    *ret_below = (Below){
        .finder = finder,
        .instance = node_instances_get(layer, finder->loop),
    };
    r = remote_call_fiber_reserve(self, finder->loop, make_below, ret_below);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                    "'%s' cannot be moved: no memory for a fiber's stack", layer->name);
    return r;
}

static int provide_all(Fiber *self, const NodeFinder *finder, const GPtrArray *all, GArray *belows,
                       GArray *edges, GError **error)
{
    for (guint i = 0; i < all->len; i++) {
        NamedNode *named = all->pdata[i];
        for (guint c = 0; c < named->children->len; c++) {
            const NodeUse *use = named->children->pdata[c];
            if (!is_separable(use) || g_ptr_array_find((GPtrArray *)all, use->used, NULL))
                continue;
            Below below;
            int r = provide_below(self, finder, use->used, &below, error);
            if (r < 0)
                return r;
            g_array_append_val(belows, below);
            ComponentEdge edge = {named->node, below.below};
            g_array_append_val(edges, edge);
        }
    }
    return 0;
}

// --- moving --------------------------------------------------------------------------------------

static bool is_fixed(const NamedNode *named)
{
    for (guint u = 0; u < named->users->len; u++)
        if (((const NodeUse *)named->users->pdata[u])->is_fixed)
            return true;
    return false;
}

static int check_not_fixed(const GPtrArray *all, GError **error)
{
    for (guint i = 0; i < all->len; i++)
        if (is_fixed(all->pdata[i]))
            return qmp_fail(error, "Cannot change iothread of active block backend");
    return 0;
}

int node_move(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error)
{
    if (named_node_loop(named) == finder->loop)
        return 0;
    g_autoptr(GPtrArray) all = collect(named);
    int r = check_not_fixed(all, error);
    if (r < 0)
        return r;
    g_autoptr(GPtrArray) nodes = g_ptr_array_new();
    g_autoptr(GArray) belows = g_array_new(FALSE, FALSE, sizeof(Below));
    g_autoptr(GArray) edges = g_array_new(FALSE, FALSE, sizeof(ComponentEdge));
    for (guint i = 0; i < all->len; i++)
        g_ptr_array_add(nodes, ((const NamedNode *)all->pdata[i])->node);
    r = provide_all(self, finder, all, belows, edges, error);
    if (r == 0) {
        ComponentMove move = {
            .nodes = (Node **)nodes->pdata,
            .n_nodes = nodes->len,
            .loop = finder->loop,
            .edges = (const ComponentEdge *)edges->data,
            .n_edges = edges->len,
        };
        r = component_move(self, &move, error);
    }
    // An overlay that has moved has its own reference.
    for (guint i = 0; i < belows->len; i++)
        remote_call_fiber_reserve(self, finder->loop, drop_below, &g_array_index(belows, Below, i));
    return r;
}

// What cannot be moved counts as larger than all that can.
static guint size_of(NamedNode *named)
{
    g_autoptr(GPtrArray) all = collect(named);
    return check_not_fixed(all, NULL) < 0 ? G_MAXUINT : all->len;
}

// Only what lies below an overlay can be another instance: other edges share more than content.
static bool is_only_backing(const NodeConfig *config, const char *name)
{
    for (unsigned i = 0; i < config->n_children; i++) {
        const NodeConfigChild *child = &config->children[i];
        if ((child->config && !is_only_backing(child->config, name)) ||
            (child->node && g_str_equal(child->node, name) && !g_str_equal(child->role, "backing")))
            return false;
    }
    return true;
}

static bool has_instances(const NamedNode *named, const NodeConfig *config)
{
    return node_instances_are_possible(named) && is_only_backing(config, named->name);
}

static NamedNode *find_largest(const GPtrArray *used, const NodeConfig *config)
{
    NamedNode *largest = NULL;
    guint largest_size = 0;
    for (guint i = 0; i < used->len; i++) {
        NamedNode *named = used->pdata[i];
        guint size = has_instances(named, config) ? 0 : size_of(named);
        if (size > largest_size)
            largest = named;
        largest_size = MAX(largest_size, size);
    }
    return largest;
}

bool node_moves_choose(NodeFinder *finder, const NodeConfig *config, const GPtrArray *used)
{
    const NamedNode *largest = find_largest(used, config);
    if (largest)
        finder->loop = named_node_loop(largest);
    for (guint i = 0; i < used->len; i++) {
        const NamedNode *named = used->pdata[i];
        bool is_there = has_instances(named, config)
                            ? node_instances_get(named, finder->loop) != NULL
                            : named_node_loop(named) == finder->loop;
        if (!is_there)
            return true;
    }
    return false;
}

int node_moves_join(Fiber *self, const NodeFinder *finder, const NodeConfig *config,
                    const GPtrArray *used, GError **error)
{
    for (guint i = 0; i < used->len; i++) {
        NamedNode *named = used->pdata[i];
        int r = has_instances(named, config) ? node_instances_open(self, finder, named, error)
                                             : node_move(self, finder, named, error);
        if (r < 0)
            return r;
    }
    return 0;
}

// --- one again -----------------------------------------------------------------------------------

// Of all that use it. NULL: they are on several, or one is at work on it on some loop.
static Loop *find_single_loop(const NamedNode *named)
{
    Loop *loop = NULL;
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        Loop *of_user = named_node_loop(use->by ?: named);
        if (use->perms || (use->by && node_instances_exist(use->by)) || (loop && loop != of_user))
            return NULL;
        loop = of_user;
    }
    return loop ?: named_node_loop(named);
}

typedef struct Adoption {
    Node *instance, *node;
} Adoption;

// They show the same, so nobody sees a difference.
static void adopt_users(Fiber *self, void *arg)
{
    const Adoption *adoption = arg;
    Switch *change = switch_new(REQUESTS_THAT_WRITE);
    switch_move_users(change, adoption->instance, adoption->node);
    switch_drain_always(self, change);
    switch_commit(change);
    switch_resume(change);
    switch_end(self, change);
}

static int make_single(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error)
{
    NodeFinder to = *finder;
    to.loop = find_single_loop(named);
    g_autofree char *users = named_node_users_text(named);
    if (!to.loop)
        return qmp_fail(error,
                        "Node '%s' is read by chains on %u loops, each from a file of its own, and "
                        "cannot be changed until those of one loop are left: it is used by %s",
                        named->name, named->instances->len + 1, users);
    int r = node_move(self, &to, named, error);
    NodeInstance *instance = r == 0 ? node_instances_take(named, to.loop) : NULL;
    if (instance) {
        Adoption adoption = {node_instance_node(instance), named->node};
        remote_call_fiber_reserve(self, to.loop, adopt_users, &adoption);
        node_instance_close(self, instance);
    }
    while (r == 0 && (instance = node_instances_take_unused(named)))
        node_instance_close(self, instance);
    return r;
}

// Those that use it first: then each is on one loop.
int node_make_single(Fiber *self, const NodeFinder *finder, NamedNode *named, GError **error)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new();
    g_ptr_array_add(all, named);
    for (guint i = 0; i < all->len; i++) {
        const GPtrArray *users = ((const NamedNode *)all->pdata[i])->users;
        for (guint u = 0; u < users->len; u++) {
            NamedNode *by = ((const NodeUse *)users->pdata[u])->by;
            if (by && node_instances_exist(by) && !g_ptr_array_find(all, by, NULL))
                g_ptr_array_add(all, by);
        }
    }
    int r = 0;
    for (guint i = all->len; r == 0 && i-- > 0;)
        if (node_instances_exist(all->pdata[i]))
            r = make_single(self, finder, all->pdata[i], error);
    return r;
}
