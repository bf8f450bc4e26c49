// SPDX-License-Identifier: LGPL-2.1-or-later
// Making an internal snapshot while the guest writes.
//
//     prepare   clusters and space for its L1 table and the new snapshot table; a write-back ahead;
//               the dirty bit
//     take      with nothing that writes in flight, in memory: the head's L1 table is copied, and
//               each table that it names marked as shared. That is the moment
//     finish    each reference is counted (snapshot-refs.c) → write-back → L1 table and snapshot
//               table written → sync → header (the new table, no dirty bit)
//
// From the moment on the tables that the snapshot reaches stay as they are: a write to the head
// gives the head a copy, in which no cluster may be written in place. So it does not matter when
// they are counted. Until then no freed cluster is released (freed_hold()): its count may lack the
// snapshot's reference.
//
// Write order (docs/ordering.md §13): refcounts, COPIED flags and both tables are durable before
// the header names the snapshot. Before that the image has no snapshot, and counts that are too
// high or flags that are missing: the dirty bit, set before the first of them, has the next open
// put them right. In a fiber on the image's loop.

#include "chain-core/qcow2-snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "chain-core/mutant.h"
#include "chain-core/port.h"
#include "qcow2/allocator.h"
#include "qcow2/open.h"
#include "qcow2/snapshot-info.h"
#include "qcow2/snapshot-refs.h"
#include "qcow2/snapshot-table.h"

struct Qcow2NewSnapshot {
    Qcow2View *head;
    Qcow2Image *image;
    Qcow2Snapshot entry;
    SnapshotTable table;
    ClusterRange l1_range;
    Be64 *l1;
    uint64_t n_l1;
    uint64_t *shared; // becomes the head's marks
    bool is_taken;
    int result; // of what came before finish
};

// One more than the largest number that an id is.
static char *next_id(const SnapshotList *list)
{
    uint64_t last = 0;
    for (guint i = 0; i < snapshot_list_count(list); i++)
        last = MAX(last, strtoull(snapshot_list_get(list, i)->entry.id, NULL, 10));
    return g_strdup_printf("%" PRIu64, last + 1);
}

static int check_wanted(const Qcow2View *head, const char *name, GError **error)
{
    const Qcow2Image *image = head->image;
    if (image->head != head || head->node.read_only)
        return error_set(error, -EROFS, "%s: not open for writing, so it takes no snapshot",
                         image->name);
    if (image->geometry.external_data)
        return error_set(error, -ENOTSUP,
                         "%s: its data is in a file of its own, of which there are no internal "
                         "snapshots",
                         image->name);
    if (snapshot_list_find_exactly(&image->snapshots, NULL, name))
        return error_set(error, -EEXIST, "%s: it has an internal snapshot '%s' already",
                         image->name, name);
    if (strlen(name) > UINT16_MAX)
        return error_set(error, -EINVAL, "%s: the name of the snapshot is too long", image->name);
    return 0;
}

static void new_snapshot_free(Qcow2NewSnapshot *s)
{
    snapshot_table_done(&s->table);
    qcow2_snapshot_clear(&s->entry);
    g_free(s->l1);
    g_free(s->shared);
    g_free(s);
}

static void give_back(Fiber *self, Qcow2NewSnapshot *s)
{
    if (s->l1_range.n)
        allocator_release(self, s->image, s->l1_range);
    if (s->table.range.n)
        allocator_release(self, s->image, s->table.range);
    s->l1_range = s->table.range = (ClusterRange){0};
}

// More would make an image that cannot be opened for writing any more.
static bool has_room_for(const SnapshotList *list, uint64_t l1_bytes)
{
    for (guint i = 0; i < snapshot_list_count(list); i++)
        l1_bytes += snapshot_list_get(list, i)->entry.l1_entries * sizeof(Be64);
    return l1_bytes <= SNAPSHOT_TABLE_MAX_L1_BYTES;
}

