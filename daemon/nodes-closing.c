// SPDX-License-Identifier: LGPL-2.1-or-later
// Nodes leave the table: with what only they used, users before what they use. They are closed on
// their loop when nobody finds them any more. Control loop.
#include <string.h>

#include "chain-core/layer.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"
#include "node-facts.h"
#include "node-instances.h"
#include "node-table.h"
#include "nodes.h"
#include "write-threshold.h"

static void named_node_free(gpointer p)
{
    NamedNode *named = p;
    g_assert(!named->node && named->users->len == 0);
    node_origin_unref(named->origin);
    node_facts_clear(&named->facts);
    write_threshold_unref(named->threshold);
    g_ptr_array_unref(named->children);
    g_ptr_array_unref(named->users);
    g_free(named->name);
    g_free(named);
}

typedef struct Closing {
    GPtrArray *gone;   // NamedNode of one origin and loop, users before what they use
    GPtrArray *later;  // NodeUse of nodes of others, which outlive those that use them
    Node **nodes;      // of `gone`: the table's references
    NodeRefresh files; // what lay in them was made longer, perhaps
    int result;
} Closing;

// What lies in a file has flushed it.
static bool needs_flush(const Closing *c, guint i)
{
    const NamedNode *named = c->gone->pdata[i];
    return !c->nodes[i]->read_only && (i == 0 || !named->driver->is_file);
}

static void close_nodes(Fiber *self, void *arg)
{
    Closing *c = arg;
    for (guint i = 0; i < c->gone->len; i++) {
        Node *node = c->nodes[i];
        int r = needs_flush(c, i) ? node_flush(self, node) : 0;
        if (r < 0 && c->result == 0)
            c->result = r;
        node_unref_close(self, node);
    }
    node_refresh_take(self, &c->files);
}

// By whom it is opened may be so.
static bool is_written(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        bool is_filter = use->by && !use->by->driver->open && !use->by->driver->is_file;
        bool passes_on = is_filter && !g_str_equal(use->role, "target");
        if (use->opened_on || (passes_on ? is_written(use->by) : use->writes) ||
            (use->perms && use->perms->held & NODE_PERM_WRITE))
            return true;
    }
    return false;
}

static void unlock(Fiber *self, void *node)
{
    layer_unlock_node(self, node);
}

// Nobody but filters that nobody uses. What is about to use it stands in the table, or is opened on
// its loop.
static bool is_unused(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (!use->by || use->by->driver->open || !is_unused(use->by))
            return false;
    }
    return true;
}

// Fewer use it now, unless it is gone meanwhile. The locks of a format are its own.
static void unlock_unused(Fiber *self, const Nodes *nodes, const NamedNode *named)
{
    if (!g_ptr_array_find(nodes->all, named, NULL))
        return;
    while (!named->driver->open && !named->driver->is_file && named_node_lower(named))
        named = named_node_lower(named);
    if (named->driver->is_file && (is_unused(named) || !is_written(named)))
        remote_call_fiber_reserve(self, named_node_loop(named), unlock, named->node);
}

static void leave_child(Closing *c, NodeUse *use)
{
    bool is_layer = g_str_equal(use->role, "backing") || g_str_equal(use->role, "snapshot");
    g_ptr_array_add(c->later, use);
    if (!is_layer)
        node_refresh_add(&c->files, use->used);
}

// Takes `named`, which nobody uses, out of the table, and with it what only it used of its origin,
// on its loop: when it was moved, what lies below it may have stayed.
static void leave(Nodes *nodes, NamedNode *named, Closing *c)
{
    const Loop *loop = named_node_loop(named);
    g_ptr_array_add(c->gone, named);
    for (guint next = 0; next < c->gone->len; next++) {
        named = c->gone->pdata[next];
        g_hash_table_remove(nodes->by_name, named->name);
        g_ptr_array_remove(nodes->all, named);
        size_watch_remove(nodes->watch, named);
        for (guint i = 0; i < named->children->len; i++) {
            NodeUse *use = named->children->pdata[i];
            NamedNode *child = use->used;
            if (child->origin != named->origin || named_node_loop(child) != loop)
                leave_child(c, use);
            else if (named_node_end_use(use) && !child->is_added)
                g_ptr_array_add(c->gone, child);
        }
        g_ptr_array_set_size(named->children, 0);
    }
    c->nodes = g_new(Node *, c->gone->len);
    for (guint i = 0; i < c->gone->len; i++)
        c->nodes[i] = g_steal_pointer(&((NamedNode *)c->gone->pdata[i])->node);
}

