// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of nodes. A node is opened on its loop in one remote call with all that lies below it,
// and gets its place in the table when that has returned; it leaves the table first, and is closed
// then (nodes-closing.c). So what is in the table is open, and what a loop closes nobody finds any
// more.
#include "nodes.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"
#include "node-facts.h"
#include "node-moves.h"
#include "node-names.h"
#include "node-table.h"

// -- sizes ----------------------------------------------------------------------------------------

static void check_files(Fiber *self, void *arg)
{
    Node *node = node_ref(arg); // the disk may be closed whenever this waits
    File *files[] = {node_file(node), node_metadata_file(node)};
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
        if (files[i]) { // what fails here fails for clients, too
            file_check_size(self, files[i]);
            file_check_unchanged(self, files[i], NULL);
        }
    node_unref_close(self, node);
}

// With the lock: nothing moves to another loop meanwhile.
static void check_sizes(Fiber *self, void *arg, void *key)
{
    Nodes *nodes = arg;
    fiber_mutex_lock(self, &nodes->graph_lock);
    if (g_ptr_array_find(nodes->all, key, NULL)) {
        const NamedNode *named = key;
        remote_call_fiber_reserve(self, named_node_loop(named), check_files, named->node);
    }
    fiber_mutex_unlock(self, &nodes->graph_lock);
}

// Not where another program writes the files.
static void watch_sizes(Fiber *self, Nodes *nodes, NamedNode *named)
{
    if (named->driver->is_file ||
        (named->config && driver_value_bool(named->config->values, "force-share", false)))
        return;
    const File *files[] = {node_file(named->node), node_metadata_file(named->node)};
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
        if (files[i])
            size_watch_add(self, nodes->watch, file_path(files[i]), named);
}

// -- the table ------------------------------------------------------------------------------------

Nodes *nodes_new(const Loops *loops, MapMemory *memory, NodeOriginEmit *emit, void *emit_arg)
{
    Nodes *nodes = g_new0(Nodes, 1);
    nodes->loops = loops;
    nodes->memory = memory;
    nodes->emit = emit;
    nodes->emit_arg = emit_arg;
    nodes->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    nodes->all = g_ptr_array_new();
    nodes->openings = g_ptr_array_new();
    nodes->watch = size_watch_new(check_sizes, nodes);
    return nodes;
}

void nodes_set_throttle_groups(Nodes *nodes, ThrottleGroups *groups)
{
    nodes->throttle_groups = groups;
}

void nodes_free(Nodes *nodes)
{
    if (!nodes)
        return;
    g_assert(nodes->all->len == 0);
    size_watch_free(nodes->watch);
    g_hash_table_unref(nodes->by_name);
    g_ptr_array_unref(nodes->all);
    g_ptr_array_unref(nodes->openings);
    g_free(nodes);
}

FiberMutex *nodes_graph_lock(Nodes *nodes)
{
    return &nodes->graph_lock;
}

const GPtrArray *nodes_all(const Nodes *nodes)
{
    return nodes->all;
}

char **nodes_names(const Nodes *nodes)
{
    char **names = g_new0(char *, nodes->all->len + 1);
    for (guint i = 0; i < nodes->all->len; i++)
        names[i] = g_strdup(((const NamedNode *)nodes->all->pdata[i])->name);
    return names;
}

NamedNode *nodes_find(const Nodes *nodes, const char *name)
{
    return g_hash_table_lookup(nodes->by_name, name);
}

NamedNode *nodes_get(const Nodes *nodes, const char *name, GError **error)
{
    NamedNode *named = nodes_find(nodes, name);
    if (!named)
        qmp_fail(error, "Cannot find device='' nor node-name='%s'", name);
    return named;
}

static int out_of_memory(const char *what, GError **error)
{
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOMEM,
                "'%s' cannot be opened: no memory for a fiber's stack", what);
    return -ENOMEM;
}

// -- loops ----------------------------------------------------------------------------------------

// Whoever closes something keeps nodes from moving, and waits while some do.
static int begin_move(Fiber *self, Nodes *nodes, GError **error)
{
    FiberRwLock *lock = &nodes->move_lock;
    if (lock->n_readers || lock->writer)
        return qmp_fail(error, "A node or an export is being closed: try again");
    fiber_rw_lock_write(self, lock);
    return 0;
}

FiberRwLock *nodes_move_lock(Nodes *nodes)
{
    return &nodes->move_lock;
}

