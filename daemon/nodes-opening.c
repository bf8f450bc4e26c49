// SPDX-License-Identifier: LGPL-2.1-or-later
// How nodes get into the table. A node is opened on its loop in one remote call with all that lies
// below it, and entered when that has returned. Where that needs another machine, which may be long
// or never, the graph lock is given up meanwhile: what the description names is held then, and
// stays where it is. Whether it does, an image's header may be the first to say: then it is opened
// again. Control loop, with the graph lock.
#include "nodes.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"
#include "node-facts.h"
#include "node-instances.h"
#include "node-names.h"
#include "node-table.h"

static int out_of_memory(const char *what, GError **error)
{
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                "'%s' cannot be opened: no memory for a fiber's stack", what);
    return -ENOMEM;
}

// -- opening --------------------------------------------------------------------------------------

typedef struct Opening {
    Nodes *nodes;
    NodeOrigin *origin;
    Loop *loop;
    Node *(*find)(void *arg, const char *name); // what the description names, on that loop
    void *find_arg;
    bool refuses_remote; // -EREMOTE where a header names a server
    Fiber *fiber;        // of the loop, while it works there
    bool is_being_given_up, is_given_up;
    FiberQueue given_up; // woken when the call that does that has returned
    GArray *opened;      // ChainNode
    NodeFacts *facts;
    int result;
    GError *error;
} Opening;

static void open_nodes(Fiber *self, void *arg)
{
    Opening *o = arg;
    bool is_active = driver_value_bool(o->origin->config->values, "active", true);
    LayerOptions options = {
        .read_only = !is_active,
        .is_inactive = !is_active,
        .find_node = o->find,
        .find_arg = o->find_arg,
        .refuses_remote = o->refuses_remote,
        .memory = o->nodes->memory,
        .throttle_groups = o->nodes->throttle_groups,
        .tls_creds = o->nodes->tls_creds,
        .events = &o->origin->events,
        .file_event = node_origin_file_event,
        .file_event_arg = o->origin,
    };
    o->fiber = self;
    o->result = chain_open_nodes(self, o->origin->config, &options, &o->opened, &o->error);
    o->fiber = NULL;
    if (o->result < 0)
        return;
    o->facts = g_new0(NodeFacts, o->opened->len);
    for (guint i = 0; i < o->opened->len; i++) {
        const ChainNode *opened = &g_array_index(o->opened, ChainNode, i);
        node_facts_take(opened->driver, opened->node, &o->facts[i]);
    }
}

// Uses the nodes that the config names.
static void use_named(Nodes *nodes, NamedNode *named)
{
    bool is_top = named->users->len == 0;
    for (unsigned i = 0; named->config && i < named->config->n_children; i++) {
        const NodeConfigChild *child = &named->config->children[i];
        NamedNode *used = child->node ? nodes_find(nodes, child->node) : NULL;
        if (!used)
            continue;
        const char *role = named_node_role(used, named->config, child);
        bool is_written = named_node_is_written(used);
        named_node_add_child(named, used, role);
        named_node_edge(named, role)->is_scratch =
            is_top && is_written && !named->facts.read_only && g_str_equal(role, "backing");
    }
}

static char *make_up_name(Nodes *nodes)
{
    for (;;) {
        g_autofree char *name = g_strdup_printf("#block%03u", nodes->n_made_up++);
        if (!nodes_find(nodes, name))
            return g_steal_pointer(&name);
    }
}

// Takes what is in `opened`, and `facts`.
static NamedNode *enter(Nodes *nodes, NodeOrigin *origin, ChainNode *opened, NodeFacts facts)
{
    const char *name =
        opened->config ? driver_value_str(opened->config->values, "node-name", NULL) : NULL;
    NamedNode *named = g_new0(NamedNode, 1);
    *named = (NamedNode){
        .name = name ? g_strdup(name) : make_up_name(nodes),
        .is_made_up = !name,
        .origin = node_origin_ref(origin),
        .driver = opened->driver,
        .config = opened->config,
        .node = g_steal_pointer(&opened->node),
        .facts = facts,
        .children = g_ptr_array_new(),
        .users = g_ptr_array_new(),
    };
    if (opened->own_config)
        g_ptr_array_add(origin->own_configs, g_steal_pointer(&opened->own_config));
    g_hash_table_insert(nodes->by_name, named->name, named);
    g_ptr_array_add(nodes->all, named);
    return named;
}

