// SPDX-License-Identifier: LGPL-2.1-or-later
// Making an internal snapshot, or several of one moment, while the guest writes.
//
//     prepare   clusters and space for its L1 table and the new snapshot table; a write-back ahead;
//               the dirty bit
//     another   the same once more, with a table for all of them in place of the last
//     take      with nothing that writes in flight, in memory: the head's L1 table is copied, and
//               each table that it names marked as shared. That is the moment
//     finish    each reference is counted (snapshot-refs.c), for one snapshot after the other →
//               write-back → L1 tables and snapshot table written → sync → header (the new table,
//               no dirty bit)
//
// From the moment on the tables that the snapshot reaches stay as they are: a write to the head
// gives the head a copy, in which no cluster may be written in place. So it does not matter when
// they are counted. Until then no freed cluster is released (freed_hold()): its count may lack the
// snapshot's reference. Once the first of several is counted its references alone keep all of that
// as it is, for the others.
//
// Write order (docs/ordering.md §13): refcounts, COPIED flags and the tables are durable before the
// header names the snapshots, which one write does for all of them. Before that the image has none
// of them, and counts that are too high or flags that are missing: the dirty bit, set before the
// first of them, has the next open put them right. In a fiber on the image's loop.

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

typedef struct NewEntry {
    Qcow2Snapshot entry; // first
    ClusterRange l1_range;
    SnapshotRefs refs;
    bool is_counted; // or in part, as `refs` says
} NewEntry;

struct Qcow2NewSnapshot {
    Qcow2View *head;
    Qcow2Image *image;
    GPtrArray *entries; // of NewEntry, owned: in the order of the list
    SnapshotTable table;
    Be64 *l1; // of each of them
    uint64_t n_l1;
    uint64_t *shared; // becomes the head's marks
    bool is_taken;
    int result; // of what came before finish
};

static NewEntry *get_entry(const Qcow2NewSnapshot *s, guint i)
{
    return s->entries->pdata[i];
}

// One more than the largest number that an id is.
static char *next_id(const Qcow2NewSnapshot *s)
{
    const SnapshotList *list = &s->image->snapshots;
    uint64_t last = 0;
    for (guint i = 0; i < snapshot_list_count(list); i++)
        last = MAX(last, strtoull(snapshot_list_get(list, i)->entry.id, NULL, 10));
    return g_strdup_printf("%" PRIu64, last + 1 + s->entries->len);
}

static bool has_name(const Qcow2NewSnapshot *s, const char *name)
{
    for (guint i = 0; i < s->entries->len; i++)
        if (strcmp(get_entry(s, i)->entry.name, name) == 0)
            return true;
    return snapshot_list_find_exactly(&s->image->snapshots, NULL, name);
}

static int check_wanted(const Qcow2NewSnapshot *s, const char *name, GError **error)
{
    const Qcow2View *head = s->head;
    const Qcow2Image *image = s->image;
    if (image->head != head || head->node.read_only)
        return error_set(error, -EROFS, "%s: not open for writing, so it takes no snapshot",
                         image->name);
    if (image->geometry.external_data)
        return error_set(error, -ENOTSUP,
                         "%s: its data is in a file of its own, of which there are no internal "
                         "snapshots",
                         image->name);
    if (has_name(s, name))
        return error_set(error, -EEXIST, "%s: it has an internal snapshot '%s' already",
                         image->name, name);
    if (strlen(name) > UINT16_MAX)
        return error_set(error, -EINVAL, "%s: the name of the snapshot is too long", image->name);
    return 0;
}

static void entry_free(gpointer p)
{
    NewEntry *e = p;
    qcow2_snapshot_clear(&e->entry);
    g_free(e);
}

static void new_snapshot_free(Qcow2NewSnapshot *s)
{
    snapshot_table_done(&s->table);
    g_ptr_array_unref(s->entries);
    g_free(s->l1);
    g_free(s->shared);
    g_free(s);
}