static NodeFinder finder_for(const Nodes *nodes, Loop *loop)
{
    return (NodeFinder){nodes->by_name, loop, nodes->memory};
}

// Has all of `used` on one loop, and says on which: if none has to be on one, the next in turn, but
// what is read only stays with what it is made of.
static int join(Fiber *self, Nodes *nodes, const NodeConfig *config, const GPtrArray *used,
                NodeFinder *ret_finder, GError **error)
{
    *ret_finder = finder_for(nodes, loops_get(nodes->loops, nodes->n_opened));
    if (!used->len)
        return 0;
    if (driver_value_bool(config->values, "read-only", false))
        ret_finder->loop = named_node_loop(used->pdata[0]);
    int r = begin_move(self, nodes, error);
    if (r < 0)
        return r;
    r = node_moves_join(self, ret_finder, config, used, error);
    fiber_rw_unlock_write(self, &nodes->move_lock);
    return r;
}

// Closes instances that nobody uses. With the lock.
static void trim(Fiber *self, Nodes *nodes)
{
    for (guint i = 0; i < nodes->all->len; i++) {
        NodeInstance *instance = node_instances_take_unused(nodes->all->pdata[i]);
        if (!instance)
            continue;
        node_instance_close(self, instance);
        i = (guint)-1; // anything may have changed
    }
}

static void trim_fiber(Fiber *self, void *arg)
{
    Nodes *nodes = arg;
    fiber_mutex_lock(self, &nodes->graph_lock);
    nodes->is_trimming = false;
    trim(self, nodes);
    fiber_mutex_unlock(self, &nodes->graph_lock);
}

// For those who do not have the lock.
void nodes_trim_later(Fiber *self, Nodes *nodes)
{
    if (!nodes->is_trimming)
        nodes->is_trimming =
            fiber_spawn_reserve(fiber_loop(self), "instances", trim_fiber, nodes) == 0;
}

int nodes_move(Fiber *self, Nodes *nodes, NamedNode *named, Loop *loop, GError **error)
{
    NodeFinder finder = finder_for(nodes, loop);
    int r = named_node_loop(named) == loop ? 0 : begin_move(self, nodes, error);
    if (r < 0 || named_node_loop(named) == loop)
        return r;
    r = node_move(self, &finder, named, error);
    fiber_rw_unlock_write(self, &nodes->move_lock);
    trim(self, nodes);
    return r;
}

int nodes_make_single(Fiber *self, Nodes *nodes, NamedNode *named, GError **error)
{
    NodeFinder finder = finder_for(nodes, NULL);
    int r = node_instances_exist(named) ? begin_move(self, nodes, error) : 0;
    if (r < 0 || !node_instances_exist(named))
        return r;
    r = node_make_single(self, &finder, named, error);
    fiber_rw_unlock_write(self, &nodes->move_lock);
    trim(self, nodes);
    return r;
}

// -- opening --------------------------------------------------------------------------------------

