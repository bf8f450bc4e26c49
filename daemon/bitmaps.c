// SPDX-License-Identifier: LGPL-2.1-or-later
// Looking bitmaps up, telling of them, and their changes. Nothing is remembered here: which bitmaps
// a node has stands in its facts, copied anew when a change is over.
#include "bitmaps.h"

#include <errno.h>
#include <inttypes.h>

#include "chain-core/port.h"
#include "chain-core/remote-call.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/error.h"

#define DRAIN_TIMEOUT_NS (UINT64_C(30) * 1000 * 1000 * 1000)

// -- looking up -----------------------------------------------------------------------------------

DirtyBitmap *bitmaps_of(const NamedNode *named, const char *name)
{
    const GPtrArray *bitmaps = named->facts.bitmaps;
    for (guint i = 0; bitmaps && i < bitmaps->len; i++)
        if (g_strcmp0(dirty_bitmap_name(bitmaps->pdata[i]), name) == 0)
            return bitmaps->pdata[i];
    return NULL;
}

int bitmaps_find(const Nodes *nodes, const char *node, const char *name, NamedBitmap *ret_bitmap,
                 GError **error)
{
    NamedNode *named = nodes_find(nodes, node);
    if (!named)
        return qmp_fail(error, "Node '%s' not found", node);
    DirtyBitmap *bitmap = bitmaps_of(named, name);
    if (!bitmap)
        return qmp_fail(error, "Dirty bitmap '%s' not found", name);
    *ret_bitmap = (NamedBitmap){named, bitmap};
    return 0;
}

// -- telling --------------------------------------------------------------------------------------

static json_t *info_of(const DirtyBitmap *bitmap)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(bitmap, &info);
    uint32_t granularity_bits = dirty_bitmap_granularity_bits(bitmap);
    json_t *json = json_pack(
        "{s:I,s:I,s:b,s:b,s:b}", "count", (json_int_t)(info.dirty_granules << granularity_bits),
        "granularity", (json_int_t)1 << granularity_bits, "recording", info.is_enabled, "busy",
        info.is_busy, "persistent", dirty_bitmap_is_persistent(bitmap));
    if (dirty_bitmap_name(bitmap))
        json_object_set_new(json, "name", json_string(dirty_bitmap_name(bitmap)));
    if (info.is_inconsistent)
        json_object_set_new(json, "inconsistent", json_true());
    return json;
}

json_t *bitmaps_info(const NamedNode *named)
{
    const GPtrArray *bitmaps = named->facts.bitmaps;
    if (!bitmaps || !bitmaps->len)
        return NULL;
    json_t *all = json_array();
    for (guint i = bitmaps->len; i-- > 0;)
        json_array_append_new(all, info_of(bitmaps->pdata[i]));
    return all;
}

// -- for exports ----------------------------------------------------------------------------------

// The node that shows the same disk before it had the last layer, or through a filter.
static const NamedNode *next_below(const NamedNode *named)
{
    bool is_filter = named->node->ops->is_filter;
    return named_node_child(named, is_filter ? "file" : "backing");
}

// Of the node, or else of the first one below that has one of that name.
static int find_below(const NamedNode *named, const char *name, NamedBitmap *ret_bitmap,
                      GError **error)
{
    for (const NamedNode *n = named; n; n = next_below(n)) {
        DirtyBitmap *bitmap = bitmaps_of(n, name);
        if (bitmap) {
            *ret_bitmap = (NamedBitmap){(NamedNode *)n, bitmap};
            return 0;
        }
    }
    return qmp_fail(error, "Bitmap '%s' is not found", name);
}

// A client that reads the disk as it is sees more than one that goes by what was dirty before.
static int check_is_unchanging(const NamedBitmap *found, GError **error)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(found->bitmap, &info);
    return info.is_enabled && !found->named->facts.read_only
               ? qmp_fail(error, "Enabled bitmap '%s' incompatible with readonly export",
                          dirty_bitmap_name(found->bitmap))
               : 0;
}

static int check_for_export(const NamedBitmap *found, const NamedNode *exported, GError **error)
{
    int r = dirty_bitmap_check(found->bitmap, DIRTY_BITMAP_USE_READ, error);
    if (r < 0)
        return r;
    const char *name = dirty_bitmap_name(found->bitmap);
    if (named_node_loop(found->named) != named_node_loop(exported))
        return qmp_fail(error, "Bitmap '%s' belongs to node '%s', which lives on another loop",
                        name, found->named->name);
    return 0;
}

// Two of one name would be one context.
static bool has_name(const GPtrArray *bitmaps, const char *name)
{
    for (guint i = 0; i < bitmaps->len; i++)
        if (g_str_equal(dirty_bitmap_name(bitmaps->pdata[i]), name))
            return true;
    return false;
}

