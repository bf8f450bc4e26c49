// SPDX-License-Identifier: LGPL-2.1-or-later
// The order: what others changed is looked at, new children come to the nodes' loops; then modes,
// page cache or not, and what drivers see to are changed or prepared, each undone if a later one
// fails.
#include "reopening.h"

#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "daemon/node-instances.h"
#include "daemon/qmp/error.h"
#include "reopen-options.h"

// A file, and whether it goes past the page cache.
typedef struct Direct {
    NamedNode *named;
    bool is_direct, was_direct;
} Direct;

typedef struct Described {
    NamedNode *named;
    const NodeConfig *config;
} Described;

static int call_loop(Fiber *self, Reopening *r, FiberFn *fn, GError **error)
{
    r->result = 0;
    if (remote_call_fiber_reserve(self, named_node_loop(r->named), fn, r) < 0)
        return qmp_fail(error, "no memory for a fiber's stack");
    if (r->result < 0 && r->error)
        g_propagate_error(error, g_steal_pointer(&r->error));
    return r->result;
}

// -- what others did ------------------------------------------------------------------------------

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

// What another program changed is not built on. Whoever reopens a node that is read-only, and stays
// so, says that it was only touched.
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

// -- children -------------------------------------------------------------------------------------

static int bring(Fiber *self, Reopening *r, NamedNode *child, Node **ret_node, GError **error)
{
    Loop *loop = named_node_loop(r->named);
    int result = nodes_bring_to(self, r->daemon->nodes, child, loop, error);
    if (result == 0)
        *ret_node = node_instances_get(child, loop);
    return result;
}

// What came with it has its mode; what was there before has its own.
static void find_passed_on(Reopening *r)
{
    const NamedNode *lower = named_node_lower(r->named);
    if (lower && driver_passes_on(r->named->driver) && !reopen_came_with(r->named, lower))
        r->passes_on_to = node_instances_get(lower, named_node_loop(r->named));
}

static int bring_children(Fiber *self, Reopening *r, GError **error)
{
    const NamedNode *now = named_node_child(r->named, "file");
    int result = 0;
    if (r->changes_backing || r->changes_file || r->needs_driver ||
        r->read_only != r->was_read_only)
        result = nodes_make_single(self, r->daemon->nodes, r->named, error);
    if (result == 0 && r->changes_backing && r->backing)
        result = bring(self, r, r->backing, &r->below, error);
    if (result == 0 && r->changes_file)
        result = bring(self, r, r->file, &r->file_below[1], error);
    if (result == 0)
        find_passed_on(r);
    if (result == 0 && (r->changes_file || r->needs_driver)) {
        r->file_below[0] = node_instances_get(now, named_node_loop(r->named));
        if (!r->changes_file)
            r->file_below[1] = r->file_below[0];
    }
    return result;
}

// -- modes ----------------------------------------------------------------------------------------

static void set_read_only(Fiber *self, void *arg)
{
    Reopening *r = arg;
    Node *node = r->named->node;
    r->result = node_check_idle(node, &r->error);
    if (r->result < 0)
        return;
    node_drain_begin(self, node, REQUESTS_ALL);
    bool is_writable = !r->read_only && !(r->passes_on_to && r->passes_on_to->read_only);
    if (r->passes_on_to && node->ops->is_filter)
        node_set_filter_mode(node, is_writable);
    else if (!r->passes_on_to || node->read_only == is_writable)
        r->result = node_set_writable(self, node, is_writable, &r->error);
    node_drain_end(node, REQUESTS_ALL);
}

