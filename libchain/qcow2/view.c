// SPDX-License-Identifier: LGPL-2.1-or-later
// Views: making and closing them, and what a node answers without I/O.

#include "qcow2/view.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/bitmap-load.h"
#include "qcow2/bitmap-store.h"
#include "qcow2/open.h"

static File *view_file(Node *node)
{
    return image_data_file(view_of(node)->image);
}

static File *view_metadata_file(Node *node)
{
    const Qcow2Image *image = view_of(node)->image;
    return image->data_file ? image->file : NULL;
}

static int view_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    static const NodeExtentKind kinds[] = {
        [QCOW2_CLUSTER_UNALLOCATED] = NODE_EXTENT_BELOW,
        [QCOW2_CLUSTER_ZERO] = NODE_EXTENT_ZERO,
        [QCOW2_CLUSTER_ZERO_ALLOCATED] = NODE_EXTENT_ZERO_ALLOCATED,
        [QCOW2_CLUSTER_DATA] = NODE_EXTENT_DATA,
        [QCOW2_CLUSTER_COMPRESSED] = NODE_EXTENT_OPAQUE,
    };
    Qcow2View *view = view_of(node);
    MappingRun run;
    int r;
    {
        G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(view->image);
        r = mapping_find(self, view, off, len, &run);
    }
    if (r < 0)
        return r;
    *ret_extent = (NodeExtent){
        .len = run.len,
        .kind = kinds[run.kind],
        .file = view_file(node),
        .host = run.host,
        .node = node,
    };
    // A compressed cluster's neighbour is a read of its own, but one extent may cover many.
    while (run.kind == QCOW2_CLUSTER_COMPRESSED && ret_extent->len < len) {
        MappingPlace place;
        GuestOff next = guest_off(off.v + ret_extent->len);
        if (mapping_try_find_place(view, next, &place) < 0 || !place.slice ||
            mapping_decode(view, &place, next, len - ret_extent->len, &run) < 0 ||
            run.kind != QCOW2_CLUSTER_COMPRESSED)
            break;
        ret_extent->len += run.len;
    }
    return 0;
}

static void view_pin(Fiber *self, Node *node, IoBatch *batch)
{
    image_pin(self, view_of(node)->image, batch);
}

static bool view_may_have(Node *node, GuestOff off, uint64_t len)
{
    const Qcow2View *view = view_of(node);
    const Qcow2Geometry *g = &view->image->geometry;
    if (off.v >= node->size_bytes || !len)
        return false;
    uint64_t last = MIN(off.v + len, node->size_bytes) - 1;
    for (uint64_t i = qcow2_l1_index(g, off); i <= qcow2_l1_index(g, guest_off(last)); i++)
        if (view->l1.entries[i].raw)
            return true;
    return false;
}

static void view_close(Fiber *self, Node *node)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    if (view->is_head) {
        bitmap_store_all(self, image, node); // a failure is said
        // Without its L1 later write-backs would make half of its changes durable: there must be
        // none. Nor may one be under way when it goes.
        int r;
        do
            r = writeback_run(self, &image->writeback);
        while (image->writeback.running);
        if (r < 0)
            writeback_end(&image->writeback);
        view_leave_head(view);
    }
    g_ptr_array_remove_fast(image->views, view);
    if (view->snapshot)
        view->snapshot->n_views--;
    qcow2_image_unref_close(self, image);
    entry_table_done(&view->l1);
}

static void view_detach(Fiber *self, Node *node)
{
    image_detach(self, view_of(node)->image);
}

static void view_attach(Node *node)
{
    image_attach(view_of(node)->image, node->loop);
}

static void view_for_each_sibling(Node *node, NodeVisitFn *fn, void *arg)
{
    GPtrArray *views = view_of(node)->image->views;
    for (guint i = 0; i < views->len; i++)
        fn(views->pdata[i], arg);
}

static const char *view_own_work(const Node *node)
{
    return view_of((Node *)node)->image->n_snapshot_works
               ? "an internal snapshot of it is being made or deleted"
               : NULL;
}