int bitmaps_for_export(const Nodes *nodes, const NamedNode *named, const json_t *refs,
                       bool is_writable, GPtrArray **ret_bitmaps, GError **error)
{
    g_autoptr(GPtrArray) bitmaps =
        g_ptr_array_new_with_free_func((GDestroyNotify)dirty_bitmap_unref);
    size_t i;
    json_t *ref;
    json_array_foreach(refs, i, ref)
    {
        NamedBitmap found;
        int r = json_is_string(ref) ? find_below(named, json_string_value(ref), &found, error)
                                    : bitmaps_find(nodes, qmp_args_str(ref, "node"),
                                                   qmp_args_str(ref, "name"), &found, error);
        if (r == 0 && json_is_string(ref) && !is_writable)
            r = check_is_unchanging(&found, error);
        if (r == 0)
            r = check_for_export(&found, named, error);
        if (r == 0 && has_name(bitmaps, dirty_bitmap_name(found.bitmap)))
            r = qmp_fail(error, "Bitmap '%s' is given twice", dirty_bitmap_name(found.bitmap));
        if (r < 0)
            return r;
        g_ptr_array_add(bitmaps, dirty_bitmap_ref(found.bitmap));
    }
    *ret_bitmaps = g_steal_pointer(&bitmaps);
    return 0;
}

// -- the bits of one ------------------------------------------------------------------------------

typedef struct Snapshot {
    DirtyBitmap *bitmap;
    Bitmap *bits;
} Snapshot;

static void take_snapshot(void *arg)
{
    Snapshot *snapshot = arg;
    const Bitmap *bits = dirty_bitmap_bits(snapshot->bitmap);
    snapshot->bits = bits ? bitmap_clone(bits) : NULL;
}

Bitmap *bitmaps_snapshot(Fiber *self, const NamedBitmap *of)
{
    // It may be removed meanwhile.
    Snapshot snapshot = {dirty_bitmap_ref(of->bitmap)};
    uint64_t size_bytes = of->named->facts.size_bytes;
    uint32_t granularity_bits = dirty_bitmap_granularity_bits(of->bitmap);
    remote_call_plain(self, named_node_loop(of->named), take_snapshot, &snapshot);
    dirty_bitmap_unref(snapshot.bitmap);
    return snapshot.bits ? snapshot.bits : bitmap_new(size_bytes, granularity_bits);
}

// -- changes: on the node's loop ------------------------------------------------------------------

static int merge_sources(Fiber *self, BitmapChange *change)
{
    change->old_bits = bitmap_clone(dirty_bitmap_bits(change->bitmap));
    for (guint i = 0; i < change->sources->len; i++)
        dirty_bitmap_merge(self, change->bitmap, change->sources->pdata[i]);
    return 0;
}

static int clear(BitmapChange *change)
{
    const Bitmap *bits = dirty_bitmap_bits(change->bitmap);
    change->old_bits = dirty_bitmap_swap_bits(
        change->bitmap, bitmap_new(bitmap_size_bytes(bits), bitmap_granularity_bits(bits)));
    return 0;
}

static void set_enabled(BitmapChange *change, bool is_enabled)
{
    if (is_enabled) // undone, it has the bits that it had
        change->old_bits = bitmap_clone(dirty_bitmap_bits(change->bitmap));
    dirty_bitmap_set_enabled(change->bitmap, is_enabled);
}

static int apply(Fiber *self, BitmapChange *change)
{
    DirtyBitmapInfo info;
    int r = 0;
    if (change->kind == BITMAP_ADD) {
        r = dirty_bitmap_add(change->named->node, &change->spec, &change->bitmap, &change->error);
        if (r == 0)
            dirty_bitmap_ref(change->bitmap);
        return r;
    }
    if (change->kind != BITMAP_REMOVE)
        r = dirty_bitmap_before_change(self, change->bitmap);
    if (r < 0)
        return qmp_fail(&change->error, "Bitmap '%s' cannot be changed: %s",
                        dirty_bitmap_name(change->bitmap), g_strerror(-r));
    dirty_bitmap_info(change->bitmap, &info);
    change->was_enabled = info.is_enabled;
    switch (change->kind) {
    case BITMAP_ADD:
        break;
    case BITMAP_REMOVE:
        r = dirty_bitmap_forget(self, change->bitmap, &change->error);
        if (r == 0)
            dirty_bitmap_set_busy(change->bitmap, true);
        return r;
    case BITMAP_CLEAR:
        return clear(change);
    case BITMAP_ENABLE:
    case BITMAP_DISABLE:
        set_enabled(change, change->kind == BITMAP_ENABLE);
        return 0;
    case BITMAP_MERGE:
        return merge_sources(self, change);
    }
    return r;
}

// Writers that do not end: a disk that hangs must not hold up control for good.
static int begin_drain(Fiber *self, BitmapChange *change)
{
    Node *node = change->named->node;
    uint64_t deadline_ns = loop_now_ns(fiber_loop(self)) + DRAIN_TIMEOUT_NS;
    int r = node_drain_begin_until(self, node, REQUESTS_THAT_WRITE, deadline_ns);
    if (r < 0)
        return qmp_fail(&change->error, "Node '%s' has writes in flight that do not end: %s",
                        change->named->name, g_strerror(-r));
    return 0;
}

