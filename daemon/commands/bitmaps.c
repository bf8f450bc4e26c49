// SPDX-License-Identifier: LGPL-2.1-or-later
// Each change is a command and an action of a transaction with the same arguments. As a command it
// is made at once, between two requests of guests; as an action it is made when the transaction is
// prepared, with guests held back until all of it took effect, so that what a transaction does
// happens at one moment for them.
#include "bitmaps.h"

#include "daemon/bitmap-difference.h"
#include "daemon/bitmaps.h"
#include "daemon/daemon.h"
#include "daemon/qmp/args.h"

// -- types ----------------------------------------------------------------------------------------

static const QmpType bitmap_external = {
    .name = "BlockDirtyBitmap",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node", &qmp_str, .doc = "the node it belongs to"},
                                   {"name", &qmp_str, .doc = "the bitmap"},
                                   {0}},
};
const QmpType bitmap_ref_type = {
    .name = "BlockDirtyBitmapOrStr",
    .kind = QMP_ALTERNATE,
    .members = (const QmpMember[]){{"local", &qmp_str}, {"external", &bitmap_external}, {0}},
};
const QmpType bitmap_refs_type = {.kind = QMP_ARRAY, .element = &bitmap_ref_type};

static const QmpType bitmap_add_args = {
    .name = "BlockDirtyBitmapAdd",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"node", &qmp_str, .doc = "the node whose changes it notes"},
            {"name", &qmp_str, .doc = "its name, new on this node, of at most 1023 bytes"},
            {"granularity", &qmp_uint32, true,
             "bytes for which a bit stands, a power of 2 from 512; the cluster size without it, at "
             "least 4096 and at most 65536"},
            {"persistent", &qmp_bool, true,
             "whether it is kept in the image; it is not without it"},
            {"disabled", &qmp_bool, true, "whether it notes nothing yet; it does without it"},
            {"base-node", &qmp_str, true,
             "an extension, for the command only: a layer below the node. What the node shows "
             "otherwise than that layer is dirty from the start: what the layers above it own, "
             "from their metadata, as if the bitmap had been there since that layer got its "
             "overlay"},
            {0}},
};
static const QmpType bitmap_merge_args = {
    .name = "BlockDirtyBitmapMerge",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"node", &qmp_str, .doc = "the node of the target"},
                                   {"target", &qmp_str, .doc = "the bitmap that gains bits"},
                                   {"bitmaps", &bitmap_refs_type,
                                    .doc = "whose bits: of this node or of others, of any "
                                           "granularity, of disks of the same size"},
                                   {0}},
};
static const QmpType bitmap_info = {
    .name = "BlockDirtyInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"name", &qmp_str, true, "its name"},
            {"count", &qmp_int, .doc = "bytes in dirty granules"},
            {"granularity", &qmp_uint32, .doc = "bytes for which a bit stands"},
            {"recording", &qmp_bool, .doc = "whether it notes what guests change"},
            {"busy", &qmp_bool, .doc = "whether an export or a job uses it"},
            {"persistent", &qmp_bool, .doc = "whether it is kept in the image"},
            {"inconsistent", &qmp_bool, true,
             "whether what the image says of it cannot be trusted, so that it can only be removed"},
            {0}},
};
const QmpType bitmap_infos_type = {.kind = QMP_ARRAY, .element = &bitmap_info};

static const QmpType bitmap_sha256 = {
    .name = "BlockDirtyBitmapSha256",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"sha256", &qmp_str, .doc = "in hexadecimal digits"}, {0}},
};

// -- from arguments to a change -------------------------------------------------------------------

static int fill_add(Nodes *nodes, const json_t *args, BitmapChange *change, GError **error)
{
    const char *node = qmp_args_str(args, "node"), *name = qmp_args_str(args, "name");
    if (!*name)
        return qmp_fail(error, "Bitmap name cannot be empty");
    change->named = nodes_find(nodes, node);
    if (!change->named)
        return qmp_fail(error, "Cannot find device='%s' nor node-name='%s'", node, node);
    if (change->named->driver->is_file) // formats write to files past their nodes
        return qmp_fail(error,
                        "Node '%s' is a file, which does not see all that is written through the "
                        "nodes above it: add the bitmap to one of those",
                        node);
    int64_t granularity = qmp_args_int(args, "granularity", -1);
    if (granularity >= 0 && (granularity < 512 || granularity & (granularity - 1)))
        return qmp_fail(error, "Granularity must be power of 2 and at least 512");
    change->spec = (DirtyBitmapSpec){
        .name = name,
        .node_name = node,
        .granularity_bits = granularity < 0
                                ? dirty_bitmap_default_granularity_bits(change->named->node)
                                : (uint32_t)__builtin_ctzll(granularity),
        .is_persistent = qmp_args_bool(args, "persistent", false),
        .is_disabled = qmp_args_bool(args, "disabled", false),
    };
    return 0;
}