static int take_space(Fiber *self, Qcow2NewSnapshot *s)
{
    uint64_t l1_bytes = s->n_l1 * sizeof(Be64);
    if (!has_room_for(&s->image->snapshots, l1_bytes))
        return -EFBIG;
    s->l1 = g_try_malloc0(MAX(l1_bytes, 1));
    s->shared = g_try_malloc0(s->n_l1 / 8 + sizeof(uint64_t));
    if (!s->l1 || !s->shared)
        return -ENOMEM;
    int r = snapshot_table_take_clusters(self, s->image, l1_bytes, &s->l1_range);
    if (r < 0)
        return r;
    s->entry.l1 = s->n_l1 ? image_cluster_off(s->image, s->l1_range.first) : host_off(0);
    s->entry.l1_entries = s->n_l1;
    return snapshot_table_make(self, s->image, &s->entry, NULL, &s->table);
}

// With the right to change the list, which it keeps after success only.
static int prepare(Fiber *self, Qcow2View *head, const char *name, Qcow2NewSnapshot **ret_new,
                   GError **error)
{
    Qcow2Image *image = head->image;
    Qcow2NewSnapshot *s = g_new0(Qcow2NewSnapshot, 1);
    s->head = head;
    s->image = image;
    s->n_l1 = head->l1.n;
    s->entry = (Qcow2Snapshot){.id = next_id(&image->snapshots),
                               .name = g_strdup(name),
                               .size_bytes = head->node.size_bytes,
                               .icount = UINT64_MAX};
    int r = check_wanted(head, name, error);
    if (r == 0) {
        r = image_begin_change(self, image);
        if (r == 0)
            r = take_space(self, s);
        // What is not dirty then need not be written at the end, while more comes.
        if (r == 0)
            r = writeback_run(self, &image->writeback);
        if (r == 0)
            r = snapshot_table_set_dirty(self, image, true);
        if (r < 0)
            error_set(error, r, "%s: no snapshot can be taken: %s", image->name,
                      r == -EFBIG ? "it has too many, or no room for another one's tables in one "
                                    "piece"
                                  : g_strerror(-r));
    }
    if (r == 0) {
        fiber_wait_group_add(&image->fibers, 1); // it stays on its loop
        *ret_new = s;
        return 0;
    }
    give_back(self, s);
    new_snapshot_free(s);
    snapshot_list_end_change(&image->snapshots);
    return r;
}

static int no_image(const Node *node, GError **error)
{
    return error_set(error, -ENOTSUP, "%s: a %s image has no internal snapshots", node->name,
                     node->ops->driver);
}

int qcow2_snapshot_prepare(Fiber *self, Node *head, const char *name, Qcow2NewSnapshot **ret_new,
                           GError **error)
{
    Qcow2Image *image = qcow2_node_image(head);
    if (!image)
        return no_image(head, error);
    if (!snapshot_list_try_begin_change(&image->snapshots))
        return error_set(error, -EBUSY, "%s: another internal snapshot is being made or deleted",
                         image->name);
    return prepare(self, view_of(head), name, ret_new, error);
}

void qcow2_snapshot_take(Qcow2NewSnapshot *s)
{
    Qcow2View *head = s->head;
    // Of another size meanwhile: there is no room for its L1 table.
    s->result = head->l1.n == s->n_l1 ? 0 : -EAGAIN;
    if (s->result < 0)
        return;
    memcpy(s->l1, head->l1.entries, s->n_l1 * sizeof(Be64));
    memset(s->shared, 0xff, s->n_l1 / 8 + sizeof(uint64_t));
    head->shared = s->shared;
    head->n_shared = s->n_l1;
    freed_hold(&s->image->freed);
    uint64_t now_us = loop_wall_us(s->image->loop);
    s->entry.date_sec = now_us / G_USEC_PER_SEC;
    s->entry.date_nsec = now_us % G_USEC_PER_SEC * 1000;
    s->entry.size_bytes = head->node.size_bytes;
    s->is_taken = true;
}

// In a snapshot's table COPIED means nothing.
static int write_l1(Fiber *self, Qcow2NewSnapshot *s)
{
    for (uint64_t i = 0; i < s->n_l1; i++) {
        Qcow2L1Entry e = qcow2_l1_entry_decode(s->l1[i]);
        s->l1[i] = qcow2_l1_entry_encode(e.l2, false);
    }
    if (!s->n_l1)
        return 0;
    return file_write(self, s->image->file, s->entry.l1, s->l1, s->n_l1 * sizeof(Be64));
}