static void make_on_loop(Fiber *self, void *arg)
{
    BitmapChange *change = arg;
    change->result = change->is_drained ? begin_drain(self, change) : 0;
    change->is_drained &= change->result == 0;
    if (change->result == 0)
        change->result = apply(self, change);
    if (change->result < 0 && change->is_drained)
        node_drain_end(change->named->node, REQUESTS_THAT_WRITE);
    change->is_drained &= change->result == 0;
}

// What guests change while a change may still be undone, whether the bitmap notes it or not.
typedef struct GuestChanges {
    NodeWriteHook hook; // first
    Bitmap *bits;
} GuestChanges;

static void note_guest_change(NodeWriteHook *hook, GuestOff off, uint64_t len)
{
    bitmap_set(((GuestChanges *)hook)->bits, off.v, len);
}

static void end_notes(BitmapChange *change)
{
    GuestChanges *since = g_steal_pointer(&change->since);
    if (!since)
        return;
    node_remove_write_hook(change->named->node, &since->hook);
    bitmap_free(since->bits);
    g_free(since);
}

static void resume_on_loop(void *arg)
{
    BitmapChange *change = arg;
    Node *node = change->named->node;
    if (change->kind != BITMAP_ADD && change->kind != BITMAP_REMOVE) {
        change->since = g_new0(GuestChanges, 1);
        change->since->hook.fn = note_guest_change;
        change->since->bits =
            bitmap_new(node->size_bytes, dirty_bitmap_granularity_bits(change->bitmap));
        node_add_write_hook(node, &change->since->hook);
    }
    node_drain_end(node, REQUESTS_THAT_WRITE);
    change->is_drained = false;
}

// The bits that it had, and, if it noted them then, what guests have changed.
static void restore_bits(BitmapChange *change)
{
    if (change->since && change->was_enabled)
        bitmap_merge(change->old_bits, change->since->bits);
    bitmap_free(dirty_bitmap_swap_bits(change->bitmap, g_steal_pointer(&change->old_bits)));
}

static void undo_on_loop(void *arg)
{
    BitmapChange *change = arg;
    change->is_undone = true;
    switch (change->kind) {
    case BITMAP_ADD:
        dirty_bitmap_drop(change->bitmap);
        break;
    case BITMAP_REMOVE:
        dirty_bitmap_set_busy(change->bitmap, false);
        break;
    case BITMAP_DISABLE:
        if (change->was_enabled)
            change->old_bits = bitmap_clone(dirty_bitmap_bits(change->bitmap));
        __attribute__((fallthrough));
    case BITMAP_ENABLE:
    case BITMAP_CLEAR:
    case BITMAP_MERGE:
        if (change->old_bits)
            restore_bits(change);
        dirty_bitmap_set_enabled(change->bitmap, change->was_enabled);
    }
}

static void end_on_loop(void *arg)
{
    BitmapChange *change = arg;
    end_notes(change);
    if (change->kind == BITMAP_REMOVE && change->result == 0 && !change->is_undone) {
        dirty_bitmap_set_busy(change->bitmap, false);
        dirty_bitmap_drop(change->bitmap);
    }
    if (change->is_drained)
        node_drain_end(change->named->node, REQUESTS_THAT_WRITE);
}

// -- changes: on the control loop -----------------------------------------------------------------

static bool changes_facts(const BitmapChange *change)
{
    return change->kind == BITMAP_ADD || change->kind == BITMAP_REMOVE;
}

int bitmap_change_make(Fiber *self, BitmapChange *change, GError **error)
{
    if (change->bitmap)
        dirty_bitmap_ref(change->bitmap);
    int r = remote_call_fiber(self, named_node_loop(change->named), make_on_loop, change);
    if (r < 0) {
        change->is_drained = false;
        change->result = qmp_fail(error, "no memory for a fiber's stack");
    }
    if (change->error)
        g_propagate_error(error, g_steal_pointer(&change->error));
    if (change->result < 0)
        bitmap_change_done(self, change);
    else if (change->kind == BITMAP_ADD)
        nodes_refresh(self, change->named);
    return change->result;
}

void bitmap_change_resume(Fiber *self, BitmapChange *change)
{
    if (change->is_drained)
        remote_call_plain(self, named_node_loop(change->named), resume_on_loop, change);
}

void bitmap_change_undo(Fiber *self, BitmapChange *change)
{
    remote_call_plain(self, named_node_loop(change->named), undo_on_loop, change);
}

void bitmap_change_done(Fiber *self, BitmapChange *change)
{
    remote_call_plain(self, named_node_loop(change->named), end_on_loop, change);
    if (change->result == 0 && changes_facts(change))
        nodes_refresh(self, change->named);
    bitmap_free(change->old_bits);
    g_clear_pointer(&change->sources, g_ptr_array_unref);
    dirty_bitmap_unref(change->bitmap);
}