static void restore_read_only(Fiber *self, void *arg)
{
    Reopening *r = arg;
    r->read_only = r->was_read_only;
    set_read_only(self, r);
    g_clear_error(&r->error); // it is stopped then, and says so to each write
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

static GPtrArray *changing_modes(GArray *all)
{
    GPtrArray *changing = g_ptr_array_new();
    for (guint i = 0; i < all->len; i++) {
        Reopening *r = &g_array_index(all, Reopening, i);
        if (r->read_only != r->was_read_only)
            g_ptr_array_add(changing, r);
    }
    g_ptr_array_sort(changing, compare_modes);
    return changing;
}

// The first `n` of them, the last one first.
static void restore_modes(Fiber *self, const GPtrArray *changing, guint n)
{
    while (n-- > 0)
        call_loop(self, changing->pdata[n], restore_read_only, NULL);
}

static int change_modes(Fiber *self, const GPtrArray *changing, GError **error)
{
    for (guint n = 0; n < changing->len; n++) {
        int result = call_loop(self, changing->pdata[n], set_read_only, error);
        if (result < 0) {
            restore_modes(self, changing, n);
            return result;
        }
    }
    return 0;
}

// -- the page cache -------------------------------------------------------------------------------

static bool is_reopened(const GArray *all, const NamedNode *named)
{
    for (guint i = 0; i < all->len; i++) {
        if (g_array_index(all, Reopening, i).named == named)
            return true;
    }
    return false;
}

static void collect(Reopening *r, const GArray *all, NamedNode *named, const NodeConfig *config,
                    bool above);

// What came with `named` takes over what that one is told, as far as it is not told itself.
static NamedNode *collect_children(Reopening *r, const GArray *all, const NamedNode *named,
                                   const NodeConfig **config, bool is_direct)
{
    NamedNode *next = NULL;
    const NodeConfig *config_next = NULL;
    for (guint i = 0; i < named->children->len; i++) {
        const NodeUse *use = named->children->pdata[i];
        const NodeConfigChild *wanted = *config ? node_config_child(*config, use->role) : NULL;
        const NodeConfig *of_child = wanted && wanted->config ? wanted->config : use->used->config;
        if (!reopen_came_with(named, use->used) || is_reopened(all, use->used))
            continue;
        if (wanted && wanted->config) {
            Described described = {use->used, wanted->config};
            g_array_append_val(r->described, described);
        }
        if (g_str_equal(use->role, "backing")) {
            next = use->used;
            config_next = of_child;
        } else {
            collect(r, all, use->used, of_child, is_direct);
        }
    }
    *config = config_next;
    return next;
}

// Chains are long, what lies between their layers is not: only that is recursion.
static void collect(Reopening *r, const GArray *all, NamedNode *named, const NodeConfig *config,
                    bool above)
{
    for (bool is_direct = above; named;
         named = collect_children(r, all, named, &config, is_direct)) {
        is_direct = driver_value_bool(config ? config->values : NULL, "cache.direct", is_direct);
        Direct direct = {named, is_direct, .was_direct = is_direct};
        if (!named->driver->is_file)
            continue;
        direct.was_direct = file_is_direct(node_file(named->node));
        if (direct.is_direct != direct.was_direct)
            g_array_append_val(r->directs, direct);
    }
}

typedef struct SetDirect {
    Node *node;
    bool is_direct;
    int result;
    GError *error;
} SetDirect;

static void set_direct_on_loop(Fiber *self, void *arg)
{
    SetDirect *s = arg;
    s->result = node_set_direct(self, s->node, s->is_direct, &s->error);
}

// Of all instances. On failure some may have changed.
static int set_direct(Fiber *self, const NamedNode *named, bool is_direct, GError **error)
{
    SetDirect s = {.is_direct = is_direct};
    for (unsigned n = 0; s.result == 0 && (s.node = node_instances_nth(named, n)); n++)
        if (remote_call_fiber_reserve(self, s.node->loop, set_direct_on_loop, &s) < 0)
            s.result = qmp_fail(&s.error, "no memory for a fiber's stack");
    if (s.error)
        g_propagate_error(error, s.error);
    return s.result;
}

static int change_directs(Fiber *self, Reopening *r, GError **error)
{
    int result = 0;
    while (result == 0 && r->n_directs < r->directs->len) {
        const Direct *direct = &g_array_index(r->directs, Direct, r->n_directs++);
        result = set_direct(self, direct->named, direct->is_direct, error);
    }
    return result;
}

static void restore_directs(Fiber *self, Reopening *r)
{
    while (r->n_directs > 0) {
        const Direct *direct = &g_array_index(r->directs, Direct, --r->n_directs);
        set_direct(self, direct->named, direct->was_direct, NULL);
    }
}

// -- what drivers see to --------------------------------------------------------------------------

static void prepare_on_loop(Fiber *self, void *arg)
{
    Reopening *r = arg;
    NodeReopenWish wish = {
        .config = r->config,
        .was_below = r->file_below[0],
        .below = r->file_below[1],
        .is_read_only = r->read_only,
        .throttle_groups = r->daemon->throttle_groups,
    };
    r->result = node_reopen_prepare(self, r->named->node, &wish, &r->prepared, &r->error);
}

static void abort_on_loop(Fiber *self, void *arg)
{
    Reopening *r = arg;
    node_reopen_abort(self, g_steal_pointer(&r->prepared));
}

static int change_one(Fiber *self, Reopening *r, GError **error)
{
    int result = change_directs(self, r, error);
    if (result == 0 && r->file_below[0])
        result = call_loop(self, r, prepare_on_loop, error);
    return result;
}

static void restore_one(Fiber *self, Reopening *r)
{
    if (r->prepared)
        call_loop(self, r, abort_on_loop, NULL);
    restore_directs(self, r);
}

// -- all of them ----------------------------------------------------------------------------------

static int change_all(Fiber *self, GArray *all, GError **error)
{
    for (guint i = 0; i < all->len; i++) {
        int result = change_one(self, &g_array_index(all, Reopening, i), error);
        for (guint n = i + 1; result < 0 && n-- > 0;)
            restore_one(self, &g_array_index(all, Reopening, n));
        if (result < 0)
            return result;
    }
    return 0;
}

int reopenings_prepare(Fiber *self, GArray *all, GError **error)
{
    int result = 0;
    for (guint i = 0; result == 0 && i < all->len; i++) {
        Reopening *r = &g_array_index(all, Reopening, i);
        r->directs = g_array_new(FALSE, FALSE, sizeof(Direct));
        r->described = g_array_new(FALSE, FALSE, sizeof(Described));
        result = bring_children(self, r, error);
        if (result == 0)
            result = check_files(self, r, error);
        if (result == 0)
            collect(r, all, r->named, r->config, false);
    }
    g_autoptr(GPtrArray) changing = changing_modes(all);
    if (result == 0)
        result = change_modes(self, changing, error);
    if (result < 0)
        return result;
    result = change_all(self, all, error);
    if (result < 0)
        restore_modes(self, changing, changing->len);
    return result;
}

static void commit_on_loop(Fiber *self, void *arg)
{
    Reopening *r = arg;
    Node *node = r->named->node;
    node_config_apply(r->config, node);
    for (guint i = 0; i < r->described->len; i++) {
        const Described *described = &g_array_index(r->described, Described, i);
        node_config_apply(described->config, described->named->node);
    }
    if (r->prepared)
        node_reopen_commit(self, g_steal_pointer(&r->prepared));
    if (!r->changes_backing)
        return;
    Node *below = r->backing ? chain_below_new(self, r->below, r->daemon->memory) : NULL;
    Switch *change = switch_new(REQUESTS_ALL);
    switch_set_backing(change, node, below);
    switch_drain_always(self, change);
    switch_commit(change);
    switch_resume(change);
    switch_end(self, change);
    node_unref_close(self, below);
}

void reopening_commit(Fiber *self, Reopening *r)
{
    Nodes *nodes = r->daemon->nodes;
    call_loop(self, r, commit_on_loop, NULL);
    for (guint i = 0; i < r->described->len; i++) {
        const Described *described = &g_array_index(r->described, Described, i);
        described->named->config = described->config; // which is a part of what comes next
    }
    nodes_set_config(r->named, g_steal_pointer(&r->config));
    if (r->changes_file)
        nodes_set_child(self, nodes, r->named, "file", r->file);
    if (r->changes_backing)
        nodes_set_child(self, nodes, r->named, "backing", r->backing);
    nodes_refresh(self, r->named);
}

void reopening_done(Reopening *r)
{
    if (r->directs)
        g_array_unref(r->directs);
    if (r->described)
        g_array_unref(r->described);
    node_config_free(r->config);
}