static const NodeOps view_ops = {
    .driver = "qcow2",
    .read_start = view_read_start,
    .write = view_write,
    .write_extent = view_write_extent,
    .zero = view_zero,
    .discard = view_discard,
    .uncover = view_uncover,
    .flush = view_flush,
    .map = view_map,
    .pin = view_pin,
    .find_kind = view_find_kind,
    .find_kinds = view_find_kinds,
    .file = view_file,
    .metadata_file = view_metadata_file,
    .may_have = view_may_have,
    .data_may_be_hole = view_data_may_be_hole,
    .detach = view_detach,
    .attach = view_attach,
    .for_each_sibling = view_for_each_sibling,
    .own_work = view_own_work,
    .fill = &view_fill_ops,
    .compressed = &view_compressed_ops,
    .bitmap_store = &qcow2_bitmap_store,
    .set_writable = view_set_writable,
    .set_active = view_set_active,
    .resize = view_resize,
    .room = view_room,
    .close = view_close,
};

// Where the list stands still its place in it says the same to all who opened the file; where it
// changes, another snapshot may come to have that place.
static uint64_t snapshot_identity(const Qcow2Image *image, const ImageSnapshot *snapshot)
{
    guint i = 0;
    if (image->writable)
        return UINT64_C(1) << 63 | snapshot->number;
    g_ptr_array_find(image->snapshots.all, snapshot, &i);
    return 1 + i;
}

// Without one where another program writes: what two nodes know of it may differ.
void view_set_identity(Qcow2View *view)
{
    const Qcow2Image *image = view->image;
    view->node.identity = (NodeIdentity){0};
    if (image->is_shared)
        return;
    file_identity(image->file, view->node.identity.file);
    if (view->snapshot)
        view->node.identity.view = snapshot_identity(image, view->snapshot);
}

int qcow2_view_new(Fiber *self, Qcow2Image *image, const char *wanted, Node **ret_node,
                   GError **error)
{
    const Qcow2Header *h = &image->header;
    ImageSnapshot *snapshot = NULL;
    int r = image_load(self, image, error);
    if (r < 0)
        return r;
    if (wanted) {
        snapshot = snapshot_list_find(&image->snapshots, wanted);
        if (!snapshot || snapshot->is_leaving) {
            g_autofree char *names = snapshot_list_names(&image->snapshots);
            return error_set(error, -ENOENT, "%s: has no internal snapshot '%s'; it has %s",
                             image->name, wanted, names);
        }
    }
    bool head_for_writing = !snapshot && image->writable;
    if (head_for_writing && image->head) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "%s: its head is open for writing already", image->name);
        return -EBUSY;
    }
    Qcow2View *view = g_new0(Qcow2View, 1);
    uint64_t size = snapshot ? snapshot->entry.size_bytes : h->size_bytes;
    g_autofree char *name =
        snapshot ? g_strdup_printf("%s@%s", image->name, wanted) : g_strdup(image->name);
    node_init(&view->node, &view_ops, image->loop, name, size);
    view->image = image;
    view->snapshot = snapshot;
    if (snapshot)
        snapshot->n_views++; // it stays while we wait
    view->node.read_only = !head_for_writing;
    view->node.preferred_bytes = image->geometry.cluster_bytes;
    view->node.is_corrupt = &image->corrupt;
    view_set_identity(view);
    r = view_load_l1(self, view, snapshot ? snapshot->entry.l1 : h->l1,
                     snapshot ? snapshot->entry.l1_entries : h->l1_entries, error);
    qcow2_image_ref(image);
    g_ptr_array_add(image->views, view);
    if (r == 0 && head_for_writing)
        r = view_join_as_head(view, error);
    if (r < 0) {
        node_unref_close(self, &view->node);
        return r;
    }
    if (!snapshot)
        bitmap_load_all(self, image, &view->node);
    *ret_node = &view->node;
    return 0;
}

Qcow2Image *qcow2_node_image(Node *node)
{
    return node->ops == &view_ops ? view_of(node)->image : NULL;
}

int qcow2_snapshot_view_new(Fiber *self, Node *beside, const char *snapshot, Node **ret_node,
                            GError **error)
{
    Qcow2Image *image = qcow2_node_image(beside);
    if (!image)
        return error_set(error, -EINVAL, "%s: a %s image has no internal snapshots", beside->name,
                         beside->ops->driver);
    int r = qcow2_view_new(self, image, snapshot, ret_node, error);
    if (r == 0)
        node_set_backing(self, *ret_node, beside->backing);
    return r;
}
