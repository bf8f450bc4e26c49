// SPDX-License-Identifier: LGPL-2.1-or-later
// Each node is changed by itself, drained for as long as that takes: files before what lies in them
// when they become active, after it when they no longer are.
#include "node-active.h"

#include <errno.h>

#include "chain-core/dirty-bitmap.h"
#include "chain-core/port.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"

// -- on the node's loop ---------------------------------------------------------------------------

typedef struct Change {
    Node *node;
    bool is_active;
    bool is_writable; // afterwards
    bool may_fall_back;
    bool keeps_mode; // what lies in it sees to that
    int result;
    GError *error;
} Change;

// What another program wrote meanwhile nobody noted. Those of the image do not come here: it says
// itself what they are worth.
static void make_all_dirty(DirtyBitmap *bitmap)
{
    DirtyBitmapInfo info;
    const Bitmap *bits = dirty_bitmap_bits(bitmap);
    dirty_bitmap_info(bitmap, &info);
    if (!bits || !info.is_enabled || dirty_bitmap_is_persistent(bitmap))
        return;
    Bitmap *all = bitmap_clone(bits);
    bitmap_set(all, 0, bitmap_size_bytes(all));
    bitmap_free(dirty_bitmap_swap_bits(bitmap, all));
}

// A filter that only the loop knows, under an export.
static void make_sectors_writable(const Node *node)
{
    for (guint i = 0; i < node->parents->len; i++) {
        Node *parent = node->parents->pdata[i];
        if (g_str_equal(parent->ops->driver, "whole-sectors"))
            node_set_filter_mode(parent, true);
    }
}

static int make_writable(Fiber *self, Change *c)
{
    Node *node = c->node;
    int r = 0;
    if (node->ops->is_filter)
        node_set_filter_mode(node, true);
    else if (node->ops->set_writable)
        r = node_set_writable(self, node, true, &c->error);
    else
        node_mode_changed(node, true);
    make_sectors_writable(node);
    bool is_refused = r == -EACCES || r == -EROFS || r == -EPERM;
    if (!is_refused || !c->may_fall_back)
        return r;
    g_clear_error(&c->error);
    return 0;
}

// It stays active, and is written as before.
static int stay_active(Fiber *self, Change *c, int why)
{
    GError *error = g_steal_pointer(&c->error);
    if (c->is_writable && !c->keeps_mode)
        make_writable(self, c);
    g_clear_error(&c->error);
    c->error = error;
    return why;
}

static int change_drained(Fiber *self, Change *c)
{
    int r = node_set_active(self, c->node, c->is_active, &c->error);
    if (!c->is_active)
        return r < 0 ? stay_active(self, c, r) : 0;
    if (r < 0)
        return r;
    const GPtrArray *bitmaps = dirty_bitmaps_of(c->node);
    for (guint i = 0; bitmaps && i < bitmaps->len; i++)
        make_all_dirty(bitmaps->pdata[i]);
    if (!c->is_writable || c->keeps_mode)
        return 0;
    r = make_writable(self, c);
    if (r < 0)
        node_set_active(self, c->node, false, NULL);
    return r;
}

static void change_on_loop(Fiber *self, void *arg)
{
    Change *c = arg;
    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + PORT_MAX_STALL_NS;
    c->result = node_check_idle(c->node, &c->error);
    if (c->result < 0)
        return;
    if (!c->is_active)
        node_flush(self, c->node); // ahead, so that the drain is short; its failure comes again
    c->result = node_drain_begin_until(self, c->node, REQUESTS_ALL, deadline_ns);
    if (c->result < 0) {
        qmp_fail(&c->error, "Node '%s': requests under way do not end", c->node->name);
        return;
    }
    c->result = change_drained(self, c);
    node_drain_end(c->node, REQUESTS_ALL);
}

// -- one node -------------------------------------------------------------------------------------

// Does what lies in it, perhaps through filters, make it writable, and read-only? It was made for
// that, then.
static bool follows_user(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && use->by->origin == named->origin && !g_str_equal(use->role, "backing") &&
            (!use->by->node->ops->is_filter || follows_user(use->by)))
            return true;
    }
    return false;
}

static bool can_be_written(const NamedNode *named)
{
    const NamedNode *lower = driver_passes_on(named->driver) ? named_node_lower(named) : NULL;
    return named->is_writable_then && (!lower || !lower->facts.read_only || follows_user(lower));
}

static int change(Fiber *self, Nodes *nodes, NamedNode *named, bool is_active, GError **error)
{
    int r = nodes_make_single(self, nodes, named, error);
    if (r < 0)
        return r;
    Change c = {
        .node = named->node,
        .is_active = is_active,
        .is_writable = can_be_written(named),
        .may_fall_back =
            named->config && driver_value_bool(named->config->values, "auto-read-only", false),
        .keeps_mode = follows_user(named),
    };
    if (remote_call_fiber_reserve(self, named_node_loop(named), change_on_loop, &c) < 0)
        return qmp_fail(error, "no memory for a fiber's stack");
    if (c.result < 0)
        g_propagate_error(error, c.error);
    else
        named->is_inactive = !is_active;
    nodes_refresh(self, named);
    return c.result;
}

