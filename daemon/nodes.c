// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of nodes, and which loop they are on. A node is opened before it gets its place in the
// table (nodes-opening.c), and leaves the table before it is closed (nodes-closing.c). So what is
// in the table is open, and what a loop closes nobody finds any more.
#include "nodes.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "chain-core/port.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"
#include "node-facts.h"
#include "node-moves.h"
#include "node-names.h"
#include "node-table.h"

enum { CLOSING_POLL_NS = 1000000 };

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
    const NamedNode *named = key;
    if (g_ptr_array_find(nodes->all, key, NULL) && !named->is_inactive) {
        remote_call_fiber_reserve(self, named_node_loop(named), check_files, named->node);
    }
    fiber_mutex_unlock(self, &nodes->graph_lock);
}

void nodes_watch_sizes(Fiber *self, Nodes *nodes, NamedNode *named)
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

ThrottleGroups *nodes_throttle_groups(const Nodes *nodes)
{
    return nodes->throttle_groups;
}

void nodes_set_tls_creds(Nodes *nodes, TlsCredsTable *creds)
{
    nodes->tls_creds = creds;
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

// -- loops ----------------------------------------------------------------------------------------

// Whoever closes something keeps nodes from moving, and waits while some do. He is waited for, but
// not in the lock's queue: he may have it twice.
static int begin_move(Fiber *self, Nodes *nodes, GError **error)
{
    FiberRwLock *lock = &nodes->move_lock;
    uint64_t end_ns = loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS;
    while (lock->n_readers || lock->writer)
        if (loop_now_ns(fiber_loop(self)) >= end_ns || fiber_sleep(self, CLOSING_POLL_NS) < 0)
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

// Is it, or anything that it lies in or over, made with another machine?
static bool is_remote(NamedNode *named)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new();
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    g_ptr_array_add(all, named);
    for (guint i = 0; i < all->len; i++) {
        named = all->pdata[i];
        if (named->driver->is_remote)
            return true;
        for (guint c = 0; c < named->children->len; c++) {
            NamedNode *child = ((const NodeUse *)named->children->pdata[c])->used;
            if (g_hash_table_add(seen, child))
                g_ptr_array_add(all, child);
        }
    }
    return false;
}

NamedNode *nodes_first_remote(const GPtrArray *used)
{
    for (guint i = 0; i < used->len; i++)
        if (is_remote(used->pdata[i]))
            return used->pdata[i];
    return NULL;
}

int nodes_join(Fiber *self, Nodes *nodes, const NodeConfig *config, const GPtrArray *used,
               NodeFinder *ret_finder, GError **error)
{
    *ret_finder = finder_for(nodes, loops_get(nodes->loops, nodes->n_opened));
    if (!used->len)
        return 0;
    const NamedNode *remote = nodes_first_remote(used);
    if (remote)
        ret_finder->loop = named_node_loop(remote);
    else if (driver_value_bool(config->values, "read-only", false))
        ret_finder->loop = named_node_loop(used->pdata[0]);
    int r = node_moves_choose(ret_finder, config, used) ? begin_move(self, nodes, error) : 1;
    if (r != 0)
        return MIN(r, 0);
    r = node_moves_join(self, ret_finder, config, used, error);
    fiber_rw_unlock_write(self, &nodes->move_lock);
    return r;
}

void nodes_trim(Fiber *self, Nodes *nodes)
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
    nodes_trim(self, nodes);
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
    nodes_trim(self, nodes);
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
    nodes_trim(self, nodes);
    return r;
}

// -- giving up -----------------------------------------------------------------------------------

// What is in the table is closed later than a message that is sent now arrives.
typedef struct GiveUp {
    LoopCall call; // first
    Node *node;
    void (*fn)(Node *node);
} GiveUp;

static void give_up_arrives(LoopCall *call)
{
    GiveUp *give_up = (GiveUp *)call;
    give_up->fn(give_up->node);
    g_free(give_up);
}

static void post_give_up(Node *node, void (*fn)(Node *node))
{
    GiveUp *give_up = g_new(GiveUp, 1);
    *give_up = (GiveUp){.call.fn = give_up_arrives, .node = node, .fn = fn};
    loop_post(node->loop, &give_up->call);
}

void nodes_give_up(const Nodes *nodes)
{
    for (guint i = 0; i < nodes->all->len; i++) {
        const NamedNode *named = nodes->all->pdata[i];
        post_give_up(named->node, node_give_up);
    }
}

void nodes_give_up_own(const NamedNode *named)
{
    post_give_up(named->node, node_give_up_own);
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
    nodes_trim(self, nodes);
}