typedef struct Opening {
    Nodes *nodes;
    NodeOrigin *origin;
    Loop *loop;
    const NodeFinder *finder; // NULL: finds none
    Fiber *fiber;             // of the loop, while it works there
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
    LayerOptions options = {
        .find_node = o->finder ? node_instances_find : NULL, // control waits: the table stays
        .find_arg = (void *)o->finder,
        .memory = o->nodes->memory,
        .throttle_groups = o->nodes->throttle_groups,
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
    for (unsigned i = 0; named->config && i < named->config->n_children; i++) {
        const NodeConfigChild *child = &named->config->children[i];
        NamedNode *used = child->node ? nodes_find(nodes, child->node) : NULL;
        if (used)
            named_node_add_child(named, used, named_node_role(used, named->config, child));
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
        watch_sizes(self, o->nodes, entered[i]);
    }
    for (guint i = 0; i < o->opened->len; i++)
        use_named(o->nodes, entered[i]);
    for (guint i = 0; i < o->opened->len; i++)
        entered[i]->is_said_read_only = is_said_to_be_read_only(entered[i]);
    NamedNode *top = entered[0];
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

static bool needs_others(const NodeConfig *config)
{
    bool is_remote = config->driver && config->driver->is_remote;
    for (unsigned i = 0; !is_remote && i < config->n_children; i++)
        is_remote = config->children[i].config && needs_others(config->children[i].config);
    return is_remote;
}

// Without the lock meanwhile; the names may be taken by others then.
static int open_unlocked(Fiber *self, Opening *o, GError **error)
{
    Nodes *nodes = o->nodes;
    g_ptr_array_add(nodes->openings, o);
    fiber_mutex_unlock(self, &nodes->graph_lock);
    int r = open_found(self, o, error);
    while (o->is_being_given_up)
        fiber_queue_wait(self, &o->given_up, false, "nodes: a call to a loop");
    g_ptr_array_remove_fast(nodes->openings, o);
    fiber_mutex_lock(self, &nodes->graph_lock);
    if (r == 0) {
        r = node_names_check(nodes->by_name, o->origin->config, error);
        if (r < 0)
            close_opened(self, o);
    }
    return r;
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
        r = join(self, nodes, config, used, &finder, error);
    bool unlocks = may_unlock && !used->len && needs_others(config);
    o.loop = finder.loop;
    o.finder = unlocks ? NULL : &finder;
    if (r == 0)
        r = unlocks ? open_unlocked(self, &o, error) : open_found(self, &o, error);
    if (r == 0)
        *ret_named = enter_opened(self, &o);
    else
        trim(self, nodes);
    return r;
}

int nodes_add(Fiber *self, Nodes *nodes, NodeConfig *config, const char *label,
              NamedNode **ret_named, GError **error)
{
    const char *name = driver_value_str(config->values, "node-name", NULL);
    NodeOrigin *origin = node_origin_new(label ?: name ?: "", config, nodes->emit, nodes->emit_arg);
    origin->name = g_strdup(name ?: "");
    int r = add(self, nodes, origin, false, ret_named, error);
    node_origin_unref(origin);
    return r;
}

int nodes_add_unlocked(Fiber *self, Nodes *nodes, NodeConfig *config, NamedNode **ret_named,
                       GError **error)
{
    const char *name = driver_value_str(config->values, "node-name", "");
    NodeOrigin *origin = node_origin_new(name, config, nodes->emit, nodes->emit_arg);
    origin->name = g_strdup(name);
    fiber_mutex_lock(self, &nodes->graph_lock);
    int r = add(self, nodes, origin, true, ret_named, error);
    fiber_mutex_unlock(self, &nodes->graph_lock);
    node_origin_unref(origin);
    return r;
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

// What is in the table is closed later than a message that is sent now arrives.
typedef struct GiveUp {
    LoopCall call; // first
    Node *node;
} GiveUp;

static void give_up_arrives(LoopCall *call)
{
    GiveUp *give_up = (GiveUp *)call;
    node_give_up(give_up->node);
    g_free(give_up);
}

void nodes_give_up(const Nodes *nodes)
{
    for (guint i = 0; i < nodes->all->len; i++) {
        const NamedNode *named = nodes->all->pdata[i];
        GiveUp *give_up = g_new(GiveUp, 1);
        *give_up = (GiveUp){.call.fn = give_up_arrives, .node = named->node};
        loop_post(named->node->loop, &give_up->call);
    }
}

void nodes_refresh(Fiber *self, NamedNode *named)
{
    NodeRefresh r;
    node_refresh_init(&r);
    node_refresh_add(&r, named);
    remote_call_fiber_reserve(self, named_node_loop(named), node_refresh_take, &r);
    node_refresh_end(&r);
}

// -- changes --------------------------------------------------------------------------------------

int nodes_bring_to(Fiber *self, Nodes *nodes, NamedNode *named, Loop *loop, GError **error)
{
    NodeFinder finder = finder_for(nodes, loop);
    return node_instances_are_possible(named) ? node_instances_open(self, &finder, named, error)
                                              : nodes_move(self, nodes, named, loop, error);
}

void nodes_set_config(NamedNode *named, NodeConfig *config)
{
    g_ptr_array_add(named->origin->own_configs, config);
    named->config = config;
    named->is_said_read_only = driver_value_bool(config->values, "read-only", false);
}

void nodes_set_child(Fiber *self, Nodes *nodes, NamedNode *named, const char *role,
                     NamedNode *child)
{
    NodeUse *old = NULL;
    for (guint i = 0; !old && i < named->children->len; i++) {
        NodeUse *use = named->children->pdata[i];
        if (g_str_equal(use->role, role))
            old = g_ptr_array_steal_index(named->children, i);
    }
    if (child)
        named_node_add_child(named, child, role);
    if (old)
        nodes_end_use(self, nodes, old);
    trim(self, nodes);
}