// Ends the uses of what lies below, now that their users are closed; what is unused then is added
// to `unused`.
static void end_later(Fiber *self, const Nodes *nodes, GPtrArray *later, GPtrArray *unused)
{
    g_autoptr(GPtrArray) left = g_ptr_array_new();
    for (guint i = 0; i < later->len; i++) { // all in one step: their users are gone
        NamedNode *child = ((NodeUse *)later->pdata[i])->used;
        bool is_unused = named_node_end_use(later->pdata[i]);
        g_ptr_array_add(is_unused && !child->is_added ? unused : left, child);
    }
    for (guint i = 0; i < left->len; i++)
        unlock_unused(self, nodes, left->pdata[i]);
}

static void close_instances(Fiber *self, const GPtrArray *gone)
{
    for (guint i = 0; i < gone->len; i++)
        for (NodeInstance *instance; (instance = node_instances_take_unused(gone->pdata[i]));)
            node_instance_close(self, instance);
}

static int close_unused(Fiber *self, Nodes *nodes, NamedNode *named)
{
    g_autoptr(GPtrArray) unused = g_ptr_array_new();
    g_ptr_array_add(unused, named);
    int result = 0;
    fiber_rw_lock_read(self, &nodes->move_lock);
    while (unused->len) {
        named = g_ptr_array_steal_index(unused, unused->len - 1);
        Loop *loop = named_node_loop(named);
        Closing c = {
            .gone = g_ptr_array_new_with_free_func(named_node_free),
            .later = g_ptr_array_new(),
        };
        node_refresh_init(&c.files);
        leave(nodes, named, &c);
        int r = remote_call_fiber_reserve(self, loop, close_nodes, &c);
        if (result == 0)
            result = r < 0 ? r : c.result;
        node_refresh_end(&c.files);
        close_instances(self, c.gone);
        g_ptr_array_unref(c.gone);
        g_free(c.nodes);
        end_later(self, nodes, c.later, unused);
        g_ptr_array_unref(c.later);
    }
    fiber_rw_unlock_read(self, &nodes->move_lock);
    nodes_trim_later(self, nodes);
    return result;
}

// The sentence depends on who uses it, as in QEMU.
static int check_unused(const NamedNode *named, GError **error)
{
    int r = named_node_check_change(named, NODE_PERM_PLACE, "its removal", error);
    if (r < 0)
        return r;
    g_autofree char *users = named_node_users_text(named);
    for (guint i = named->users->len; i-- > 0;) {
        const NodeUse *use = named->users->pdata[i];
        if (!use->by)
            return qmp_fail(error, "Node %s is in use by %s", named->name, users);
        if (g_str_equal(use->role, "backing"))
            return qmp_fail(error, "Node '%s' is busy: node is used as backing hd of '%s'",
                            named->name, use->by->name);
    }
    if (!named->is_added)
        return qmp_fail(error, "Node %s is not owned by the monitor", named->name);
    if (named->users->len)
        return qmp_fail(error, "Block device %s is in use by %s", named->name, users);
    return 0;
}

int nodes_delete(Fiber *self, Nodes *nodes, NamedNode *named, int *ret_flushed, GError **error)
{
    int r = check_unused(named, error);
    if (r < 0)
        return r;
    named->is_added = false;
    *ret_flushed = close_unused(self, nodes, named);
    return 0;
}

int nodes_close(Fiber *self, Nodes *nodes, NamedNode *named)
{
    named->is_added = false;
    return named->users->len ? 0 : close_unused(self, nodes, named);
}

NodeUse *nodes_use(NamedNode *named, const char *user, bool writes)
{
    return named_node_use(named,
                          &(NodeUse){.role = "root", .writes = writes, .user = g_strdup(user)});
}

int nodes_end_use(Fiber *self, Nodes *nodes, NodeUse *use)
{
    NamedNode *named = use->used;
    if (named_node_end_use(use) && !named->is_added)
        return close_unused(self, nodes, named);
    fiber_rw_lock_read(self, &nodes->move_lock);
    unlock_unused(self, nodes, named);
    fiber_rw_unlock_read(self, &nodes->move_lock);
    return 0;
}