// The child of that role that was opened with node `at`; 0: none was. A layer's own come before
// those of what lies below it.
static guint find_opened(const Opening *o, guint at, const char *role)
{
    for (guint i = at + 1; i < o->opened->len; i++) {
        const ChainNode *opened = &g_array_index(o->opened, ChainNode, i);
        if (opened->parent == at && g_str_equal(opened->role, role))
            return i;
        if (g_str_equal(opened->role, "backing"))
            break;
    }
    return 0;
}

static void enter_chain(Opening *o, NamedNode **entered, guint at);

static void enter_with_files(Opening *o, NamedNode **entered, guint at)
{
    static const char *const roles[] = {"file", NULL, "image", "target", "data-file"};
    for (unsigned i = 0; i < G_N_ELEMENTS(roles); i++) {
        guint child = roles[i] ? find_opened(o, at, roles[i]) : 0;
        if (child)
            enter_chain(o, entered, child);
        if (!roles[i])
            entered[at] =
                enter(o->nodes, o->origin, &g_array_index(o->opened, ChainNode, at), o->facts[at]);
    }
}

// The node, what it lies in, and all below, in the order in which QEMU makes them, and tells of
// them: a file goes before what lies in it, a backing file after its overlay. Chains are long, what
// lies between their layers is not: only that is recursion.
static void enter_chain(Opening *o, NamedNode **entered, guint at)
{
    for (guint layer = at, next;; layer = next) {
        enter_with_files(o, entered, layer);
        next = find_opened(o, layer, "backing");
        if (!next)
            return;
    }
}

// By its description, or by the one it is part of; and what lies below a layer is.
static bool is_said_to_be_read_only(const NamedNode *named)
{
    if (named->config && json_object_get(named->config->values, "read-only"))
        return driver_value_bool(named->config->values, "read-only", false);
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && use->by->origin == named->origin)
            return g_str_equal(use->role, "backing") || is_said_to_be_read_only(use->by);
    }
    return false;
}

static NamedNode *enter_all(Fiber *self, Opening *o)
{
    g_autofree NamedNode **entered = g_new0(NamedNode *, o->opened->len);
    enter_chain(o, entered, 0);
    for (guint i = 0; i < o->opened->len; i++) {
        const ChainNode *opened = &g_array_index(o->opened, ChainNode, i);
        if (i > 0)
            named_node_add_child(entered[opened->parent], entered[i], opened->role);
        nodes_watch_sizes(self, o->nodes, entered[i]);
    }
    for (guint i = 0; i < o->opened->len; i++)
        use_named(o->nodes, entered[i]);
    NamedNode *top = entered[0];
    bool is_inactive = !driver_value_bool(o->origin->config->values, "active", true);
    for (guint i = 0; i < o->opened->len; i++) {
        entered[i]->is_said_read_only = is_said_to_be_read_only(entered[i]);
        entered[i]->is_inactive = is_inactive;
        entered[i]->is_writable_then = is_inactive && !entered[i]->is_said_read_only;
    }
    top->is_added = true;
    return top;
}

// Opens it, and does not enter it yet.
static int open_found(Fiber *self, Opening *o, GError **error)
{
    o->nodes->n_opened++;
    int r = remote_call_fiber_reserve(self, o->loop, open_nodes, o);
    if (r < 0)
        return out_of_memory(o->origin->label, error);
    if (o->result < 0) {
        if (!o->error)
            g_set_error(&o->error, G_FILE_ERROR, g_file_error_from_errno(-o->result),
                        "'%s' cannot be opened: %s", o->origin->label, g_strerror(-o->result));
        g_propagate_error(error, o->error);
    }
    return o->result;
}