// Nothing names it, and nothing will.
static void give_back_range(Fiber *self, Qcow2NewSnapshot *s, ClusterRange *range)
{
    if (range->n)
        allocator_release(self, s->image, *range);
    *range = (ClusterRange){0};
}

static void give_back(Fiber *self, Qcow2NewSnapshot *s)
{
    for (guint i = 0; i < s->entries->len; i++)
        give_back_range(self, s, &get_entry(s, i)->l1_range);
    give_back_range(self, s, &s->table.range);
}

// More would make an image that cannot be opened for writing any more.
static bool has_room(const Qcow2NewSnapshot *s)
{
    const SnapshotList *list = &s->image->snapshots;
    uint64_t l1_bytes = s->entries->len * s->n_l1 * sizeof(Be64);
    for (guint i = 0; i < snapshot_list_count(list); i++)
        l1_bytes += snapshot_list_get(list, i)->entry.l1_entries * sizeof(Be64);
    return l1_bytes <= SNAPSHOT_TABLE_MAX_L1_BYTES;
}

static int take_memory(Qcow2NewSnapshot *s)
{
    s->l1 = g_try_malloc0(MAX(s->n_l1 * sizeof(Be64), 1));
    s->shared = g_try_malloc0(s->n_l1 / 8 + sizeof(uint64_t));
    return s->l1 && s->shared ? 0 : -ENOMEM;
}

// For the last of the entries, and a table with all of them.
static int take_space(Fiber *self, Qcow2NewSnapshot *s)
{
    NewEntry *e = get_entry(s, s->entries->len - 1);
    SnapshotTable table;
    if (!has_room(s))
        return -EFBIG;
    int r = snapshot_table_take_clusters(self, s->image, s->n_l1 * sizeof(Be64), &e->l1_range);
    if (r < 0)
        return r;
    e->entry.l1 = s->n_l1 ? image_cluster_off(s->image, e->l1_range.first) : host_off(0);
    e->entry.l1_entries = s->n_l1;
    r = snapshot_table_make(self, s->image, s->entries, NULL, &table);
    if (r < 0)
        return r;
    give_back_range(self, s, &s->table.range);
    snapshot_table_done(&s->table);
    s->table = table;
    return 0;
}

static void add_entry(Qcow2NewSnapshot *s, const char *name)
{
    NewEntry *e = g_new0(NewEntry, 1);
    e->entry = (Qcow2Snapshot){.id = next_id(s),
                               .name = g_strdup(name),
                               .size_bytes = s->head->node.size_bytes,
                               .icount = UINT64_MAX};
    e->refs = (SnapshotRefs){.head = s->head, .l1 = s->l1, .n_l1 = s->n_l1};
    g_ptr_array_add(s->entries, e);
}

static int fail_to_prepare(const Qcow2Image *image, int r, GError **error)
{
    return error_set(error, r, "%s: no snapshot can be taken: %s", image->name,
                     r == -EFBIG ? "it has too many, or no room for another one's tables in one "
                                   "piece"
                                 : g_strerror(-r));
}

static int prepare_first(Fiber *self, Qcow2NewSnapshot *s, const char *name)
{
    Qcow2Image *image = s->image;
    int r = take_memory(s);
    if (r == 0)
        r = image_begin_change(self, image);
    if (r < 0)
        return r;
    add_entry(s, name);
    r = take_space(self, s);
    // What is not dirty then need not be written at the end, while more comes.
    if (r == 0)
        r = writeback_run(self, &image->writeback);
    return r == 0 ? snapshot_table_set_dirty(self, image, true) : r;
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
    s->entries = g_ptr_array_new_with_free_func(entry_free);
    int r = check_wanted(s, name, error);
    if (r == 0) {
        r = prepare_first(self, s, name);
        if (r < 0)
            fail_to_prepare(image, r, error);
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

int qcow2_snapshot_prepare_another(Fiber *self, Qcow2NewSnapshot *s, const char *name,
                                   GError **error)
{
    int r = check_wanted(s, name, error);
    if (r < 0)
        return r;
    add_entry(s, name);
    r = take_space(self, s);
    if (r == 0)
        return 0;
    give_back_range(self, s, &get_entry(s, s->entries->len - 1)->l1_range);
    g_ptr_array_remove_index(s->entries, s->entries->len - 1);
    return fail_to_prepare(s->image, r, error);
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
    for (guint i = 0; i < s->entries->len; i++) {
        Qcow2Snapshot *entry = &get_entry(s, i)->entry;
        entry->date_sec = now_us / G_USEC_PER_SEC;
        entry->date_nsec = now_us % G_USEC_PER_SEC * 1000;
        entry->size_bytes = head->node.size_bytes;
    }
    s->is_taken = true;
}

static int count_all(Fiber *self, Qcow2NewSnapshot *s)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < s->entries->len; i++) {
        NewEntry *e = get_entry(s, i);
        e->is_counted = true;
        r = snapshot_refs_raise(self, &e->refs);
    }
    return r;
}

