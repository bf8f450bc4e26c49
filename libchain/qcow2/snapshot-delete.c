// SPDX-License-Identifier: LGPL-2.1-or-later
// Deleting an internal snapshot while the guest writes. The list first: a new snapshot table
// without it → sync → header (the new table, and the dirty bit) → then each reference that it held
// is taken back beside the guest (snapshot-refs.c), its L1 table freed, all of that written back,
// and the dirty bit cleared.
//
// Write order (docs/ordering.md §13): nothing that the snapshot alone referenced is free before the
// disk has forgotten it. A cut after that leaves counts that are too high, and the dirty bit has
// the next open put them right. In a fiber on the image's loop.

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "qcow2/allocator.h"
#include "qcow2/open.h"
#include "qcow2/snapshot-info.h"
#include "qcow2/snapshot-refs.h"
#include "qcow2/snapshot-table.h"

static int find_deletable(const Qcow2Image *image, const char *id, const char *name,
                          ImageSnapshot **ret_snapshot, GError **error)
{
    ImageSnapshot *snapshot = snapshot_list_find_exactly(&image->snapshots, id, name);
    if (!snapshot || snapshot->is_leaving)
        return error_set(error, -ENOENT, "%s: has no internal snapshot with id '%s' and name '%s'",
                         image->name, id ? id : "(any)", name ? name : "(any)");
    if (snapshot->n_views)
        return error_set(error, -EBUSY,
                         "%s: its internal snapshot '%s' is open, by %u node%s: close what uses it",
                         image->name, snapshot->entry.name, snapshot->n_views,
                         snapshot->n_views == 1 ? "" : "s");
    *ret_snapshot = snapshot;
    return 0;
}

static int load_l1(Fiber *self, Qcow2Image *image, const Qcow2Snapshot *entry, Be64 **ret_l1)
{
    uint64_t bytes = (uint64_t)entry->l1_entries * sizeof(Be64);
    g_autofree Be64 *l1 = g_try_malloc0(MAX(bytes, 1));
    if (!l1)
        return -ENOMEM;
    int r = file_read(self, image->file, entry->l1, l1, bytes);
    if (r == 0)
        *ret_l1 = g_steal_pointer(&l1);
    return r;
}

static void add_range(ClusterSet *set, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        cluster_set_add(set, first + i);
}

// The list on disk, and then in memory, is without it.
static int unlist(Fiber *self, Qcow2Image *image, ImageSnapshot *snapshot)
{
    SnapshotTable table;
    int r = snapshot_table_make(self, image, NULL, snapshot, &table);
    if (r < 0)
        return r;
    // The refcounts of its clusters (§2).
    r = writeback_run_refcounts(self, &image->writeback);
    if (r == 0)
        r = snapshot_table_write(self, image, &table);
    if (r == 0 && !MUTANT("sync-of-shorter-snapshot-table"))
        r = file_flush(self, image->file);
    if (r == 0)
        r = snapshot_table_switch(self, image, &table, true);
    if (r < 0 && table.range.n && !image->writeback.has_ended)
        allocator_release(self, image, table.range);
    snapshot_table_done(&table);
    if (r == 0)
        snapshot_list_remove(&image->snapshots, snapshot);
    return r;
}

// What no L2 table may lie in, whatever a damaged L1 table says: metadata of other kinds.
static void collect_fixed(const Qcow2Image *image, ClusterSet *fixed)
{
    const Qcow2Header *h = &image->header;
    add_range(fixed, image_cluster_of(image, h->l1), image_clusters_for(image, h->l1_entries * 8));
    add_range(fixed, image_cluster_of(image, h->refcount_table), h->refcount_table_clusters);
    add_range(fixed, image_cluster_of(image, h->snapshot_table),
              image_clusters_for(image, image->snapshots.table_bytes));
    cluster_set_add(fixed, 0);
    for (uint64_t i = 0; i < image->refcount_table.n; i++) {
        HostOff block;
        if (qcow2_refcount_table_entry_decode(&image->geometry, image->refcount_table.entries[i],
                                              &block) &&
            block.v)
            cluster_set_add(fixed, image_cluster_of(image, block));
    }
    for (guint i = 0; i < snapshot_list_count(&image->snapshots); i++) {
        const Qcow2Snapshot *s = &snapshot_list_get(&image->snapshots, i)->entry;
        add_range(fixed, image_cluster_of(image, s->l1),
                  image_clusters_for(image, (uint64_t)s->l1_entries * sizeof(Be64)));
    }
}