static NamedNode *enter_opened(Fiber *self, Opening *o)
{
    NamedNode *named = enter_all(self, o);
    g_array_unref(o->opened);
    g_free(o->facts);
    return named;
}

static void close_on_loop(Fiber *self, void *arg)
{
    chain_nodes_close(self, ((Opening *)arg)->opened);
}

static void close_opened(Fiber *self, Opening *o)
{
    for (guint i = 0; i < o->opened->len; i++)
        node_facts_clear(&o->facts[i]);
    remote_call_fiber_reserve(self, o->loop, close_on_loop, o);
    g_free(o->facts);
}

// -- with what it names held ----------------------------------------------------------------------

// The description itself; what an image's header says nobody knows yet.
static bool needs_others(const NodeConfig *config)
{
    bool is_remote = config->driver && config->driver->is_remote;
    for (unsigned i = 0; !is_remote && i < config->n_children; i++)
        is_remote = config->children[i].config && needs_others(config->children[i].config);
    return is_remote;
}

// What the description names, as it is found while control goes on, and kept where it is, and
// locked.
typedef struct Held {
    GPtrArray *uses;     // NodeUse, owned
    GHashTable *by_name; // Node, on the loop
} Held;

static int hold_used(Opening *o, Held *ret_held, GError **error)
{
    const GHashTable *by_name = o->nodes->by_name;
    *ret_held = (Held){g_ptr_array_new(), g_hash_table_new(g_str_hash, g_str_equal)};
    int r = node_names_use((GHashTable *)by_name, o->origin->config, ret_held->uses, error);
    for (guint i = 0; r == 0 && i < ret_held->uses->len; i++) {
        NodeUse *use = ret_held->uses->pdata[i];
        use->is_fixed = true;
        use->opened_on = o->loop;
        g_hash_table_insert(ret_held->by_name, use->used->name,
                            node_instances_get(use->used, o->loop));
    }
    return r;
}

static void held_done(Fiber *self, Nodes *nodes, Held *held)
{
    for (guint i = 0; i < held->uses->len; i++)
        nodes_end_use(self, nodes, held->uses->pdata[i]);
    g_ptr_array_unref(held->uses);
    g_hash_table_unref(held->by_name);
}

static Node *find_held(void *arg, const char *name)
{
    return g_hash_table_lookup(arg, name);
}

static int check_held(const Opening *o, const Held *held, GError **error)
{
    for (guint i = 0; i < held->uses->len; i++) {
        const NamedNode *named = ((const NodeUse *)held->uses->pdata[i])->used;
        if (node_instances_get(named, o->loop) != g_hash_table_lookup(held->by_name, named->name))
            return qmp_fail(error, "Node '%s' has changed meanwhile: try again", named->name);
    }
    return node_names_check(o->nodes->by_name, o->origin->config, error);
}

static int open_held(Fiber *self, Opening *o, const Held *held, GError **error)
{
    Nodes *nodes = o->nodes;
    o->find = find_held;
    o->find_arg = held->by_name;
    g_ptr_array_add(nodes->openings, o);
    fiber_mutex_unlock(self, &nodes->graph_lock);
    int r = open_found(self, o, error);
    while (o->is_being_given_up)
        fiber_queue_wait(self, &o->given_up, false, "nodes: a call to a loop");
    g_ptr_array_remove_fast(nodes->openings, o);
    fiber_mutex_lock(self, &nodes->graph_lock);
    if (r < 0)
        return r;
    r = check_held(o, held, error);
    if (r < 0)
        close_opened(self, o);
    return r;
}

// Without the lock meanwhile: the names may be taken by others then.
static int add_unlocked(Fiber *self, Opening *o, NamedNode **ret_named, GError **error)
{
    Held held;
    int r = hold_used(o, &held, error);
    if (r == 0)
        r = open_held(self, o, &held, error);
    if (r == 0)
        *ret_named = enter_opened(self, o);
    held_done(self, o->nodes, &held);
    return r;
}

