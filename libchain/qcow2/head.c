// SPDX-License-Identifier: LGPL-2.1-or-later
// The head view of an image that is written: its L1 table is the one that write-back serves, and
// its L2 tables belong to the metadata set. A view becomes that when it is made, or while it is
// open.

#include "qcow2/view.h"

#include <errno.h>

#include "base/error.h"
#include "chain-core/port.h"
#include "node/node-edge.h"
#include "qcow2/bitmap-store.h"
#include "qcow2/mode.h"
#include "qcow2/open.h"

int view_load_l1(Fiber *self, Qcow2View *view, HostOff l1, uint64_t n_l1, GError **error)
{
    const Qcow2Image *image = view->image;
    const Qcow2Geometry *g = &image->geometry;
    uint64_t bytes = n_l1 * sizeof(Be64);
    const char *problem = NULL;
    // That it lies inside the file was checked with the header or the snapshot table.
    if (n_l1 < qcow2_l1_entries_for(g, view->node.size_bytes))
        problem = "is too small for its virtual size";
    else if (bytes > QCOW2_MAX_L1_BYTES)
        problem = "is larger than 32 MiB";
    else if (n_l1 && l1.v & (g->cluster_bytes - 1))
        problem = "is not aligned to a cluster";
    if (problem) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "%s: its L1 table (%" G_GUINT64_FORMAT " entries at offset %#" G_GINT64_MODIFIER
                    "x) %s: the image is damaged; try 'qemu-img check'",
                    image->name, n_l1, l1.v, problem);
        return -EINVAL;
    }
    int r = entry_table_load(self, &view->l1, image->file, l1, n_l1);
    if (r < 0)
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
                    "%s: cannot read its L1 table at offset %#" G_GINT64_MODIFIER "x: %s",
                    image->name, l1.v, g_strerror(-r));
    return r;
}

// The head's L2 tables join the metadata set, which also finds tables claimed twice.
static int collect_l2_tables(Qcow2View *view, GError **error)
{
    Qcow2Image *image = view->image;
    for (uint32_t i = 0; i < view->l1.n; i++) {
        Qcow2L1Entry e = qcow2_l1_entry_decode(view->l1.entries[i]);
        if (!e.l2.v && !e.reserved_set)
            continue;
        const char *problem = NULL;
        bool is_place = !e.reserved_set && !(e.l2.v & (image->geometry.cluster_bytes - 1));
        bool is_inside = image_cluster_of(image, e.l2) < image->allocator.tail;
        if (is_place && !is_inside && qcow2_header_could_hold(&image->header, e.l2.v))
            return image_fail_cut_off(image, error, e.l2, "an L2 table");
        if (!is_place || !is_inside)
            problem = "is damaged";
        else if (!metadata_set_add(&image->metadata, image_cluster_of(image, e.l2)))
            problem = "names a cluster that holds other metadata";
        if (problem) {
            g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                        "%s: L1 entry %u (%#" G_GINT64_MODIFIER "x) %s: the image is corrupt; try "
                        "'qemu-img check -r all', or open it with --read-only",
                        image->name, i, be64_get(view->l1.entries[i]), problem);
            return -EUCLEAN;
        }
    }
    return 0;
}

int view_join_as_head(Qcow2View *view, GError **error)
{
    Qcow2Image *image = view->image;
    int r = collect_l2_tables(view, error);
    if (r < 0)
        return r;
    view->is_head = true;
    image->head = view;
    image->writeback.parts.l1 = &view->l1;
    return 0;
}

void view_leave_head(Qcow2View *view)
{
    Qcow2Image *image = view->image;
    for (uint64_t i = 0; i < view->l1.n; i++)
        if (view->l1.entries[i].raw)
            metadata_set_remove(
                &image->metadata,
                image_cluster_of(image, qcow2_l1_entry_decode(view->l1.entries[i]).l2));
    view->is_head = false;
    image->head = NULL;
    image->writeback.parts.l1 = NULL;
}

int view_reload_l1(Fiber *self, Qcow2View *view, GError **error)
{
    const Qcow2Header *h = &view->image->header;
    EntryTable old = view->l1;
    view->l1 = (EntryTable){0};
    int r = view_load_l1(self, view, h->l1, h->l1_entries, error);
    if (r < 0) {
        entry_table_done(&view->l1);
        view->l1 = old;
    } else {
        entry_table_done(&old);
    }
    return r;
}

static void set_bitmaps_read_only(const Node *node, bool is_read_only)
{
    const GPtrArray *bitmaps = dirty_bitmaps_of(node);
    for (guint i = 0; bitmaps && i < bitmaps->len; i++)
        if (dirty_bitmap_is_persistent(bitmaps->pdata[i]))
            dirty_bitmap_set_read_only(bitmaps->pdata[i], is_read_only);
}

// Reads may be under way, unless the image is dirty.
static int become_head(Fiber *self, Qcow2View *view, GError **error)
{
    Qcow2Image *image = view->image;
    bool is_repaired = false;
    if (view->snapshot)
        return error_set(error, -EROFS, "%s: an internal snapshot cannot be written",
                         view->node.name);
    if (image->views->len > 1)
        return error_set(error, -EBUSY,
                         "%s: it cannot be written while one of its internal snapshots is open; "
                         "close that first",
                         view->node.name);
    int r = image_begin_writing(self, image, &is_repaired, error);
    if (r < 0)
        return r;
    if (is_repaired)
        r = view_reload_l1(self, view, error);
    if (r == 0)
        r = view_join_as_head(view, error);
    if (r < 0)
        image_end_writing(self, image, NULL);
    else
        set_bitmaps_read_only(&view->node, false);
    return r;
}

static int make_head(Fiber *self, Qcow2View *view, GError **error)
{
    bool is_dirty = view->image->header.incompatible & QCOW2_INCOMPAT_DIRTY;
    if (is_dirty)
        node_drain_begin(self, &view->node, REQUESTS_ALL);
    int r = become_head(self, view, error);
    if (is_dirty) {
        node_edges_changed(&view->node); // the repair may have changed what lies where
        node_drain_end(&view->node, REQUESTS_ALL);
    }
    return r;
}

static int make_read_only(Fiber *self, Qcow2View *view, GError **error)
{
    SnapshotList *snapshots = &view->image->snapshots;
    snapshot_list_begin_change(self, snapshots);      // none is in the making
    bitmap_store_all(self, view->image, &view->node); // a failure is said
    int r = image_finish_writing(self, view->image);
    snapshot_list_end_change(snapshots);
    if (r < 0)
        return error_set(error, r, "%s: what was written cannot be made durable: %s",
                         view->node.name, g_strerror(-r));
    view_leave_head(view);
    set_bitmaps_read_only(&view->node, true);
    return image_end_writing(self, view->image, error);
}

int view_set_writable(Fiber *self, Node *node, bool is_writable, GError **error)
{
    Qcow2View *view = view_of(node);
    if (view->is_head == is_writable) // stopped and not yet read-only, or read-only already
        return 0;
    return is_writable ? make_head(self, view, error) : make_read_only(self, view, error);
}