// What only the deleted snapshot referenced. Nothing names it any more.
static void take_back(Fiber *self, Qcow2View *head, const Be64 *l1, const Qcow2Snapshot *entry)
{
    Qcow2Image *image = head->image;
    ClusterSet fixed = {0};
    SnapshotRefs refs = {.head = head,
                         .l1 = l1,
                         .n_l1 = entry->l1_entries,
                         .i1 = entry->l1_entries,
                         .no_tables = &fixed};
    uint64_t l1_bytes = (uint64_t)entry->l1_entries * sizeof(Be64);
    ClusterRange l1_range = {image_cluster_of(image, entry->l1),
                             image_clusters_for(image, l1_bytes)};
    collect_fixed(image, &fixed);
    add_range(&fixed, l1_range.first, l1_range.n);
    snapshot_refs_lower(self, &refs);
    cluster_set_done(&fixed);
    if (l1_range.n && !image->corrupt)
        allocator_release(self, image, l1_range);
    snapshot_table_end_repair(self, image, refs.is_incomplete);
}

static int delete_snapshot(Fiber *self, Qcow2View *head, ImageSnapshot *snapshot)
{
    Qcow2Image *image = head->image;
    Qcow2Snapshot entry = {.l1 = snapshot->entry.l1, .l1_entries = snapshot->entry.l1_entries};
    g_autofree Be64 *l1 = NULL;
    int r = image_begin_change(self, image);
    if (r == 0)
        r = load_l1(self, image, &entry, &l1);
    bool is_early = r == 0 && MUTANT("shorter-list-before-references");
    if (is_early)
        take_back(self, head, l1, &entry);
    if (r == 0)
        r = unlist(self, image, snapshot);
    if (r == 0 && !is_early)
        take_back(self, head, l1, &entry);
    return r;
}

int qcow2_snapshot_delete(Fiber *self, Node *node, const char *id, const char *name,
                          Qcow2SnapshotInfo *ret_info, GError **error)
{
    Qcow2Image *image = qcow2_node_image(node);
    if (!image || image->head != view_of(node))
        return error_set(error, -EROFS, "%s: not a qcow2 image that is open for writing",
                         node->name);
    snapshot_list_begin_change(self, &image->snapshots);
    ImageSnapshot *snapshot = NULL;
    Qcow2SnapshotInfo info = {0};
    int r = 0;
    if (node->read_only) // since it got an overlay, perhaps while this waited
        r = error_set(error, -EROFS, "%s: has become read-only", node->name);
    if (r == 0)
        r = find_deletable(image, id, name, &snapshot, error);
    if (r == 0) {
        snapshot_info_fill(&snapshot->entry, &info);
        snapshot->is_leaving = true;
        fiber_wait_group_add(&image->fibers, 1); // it stays on its loop
        r = delete_snapshot(self, view_of(node), snapshot);
        fiber_wait_group_done(&image->fibers);
        if (r < 0) {
            snapshot->is_leaving = false;
            error_set(error, r, "%s: its internal snapshot '%s' cannot be deleted: %s", image->name,
                      info.name, g_strerror(-r));
        }
    }
    if (r == 0 && ret_info)
        *ret_info = info;
    else
        qcow2_snapshot_info_clear(&info);
    snapshot_list_end_change(&image->snapshots);
    return r;
}