// -- with what lies below -------------------------------------------------------------------------

// `named` and all below it, each behind all that lie over it; owned.
static GPtrArray *collect(NamedNode *named)
{
    GPtrArray *all = g_ptr_array_new();
    g_ptr_array_add(all, named);
    for (guint i = 0; i < all->len; i++) {
        const NamedNode *n = all->pdata[i];
        for (guint c = 0; c < n->children->len; c++) {
            NamedNode *child = ((const NodeUse *)n->children->pdata[c])->used;
            guint before;
            if (g_ptr_array_find(all, child, &before)) {
                g_ptr_array_remove_index(all, before);
                i -= before <= i;
            }
            g_ptr_array_add(all, child);
        }
    }
    return all;
}

static bool has_active_parent(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && !use->by->is_inactive)
            return true;
    }
    return false;
}

// Jobs, and exports that were not made for it, go on.
static int check_users(const NamedNode *named, GError **error)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (!use->by && !use->allows_inactive)
            return qmp_fail(error,
                            "Node '%s' is in use by %s, which does not allow that it becomes "
                            "inactive",
                            named->name, use->user);
    }
    const GPtrArray *bitmaps = named->facts.bitmaps;
    for (guint i = 0; bitmaps && i < bitmaps->len; i++) {
        DirtyBitmapInfo info;
        dirty_bitmap_info(bitmaps->pdata[i], &info);
        if (info.is_busy && dirty_bitmap_is_persistent(bitmaps->pdata[i]))
            return qmp_fail(error,
                            "Bitmap '%s' is currently in use by another operation and "
                            "cannot be used",
                            dirty_bitmap_name(bitmaps->pdata[i]));
    }
    return 0;
}

static int check_children(const NamedNode *named, GError **error)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < named->children->len; i++) {
        NodeUse use = *(const NodeUse *)named->children->pdata[i];
        use.writes = named->is_writable_then && !g_str_equal(use.role, "backing");
        use.allows_inactive = true;
        r = named_node_check_use(use.used, &use, error);
    }
    return r;
}

static void say_inactive(const GPtrArray *all, bool is_inactive)
{
    for (guint i = 0; i < all->len; i++)
        ((NamedNode *)all->pdata[i])->is_inactive = is_inactive;
}

// May they use what they lie in as they will? While they were inactive others may have come to it.
static int check_becoming_active(const GPtrArray *all, GError **error)
{
    g_autoptr(GPtrArray) inactive = g_ptr_array_new();
    for (guint i = 0; i < all->len; i++)
        if (((const NamedNode *)all->pdata[i])->is_inactive)
            g_ptr_array_add(inactive, all->pdata[i]);
    int r = 0;
    say_inactive(inactive, false);
    for (guint i = 0; r == 0 && i < inactive->len; i++)
        r = check_children(inactive->pdata[i], error);
    say_inactive(inactive, true);
    return r;
}

static int activate(Fiber *self, Nodes *nodes, NamedNode *named, GError **error)
{
    g_autoptr(GPtrArray) all = collect(named);
    int r = check_becoming_active(all, error);
    g_autoptr(GPtrArray) changed = g_ptr_array_new();
    for (guint i = all->len; r == 0 && i-- > 0;) {
        NamedNode *n = all->pdata[i];
        if (!n->is_inactive)
            continue;
        r = change(self, nodes, n, true, error);
        if (r == 0)
            g_ptr_array_add(changed, n);
    }
    // All of it, or nothing: a file whose image stays inactive is left to other programs again.
    for (guint i = changed->len; r < 0 && i-- > 0;)
        change(self, nodes, changed->pdata[i], false, NULL);
    return r;
}

static int deactivate(Fiber *self, Nodes *nodes, NamedNode *named, GError **error)
{
    if (has_active_parent(named))
        return qmp_fail(error, "Node has active parent node");
    g_autoptr(GPtrArray) all = collect(named);
    int r = 0;
    for (guint i = 0; r == 0 && i < all->len; i++)
        r = check_users(all->pdata[i], error);
    for (guint i = 0; r == 0 && i < all->len; i++) {
        NamedNode *n = all->pdata[i];
        if (!n->is_inactive)
            n->is_writable_then = !n->facts.read_only;
    }
    for (guint i = 0; r == 0 && i < all->len; i++) {
        NamedNode *n = all->pdata[i];
        if (!n->is_inactive && !has_active_parent(n)) // those over it came before
            r = change(self, nodes, n, false, error);
    }
    return r;
}

int node_active_set(Fiber *self, Nodes *nodes, NamedNode *named, bool is_active, GError **error)
{
    return is_active ? activate(self, nodes, named, error) : deactivate(self, nodes, named, error);
}
