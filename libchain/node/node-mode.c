// SPDX-License-Identifier: LGPL-2.1-or-later
// Who may write a node, and that everybody above hears of a change. On the node's loop.
#include "chain-core/mutant.h"
#include "chain-core/node.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/port.h"
#include "node/node-edge.h"

void node_begin_generation(Node *node)
{
    static const NodeIdentity none;
    static atomic_uint_fast64_t n_generations;
    if (memcmp(&node->identity, &none, sizeof none) != 0 && !MUTANT("written-is-another-content"))
        node->identity.generation = atomic_fetch_add(&n_generations, 1) + 1;
}

static void stop_filters_above(Node *node)
{
    for (guint i = 0; i < node->parents->len; i++) {
        Node *parent = node->parents->pdata[i];
        if (!parent->ops->is_filter || parent->backing != node)
            continue;
        parent->read_only = true;
        stop_filters_above(parent);
    }
}

void node_stop_writes(Node *node)
{
    if (node->ops->is_filter) {
        node_stop_writes(node->backing);
        return;
    }
    if (node->read_only)
        return;
    node->read_only = true;
    stop_filters_above(node);
    node_begin_generation(node);
    node_edges_changed(node);
}

void node_mode_changed(Node *node, bool is_writable)
{
    if (node->read_only == !is_writable)
        return;
    node->read_only = !is_writable;
    node_begin_generation(node);
}

void node_set_filter_mode(Node *filter, bool is_writable)
{
    g_assert(filter->ops->is_filter);
    filter->read_only = !is_writable || filter->backing->read_only;
    if (filter->read_only)
        stop_filters_above(filter);
}

typedef int FileCheckFn(Fiber *self, File *file, GError **error);

static int check_files(Fiber *self, Node *node, FileCheckFn *check, GError **error)
{
    File *files[] = {node_file(node), node_metadata_file(node)};
    int r = 0;
    for (unsigned i = 0; r == 0 && i < G_N_ELEMENTS(files); i++)
        r = files[i] ? check(self, files[i], error) : 0;
    return r;
}

int node_check_unchanged(Fiber *self, Node *node, GError **error)
{
    return check_files(self, node, file_check_unchanged, error);
}

int node_accept_change(Fiber *self, Node *node, GError **error)
{
    return check_files(self, node, file_accept_change, error);
}

// What takes time of a node's way up to being writable.
static int open_for_writing(Fiber *self, Node *node, GError **error)
{
    if (node->ops->is_filter)
        return open_for_writing(self, node->backing, error);
    if (!node->ops->set_writable)
        return error_set(error, -ENOTSUP, "%s: a %s node cannot be made writable while it is open",
                         node->name, node->ops->driver);
    if (!node->read_only)
        return 0;
    node->is_becoming_writable = true;
    int r = node->ops->set_writable(self, node, true, error);
    if (r < 0) {
        node->is_becoming_writable = false;
        node_unlock_writing_below(self, node);
    }
    return r;
}

// The rest. Drained.
static void become_writable(Node *node)
{
    if (node->ops->is_filter) {
        become_writable(node->backing);
        node->read_only = false;
    } else if (node->read_only) {
        node->read_only = node->is_becoming_writable = false;
        node_begin_generation(node);
        node_edges_changed(node);
    }
}

int node_check_idle(const Node *node, GError **error)
{
    while (node->ops->is_filter)
        node = node->backing;
    const char *work = node->ops->own_work ? node->ops->own_work(node) : NULL;
    return work ? error_set(error, -EBUSY, "%s cannot be changed now: %s; wait for the end of that",
                            node->name, work)
                : 0;
}

int node_set_writable(Fiber *self, Node *node, bool is_writable, GError **error)
{
    if (is_writable) {
        int r = open_for_writing(self, node, error);
        if (r == 0)
            become_writable(node);
        return r;
    }
    if (node->ops->is_filter)
        return node_set_writable(self, node->backing, false, error);
    if (!node->ops->set_writable)
        return error_set(error, -ENOTSUP, "%s: a %s node cannot be made read-only while it is open",
                         node->name, node->ops->driver);
    node_stop_writes(node);
    int r = node->ops->set_writable(self, node, false, error);
    node_unlock_writing_below(self, node);
    return r;
}

static int try_drain(Fiber *self, void *node, uint64_t deadline_ns)
{
    return node_drain_begin_until(self, node, REQUESTS_ALL, deadline_ns);
}

// Guests wait for requests in flight and for steps in memory only.
int node_change_mode(Fiber *self, Node *node, bool is_writable, GError **error)
{
    int r = is_writable ? open_for_writing(self, node, error) : 0;
    if (r < 0)
        return r;
    Node *bottom = node;
    while (bottom->ops->is_filter)
        bottom = bottom->backing;
    if (drain_in_tries(self, try_drain, bottom, UINT64_MAX) < 0)
        node_drain_begin(self, bottom, REQUESTS_ALL);
    if (is_writable)
        become_writable(node);
    else
        node_stop_writes(node);
    node_drain_end(bottom, REQUESTS_ALL);
    return is_writable ? 0 : node_set_writable(self, node, false, error);
}