static int add_locked(Fiber *self, Opening *o, NodeFinder *finder, NamedNode **ret_named,
                      GError **error)
{
    Held held;
    o->find = node_instances_find; // control waits: the table stays
    o->find_arg = finder;
    int r = hold_used(o, &held, error); // for uses that end meanwhile
    if (r == 0)
        r = open_found(self, o, error);
    if (r == 0)
        *ret_named = enter_opened(self, o);
    held_done(self, o->nodes, &held);
    return r;
}

// -- adding ---------------------------------------------------------------------------------------

static int add_joined(Fiber *self, Opening *o, NodeFinder *finder, const GPtrArray *used,
                      bool may_unlock, NamedNode **ret_named, GError **error)
{
    o->loop = finder->loop;
    if (!may_unlock)
        return add_locked(self, o, finder, ret_named, error);
    if (needs_others(o->origin->config) || nodes_first_remote(used))
        return add_unlocked(self, o, ret_named, error);
    g_autoptr(GError) why = NULL;
    o->refuses_remote = true;
    int r = add_locked(self, o, finder, ret_named, &why);
    if (r != -EREMOTE) {
        if (why)
            g_propagate_error(error, g_steal_pointer(&why));
        return r;
    }
    o->refuses_remote = false;
    o->error = NULL;
    return add_unlocked(self, o, ret_named, error);
}

static int add(Fiber *self, Nodes *nodes, NodeOrigin *origin, bool may_unlock,
               NamedNode **ret_named, GError **error)
{
    const NodeConfig *config = origin->config;
    g_autoptr(GPtrArray) used = g_ptr_array_new();
    NodeFinder finder = {0};
    Opening o = {.nodes = nodes, .origin = origin};
    int r = node_names_check(nodes->by_name, config, error);
    if (r == 0)
        r = node_names_find_used(nodes->by_name, config, used, error);
    if (r == 0)
        r = nodes_join(self, nodes, config, used, &finder, error);
    if (r == 0)
        r = add_joined(self, &o, &finder, used, may_unlock, ret_named, error);
    if (r < 0)
        nodes_trim(self, nodes);
    return r;
}

static int add_as(Fiber *self, Nodes *nodes, NodeConfig *config, const char *label, bool may_unlock,
                  NamedNode **ret_named, GError **error)
{
    const char *name = driver_value_str(config->values, "node-name", NULL);
    NodeOrigin *origin = node_origin_new(label ?: name ?: "", config, nodes->emit, nodes->emit_arg);
    origin->name = g_strdup(name ?: "");
    int r = add(self, nodes, origin, may_unlock, ret_named, error);
    node_origin_unref(origin);
    return r;
}

int nodes_add(Fiber *self, Nodes *nodes, NodeConfig *config, const char *label,
              NamedNode **ret_named, GError **error)
{
    return add_as(self, nodes, config, label, false, ret_named, error);
}

int nodes_add_unlocking(Fiber *self, Nodes *nodes, NodeConfig *config, const char *label,
                        NamedNode **ret_named, GError **error)
{
    return add_as(self, nodes, config, label, true, ret_named, error);
}

static void cancel_on_loop(void *arg)
{
    const Opening *o = arg;
    if (o->fiber)
        fiber_cancel(o->fiber);
}

void nodes_give_up_opening(Fiber *self, Nodes *nodes)
{
    for (guint i = 0; i < nodes->openings->len;) {
        Opening *o = nodes->openings->pdata[i];
        if (o->is_given_up) {
            i++;
            continue;
        }
        o->is_given_up = o->is_being_given_up = true;
        remote_call_plain(self, o->loop, cancel_on_loop, o);
        o->is_being_given_up = false;
        fiber_queue_wake_all(&o->given_up);
        i = 0; // anything may have changed
    }
}