// In a snapshot's table COPIED means nothing.
static int write_l1(Fiber *self, Qcow2NewSnapshot *s)
{
    int r = 0;
    for (uint64_t i = 0; i < s->n_l1; i++) {
        Qcow2L1Entry e = qcow2_l1_entry_decode(s->l1[i]);
        s->l1[i] = qcow2_l1_entry_encode(e.l2, false);
    }
    for (guint i = 0; r == 0 && s->n_l1 && i < s->entries->len; i++)
        r = file_write(self, s->image->file, get_entry(s, i)->entry.l1, s->l1,
                       s->n_l1 * sizeof(Be64));
    return r;
}

static int write_back(Fiber *self, Writeback *w)
{
    if (MUTANT("write-back-before-snapshot"))
        return 0;
    return MUTANT("failed-refcounts-hold-back-snapshot") ? writeback_run(self, w)
                                                         : writeback_run_all(self, w);
}

// §13: all that the header is going to name.
static int make_durable(Fiber *self, Qcow2NewSnapshot *s)
{
    Qcow2Image *image = s->image;
    int r = write_back(self, &image->writeback);
    if (r == 0)
        r = write_l1(self, s);
    snapshot_table_update(&s->table, s->entries);
    if (r == 0)
        r = snapshot_table_write(self, image, &s->table);
    return r < 0 || MUTANT("sync-of-snapshot-tables") ? r : file_flush(self, image->file);
}

// The last first: until the first one's references are taken back, what the others reach stays.
static bool take_back(Fiber *self, Qcow2NewSnapshot *s)
{
    bool is_incomplete = false;
    for (guint i = s->entries->len; s->is_taken && i-- > 0;) {
        NewEntry *e = get_entry(s, i);
        if (i && !e->is_counted)
            continue;
        snapshot_refs_lower(self, &e->refs); // of the first: marked tables were copied, too
        is_incomplete |= e->refs.is_incomplete;
    }
    return is_incomplete;
}

static void undo(Fiber *self, Qcow2NewSnapshot *s)
{
    bool is_incomplete = take_back(self, s);
    give_back(self, s);
    snapshot_table_end_repair(self, s->image, is_incomplete);
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
    int r = s->result;
    if (r == 0)
        r = count_all(self, s);
    if (r == 0)
        r = make_durable(self, s);
    if (r == 0 && image->corrupt)
        r = -EIO;
    if (r == 0)
        r = snapshot_table_switch(self, image, &s->table, false);
    if (r == 0) {
        if (ret_info)
            snapshot_info_fill(&get_entry(s, 0)->entry, ret_info);
        for (guint i = 0; i < s->entries->len; i++)
            snapshot_list_append(&image->snapshots, &get_entry(s, i)->entry);
    } else if (!image->writeback.has_ended) { // otherwise the disk may say that it is there
        undo(self, s);
    }
    end(self, s);
    return r < 0 ? fail_to_finish(image, r, error) : 0;
}

void qcow2_snapshot_abort(Fiber *self, Qcow2NewSnapshot *s)
{
    if (!s)
        return;
    undo(self, s);
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