static int find(Nodes *nodes, const json_t *args, const char *key, BitmapChange *change,
                DirtyBitmapUse use, GError **error)
{
    NamedBitmap found;
    int r = bitmaps_find(nodes, qmp_args_str(args, "node"), qmp_args_str(args, key), &found, error);
    if (r < 0)
        return r;
    change->named = found.named;
    change->bitmap = found.bitmap;
    return dirty_bitmap_check(found.bitmap, use, error);
}

static int add_source(Fiber *self, Nodes *nodes, const json_t *ref, BitmapChange *change,
                      GError **error)
{
    NamedBitmap source;
    bool is_local = json_is_string(ref);
    int r =
        bitmaps_find(nodes, is_local ? change->named->name : qmp_args_str(ref, "node"),
                     is_local ? json_string_value(ref) : qmp_args_str(ref, "name"), &source, error);
    if (r == 0)
        r = dirty_bitmap_check(source.bitmap, DIRTY_BITMAP_USE_READ, error);
    if (r < 0)
        return r;
    uint64_t size = change->named->facts.size_bytes, source_size = source.named->facts.size_bytes;
    if (size != source_size)
        return qmp_fail(error,
                        "Bitmaps are of different sizes (destination size is %" G_GUINT64_FORMAT
                        ", source size is %" G_GUINT64_FORMAT ") and can't be merged",
                        size, source_size);
    g_ptr_array_add(change->sources, bitmaps_snapshot(self, &source));
    return 0;
}

static int fill_merge(Fiber *self, Nodes *nodes, const json_t *args, BitmapChange *change,
                      GError **error)
{
    size_t i;
    json_t *ref;
    int r = find(nodes, args, "target", change, DIRTY_BITMAP_USE_CHANGE, error);
    change->sources = g_ptr_array_new_with_free_func((GDestroyNotify)bitmap_free);
    json_array_foreach(json_object_get(args, "bitmaps"), i, ref) if (r == 0) r =
        add_source(self, nodes, ref, change, error);
    return r;
}

static int fill(Fiber *self, Nodes *nodes, const json_t *args, BitmapChange *change, GError **error)
{
    switch (change->kind) {
    case BITMAP_ADD:
        return fill_add(nodes, args, change, error);
    case BITMAP_REMOVE:
        return find(nodes, args, "name", change, DIRTY_BITMAP_USE_REMOVE, error);
    case BITMAP_CLEAR:
        return find(nodes, args, "name", change, DIRTY_BITMAP_USE_CHANGE, error);
    case BITMAP_ENABLE:
    case BITMAP_DISABLE:
        return find(nodes, args, "name", change, DIRTY_BITMAP_USE_READ, error);
    case BITMAP_MERGE:
        return fill_merge(self, nodes, args, change, error);
    }
    return -EINVAL;
}

static int make(Fiber *self, QmpCall *call, const json_t *args, BitmapChange *change,
                GError **error)
{
    int r = fill(self, call->daemon->nodes, args, change, error);
    if (r < 0) {
        g_clear_pointer(&change->sources, g_ptr_array_unref);
        return r;
    }
    return bitmap_change_make(self, change, error);
}

// -- as commands ----------------------------------------------------------------------------------

static int change_now(Fiber *self, QmpCall *call, const json_t *args, BitmapChangeKind kind,
                      GError **error)
{
    BitmapChange change = {.kind = kind};
    FiberMutex *lock = nodes_graph_lock(call->daemon->nodes);
    fiber_mutex_lock(self, lock);
    int r = make(self, call, args, &change, error);
    if (r == 0)
        bitmap_change_done(self, &change);
    fiber_mutex_unlock(self, lock);
    return r;
}

// -- as actions -----------------------------------------------------------------------------------

static int prepare(Fiber *self, QmpCall *call, const json_t *data, BitmapChangeKind kind,
                   void **ret_state, GError **error)
{
    BitmapChange *change = g_new0(BitmapChange, 1);
    change->kind = kind;
    change->is_drained = true;
    int r = make(self, call, data, change, error);
    if (r == 0)
        *ret_state = change;
    else
        g_free(change);
    return r;
}

static void resume(Fiber *self, void *state)
{
    bitmap_change_resume(self, state);
}

static void undo(Fiber *self, void *state)
{
    bitmap_change_undo(self, state);
}

static void clean(Fiber *self, void *state)
{
    bitmap_change_done(self, state);
    g_free(state);
}