// §13: all that the header is going to name.
static int make_durable(Fiber *self, Qcow2NewSnapshot *s)
{
    Qcow2Image *image = s->image;
    int r = MUTANT("write-back-before-snapshot") ? 0 : writeback_run_all(self, &image->writeback);
    if (r == 0)
        r = write_l1(self, s);
    snapshot_table_update(&s->table, &s->entry);
    if (r == 0)
        r = snapshot_table_write(self, image, &s->table);
    return r < 0 || MUTANT("sync-of-snapshot-tables") ? r : file_flush(self, image->file);
}

// Nothing names it, and nothing will.
static void undo(Fiber *self, Qcow2NewSnapshot *s, SnapshotRefs *refs)
{
    Qcow2Image *image = s->image;
    if (s->is_taken)
        snapshot_refs_lower(self, refs);
    give_back(self, s);
    snapshot_table_end_repair(self, image, refs->is_incomplete);
}

static void end(Fiber *self, Qcow2NewSnapshot *s)
{
    Qcow2Image *image = s->image;
    if (s->is_taken) {
        s->head->n_shared = 0;
        s->head->shared = NULL;
        freed_resume(&image->freed);
    }
    new_snapshot_free(s);
    snapshot_list_end_change(&image->snapshots);
    fiber_wait_group_done(&image->fibers);
}

static int fail_to_finish(const Qcow2Image *image, int r, GError **error)
{
    if (r == -EOVERFLOW)
        return error_set(error, r,
                         "%s: no snapshot can be taken: a cluster is shared as often as refcounts "
                         "of %u bits can count",
                         image->name, 1u << image->geometry.refcount_order);
    if (r == -EAGAIN)
        return error_set(error, r, "%s: no snapshot was taken: the disk was resized meanwhile",
                         image->name);
    return error_set(error, r, "%s: no snapshot can be taken: %s", image->name, g_strerror(-r));
}

int qcow2_snapshot_finish(Fiber *self, Qcow2NewSnapshot *s, Qcow2SnapshotInfo *ret_info,
                          GError **error)
{
    Qcow2Image *image = s->image;
    SnapshotRefs refs = {.head = s->head, .l1 = s->l1, .n_l1 = s->n_l1};
    int r = s->result;
    if (r == 0)
        r = snapshot_refs_raise(self, &refs);
    if (r == 0)
        r = make_durable(self, s);
    if (r == 0 && image->corrupt)
        r = -EIO;
    if (r == 0)
        r = snapshot_table_switch(self, image, &s->table, false);
    if (r == 0) {
        if (ret_info)
            snapshot_info_fill(&s->entry, ret_info);
        snapshot_list_append(&image->snapshots, &s->entry);
    } else if (!image->writeback.has_ended) { // otherwise the disk may say that it is there
        undo(self, s, &refs);
    }
    end(self, s);
    return r < 0 ? fail_to_finish(image, r, error) : 0;
}

void qcow2_snapshot_abort(Fiber *self, Qcow2NewSnapshot *s)
{
    if (!s)
        return;
    SnapshotRefs refs = {.head = s->head, .l1 = s->l1, .n_l1 = s->n_l1};
    undo(self, s, &refs);
    end(self, s);
}

int qcow2_snapshot_create(Fiber *self, Node *head, const char *name, Qcow2SnapshotInfo *ret_info,
                          GError **error)
{
    Qcow2Image *image = qcow2_node_image(head);
    Qcow2NewSnapshot *s;
    if (!image)
        return no_image(head, error);
    snapshot_list_begin_change(self, &image->snapshots);
    int r = prepare(self, view_of(head), name, &s, error);
    if (r < 0)
        return r;
    node_drain_begin(self, head, REQUESTS_THAT_WRITE);
    qcow2_snapshot_take(s);
    node_drain_end(head, REQUESTS_THAT_WRITE);
    return qcow2_snapshot_finish(self, s, ret_info, error);
}
