// SPDX-License-Identifier: LGPL-2.1-or-later
// What changes in a node that is open is swapped in one step, in which its component stands still:
// no request is inside, and no driver does anything by itself. What was swapped out is closed when
// everything goes on. On the node's loop.
#include "chain-core/node-reopen.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/component.h"
#include "chain-core/layer.h"
#include "chain-core/node-file.h"
#include "chain/source.h"
#include "node/node-edge.h"

struct NodeReopen {
    Node *node;              // a reference
    Node *was_below, *below; // a reference each
    File *file;              // a format's, a reference; else NULL
    bool is_read_only;
    DriverChange *change;
};

// The table of nodes has a reference on each.
static void reopen_free(Fiber *self, NodeReopen *r, Node *unused)
{
    if (r->change)
        r->change->drop(self, r->change);
    file_close(self, r->file);
    node_unref_close(self, r->was_below);
    node_unref_close(self, r->below);
    node_unref_close(self, r->node);
    if (r->was_below != r->below)
        layer_unlock_node(self, unused);
    g_free(r);
}

// Bitmaps need memory to grow, which comes first.
static int make_room(const NodeReopen *r, GError **error)
{
    Node *node = r->node;
    if (!node->bitmaps || r->change->size_bytes <= node->size_bytes ||
        node->resize_bitmaps(node, r->change->size_bytes) == 0)
        return 0;
    return error_set(error, -ENOMEM, "%s: no memory for its dirty bitmaps", node->name);
}

static int prepare(Fiber *self, NodeReopen *r, const NodeReopenWish *wish, GError **error)
{
    const Driver *driver = wish->config->driver;
    bool is_shared = driver_value_bool(wish->config->values, "force-share", false);
    bool is_writable = !r->is_read_only;
    int result = component_check_still(r->node, error);
    if (result == 0 && driver->open)
        result = source_file_of(r->below, is_writable, &r->file, error);
    if (result == 0 && driver->open && r->below != r->was_below && !is_shared)
        result = source_lock_also(self, r->file, is_writable, error);
    DriverReopen wanted = {
        .values = wish->config->values,
        .was_below = r->was_below,
        .below = r->below,
        .file = r->file,
        .throttle_groups = wish->throttle_groups,
    };
    if (result == 0)
        result = driver->reopen(self, r->node, &wanted, &r->change, error);
    return result < 0 ? result : make_room(r, error);
}

int node_reopen_prepare(Fiber *self, Node *node, const NodeReopenWish *wish,
                        NodeReopen **ret_reopen, GError **error)
{
    NodeReopen *r = g_new0(NodeReopen, 1);
    r->node = node_ref(node);
    r->was_below = node_ref(wish->was_below);
    r->below = node_ref(wish->below);
    r->is_read_only = driver_passes_on(wish->config->driver)
                          ? wish->is_read_only || wish->below->read_only
                          : node->read_only;
    int result = prepare(self, r, wish, error);
    if (result < 0)
        node_reopen_abort(self, r);
    else
        *ret_reopen = r;
    return result;
}

void node_reopen_abort(Fiber *self, NodeReopen *r)
{
    if (!r)
        return;
    if (r->node->bitmaps)
        r->node->resize_bitmaps(r->node, r->node->size_bytes);
    reopen_free(self, r, r->below);
}

static void change_child(const NodeReopen *r)
{
    Node *node = r->node;
    if (r->was_below == r->below)
        return;
    if (node->backing == r->was_below) {
        node_exchange_backing(node, r->below)->n_refs--;
        return;
    }
    node_take_child(node, r->was_below)->n_refs--;
    node_add_child(node, r->below);
}

void node_reopen_commit(Fiber *self, NodeReopen *r)
{
    Node *node = r->node;
    ComponentStill *still = component_still_begin(self, node);
    if (r->file)
        node_file_follow(r->file); // guests have gone on since it was prepared
    r->change->commit(r->change);
    change_child(r);
    node_mode_changed(node, !r->is_read_only);
    if (node->bitmaps)
        node->resize_bitmaps(node, node->size_bytes);
    component_still_end(self, still);
    reopen_free(self, r, r->was_below);
}

int node_set_direct(Fiber *self, Node *node, bool is_direct, GError **error)
{
    File *file = node_file(node);
    if (file_is_direct(file) == is_direct)
        return 0;
    int r = component_check_still(node, error);
    if (r < 0)
        return r;
    ComponentStill *still = component_still_begin(self, node);
    r = file_set_direct(self, file, is_direct, error);
    component_still_end(self, still);
    return r;
}