// -- the commands ---------------------------------------------------------------------------------

// One for each verb: a command, and the first step of an action.
#define CHANGE(verb, kind)                                                                         \
    static int run_##verb(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,      \
                          GError **error)                                                          \
    {                                                                                              \
        return change_now(self, call, args, kind, error);                                          \
    }                                                                                              \
    static int prepare_##verb(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,    \
                              GError **error)                                                      \
    {                                                                                              \
        return prepare(self, call, data, kind, ret_state, error);                                  \
    }
CHANGE(remove, BITMAP_REMOVE)
CHANGE(clear, BITMAP_CLEAR)
CHANGE(enable, BITMAP_ENABLE)
CHANGE(disable, BITMAP_DISABLE)
CHANGE(merge, BITMAP_MERGE)

static int prepare_add(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                       GError **error)
{
    if (qmp_args_have(data, "base-node"))
        return qmp_fail(error, "Parameter 'base-node' would hold up clients while tables are read: "
                               "give it to the command, before the transaction");
    return prepare(self, call, data, BITMAP_ADD, ret_state, error);
}

static int add_difference(Fiber *self, QmpCall *call, const json_t *args, GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    BitmapChange change = {.kind = BITMAP_ADD};
    FiberMutex *lock = nodes_graph_lock(nodes);
    fiber_mutex_lock(self, lock);
    int r = fill_add(nodes, args, &change, error);
    if (r == 0)
        r = bitmap_add_difference(self, nodes, change.named, &change.spec,
                                  qmp_args_str(args, "base-node"), error);
    fiber_mutex_unlock(self, lock);
    return r;
}

static int run_add(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                   GError **error)
{
    return qmp_args_have(args, "base-node") ? add_difference(self, call, args, error)
                                            : change_now(self, call, args, BITMAP_ADD, error);
}

static int run_hash(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                    GError **error)
{
    Nodes *nodes = call->daemon->nodes;
    Bitmap *bits = NULL;
    NamedBitmap found;
    fiber_rw_lock_read(self, nodes_move_lock(nodes)); // the node stays on its loop
    int r =
        bitmaps_find(nodes, qmp_args_str(args, "node"), qmp_args_str(args, "name"), &found, error);
    if (r == 0)
        bits = bitmaps_snapshot(self, &found);
    fiber_rw_unlock_read(self, nodes_move_lock(nodes));
    if (r < 0)
        return r;
    g_autofree char *hash = dirty_bitmap_sha256(self, bits);
    bitmap_free(bits);
    *ret_reply = json_pack("{s:s}", "sha256", hash);
    return 0;
}

static const QmpCommand commands[] = {
    {"block-dirty-bitmap-add", &bitmap_add_args, NULL,
     "Adds a bitmap that notes which granules of a node are written, zeroed or discarded from now "
     "on.",
     run_add},
    {"block-dirty-bitmap-remove", &bitmap_external, NULL,
     "Removes a bitmap, from its image, too; one that is inconsistent as well.", run_remove},
    {"block-dirty-bitmap-clear", &bitmap_external, NULL, "Makes all of a bitmap clean.", run_clear},
    {"block-dirty-bitmap-enable", &bitmap_external, NULL, "Lets a bitmap note what is changed.",
     run_enable},
    {"block-dirty-bitmap-disable", &bitmap_external, NULL,
     "Keeps a bitmap as it is, whatever is changed.", run_disable},
    {"block-dirty-bitmap-merge", &bitmap_merge_args, NULL,
     "Makes dirty in a bitmap what is dirty in any of others. When one of them cannot be used "
     "nothing changes.",
     run_merge},
    {"x-debug-block-dirty-bitmap-sha256", &bitmap_external, &bitmap_sha256,
     "A hash over the bits, the same as QEMU's of the same bits: for tests.", run_hash, "unstable",
     .is_query = true},
    {0},
};

#define ACTION(verb, args)                                                                         \
    {                                                                                              \
        .name = "block-dirty-bitmap-" #verb, .data = (args), .doc = "As the command does.",        \
        .prepare = prepare_##verb, .resume = resume, .abort = undo, .clean = clean                 \
    }
static const QmpAction actions[] = {
    ACTION(add, &bitmap_add_args),
    ACTION(remove, &bitmap_external),
    ACTION(clear, &bitmap_external),
    ACTION(enable, &bitmap_external),
    ACTION(disable, &bitmap_external),
    ACTION(merge, &bitmap_merge_args),
    {0},
};

const QmpFamily qmp_bitmaps_family = {
    .title = "Dirty bitmaps",
    .commands = commands,
    .actions = actions,
};
