// SPDX-License-Identifier: LGPL-2.1-or-later
// The bitmap comes first, so that what guests write while tables are read is noted; it is busy, so
// that nobody believes it, until the rest has joined it.
#include "bitmap-difference.h"

#include <errno.h>

#include "bitmaps.h"
#include "chain-core/chain-range.h"
#include "chain-core/loop.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/error.h"
#include "job-nodes.h"
#include "named-hold.h"
#include "node-instances.h"

typedef struct Difference {
    Nodes *nodes;
    NamedNode *named, *base;
    NamedHold *hold;
    Node *base_node;     // on the loop
    DirtyBitmap *bitmap; // a reference
    Loop *loop;
    int result;
} Difference;

// -- on the nodes' loop ---------------------------------------------------------------------------

static int read_tables(Fiber *self, const Difference *d, Bitmap *bits)
{
    enum { STEPS = 256 }; // until others have their turn
    const ChainLayers layers = {.top = d->named->node, .base = d->base_node};
    uint64_t size = MIN(layers.top->size_bytes, bitmap_size_bytes(bits));
    unsigned n = 0;
    for (uint64_t off = 0; off < size;) {
        ChainRange range;
        int r = chain_range_find(self, &layers, guest_off(off), size - off, &range);
        if (r < 0)
            return r;
        if (range.is_owned)
            bitmap_set(bits, off, range.len);
        off += range.len;
        if (++n % STEPS == 0)
            fiber_yield(self);
    }
    return 0;
}

static void find_on_loop(Fiber *self, void *arg)
{
    Difference *d = arg;
    const Bitmap *empty = dirty_bitmap_bits(d->bitmap);
    Bitmap *bits = bitmap_new(bitmap_size_bytes(empty), bitmap_granularity_bits(empty));
    d->result = read_tables(self, d, bits);
    if (d->result == 0)
        d->result = dirty_bitmap_before_change(self, d->bitmap);
    if (d->result == 0)
        dirty_bitmap_merge(self, d->bitmap, bits);
    bitmap_free(bits);
}

// -- control, with the graph lock -----------------------------------------------------------------

static int hold_chain(Fiber *self, Difference *d, GError **error)
{
    static const NodePerms perms = {
        .held = NODE_PERM_CONSISTENT_READ,
        .shared = NODE_PERMS_OF_CONTENT & ~NODE_PERM_RESIZE,
    };
    g_autoptr(GArray) needs = g_array_new(false, false, sizeof(NamedNeed));
    for (NamedNode *named = d->named; named; named = named_node_below(named)) {
        NamedNeed need = {named, "difference", perms};
        g_array_append_val(needs, need);
        if (named == d->base)
            break;
    }
    g_autofree char *owner = g_strdup_printf("a new bitmap of '%s'", d->named->name);
    return named_hold_new(self, d->nodes, owner, (const NamedNeed *)needs->data, needs->len,
                          &d->hold, error);
}

static int begin(Fiber *self, Difference *d, const DirtyBitmapSpec *spec, GError **error)
{
    int r = hold_chain(self, d, error);
    if (r < 0)
        return r;
    BitmapChange add = {.kind = BITMAP_ADD, .named = d->named, .spec = *spec};
    r = bitmap_change_make(self, &add, error);
    if (r < 0) {
        named_hold_release(self, d->nodes, d->hold);
        return r;
    }
    d->bitmap = dirty_bitmap_ref(add.bitmap);
    dirty_bitmap_set_busy(d->bitmap, true);
    bitmap_change_done(self, &add);
    d->loop = named_node_loop(d->named);
    d->base_node = d->base ? node_instances_get(d->base, d->loop) : NULL;
    return 0;
}

static void end(Fiber *self, Difference *d, GError **error)
{
    dirty_bitmap_set_busy(d->bitmap, false);
    if (d->result < 0) {
        qmp_fail(error, "Failed to read the tables of the chain of '%s': %s", d->named->name,
                 g_strerror(-d->result));
        BitmapChange remove = {.kind = BITMAP_REMOVE, .named = d->named, .bitmap = d->bitmap};
        if (bitmap_change_make(self, &remove, NULL) == 0)
            bitmap_change_done(self, &remove);
    }
    dirty_bitmap_unref(d->bitmap);
    named_hold_release(self, d->nodes, d->hold);
}

static int find_base(Difference *d, const char *name, GError **error)
{
    if (!name)
        return 0;
    d->base = nodes_get(d->nodes, name, error);
    if (!d->base)
        return -ENODEV;
    if (d->base == d->named || !job_nodes_is_below(d->named, d->base))
        return qmp_fail(error, "Node '%s' is not a backing image of '%s'", name, d->named->name);
    return 0;
}

int bitmap_add_difference(Fiber *self, Nodes *nodes, NamedNode *named, const DirtyBitmapSpec *spec,
                          const char *base, GError **error)
{
    FiberMutex *lock = nodes_graph_lock(nodes);
    Difference d = {.nodes = nodes, .named = named};
    int r = find_base(&d, base, error);
    if (r == 0)
        r = begin(self, &d, spec, error);
    if (r < 0)
        return r;
    fiber_mutex_unlock(self, lock);
    if (remote_call_fiber_reserve(self, d.loop, find_on_loop, &d) < 0)
        d.result = -ENOMEM;
    fiber_mutex_lock(self, lock);
    end(self, &d, error);
    return d.result;
}
