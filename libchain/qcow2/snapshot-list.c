// SPDX-License-Identifier: LGPL-2.1-or-later
// Snapshots in the order of the table, which is that of their making. On the image's loop.

#include "qcow2/snapshot-list.h"

#include <stdatomic.h>
#include <string.h>

#include "chain-core/mutant.h"

static void snapshot_free(gpointer p)
{
    ImageSnapshot *snapshot = p;
    qcow2_snapshot_clear(&snapshot->entry);
    g_free(snapshot);
}

void snapshot_list_append(SnapshotList *list, Qcow2Snapshot *entry)
{
    static atomic_uint_fast64_t n_numbers; // images of all loops
    ImageSnapshot *snapshot = g_new0(ImageSnapshot, 1);
    snapshot->entry = *entry;
    snapshot->number = atomic_fetch_add(&n_numbers, 1) + 1;
    *entry = (Qcow2Snapshot){0};
    if (!list->all)
        list->all = g_ptr_array_new_with_free_func(snapshot_free);
    g_ptr_array_add(list->all, snapshot);
}

void snapshot_list_remove(SnapshotList *list, ImageSnapshot *snapshot)
{
    g_ptr_array_remove(list->all, snapshot);
}

void snapshot_list_done(SnapshotList *list)
{
    g_clear_pointer(&list->all, g_ptr_array_unref);
}

ImageSnapshot *snapshot_list_find_exactly(const SnapshotList *list, const char *id,
                                          const char *name)
{
    for (guint i = 0; (id || name) && i < snapshot_list_count(list); i++) {
        ImageSnapshot *snapshot = snapshot_list_get(list, i);
        if ((!id || strcmp(snapshot->entry.id, id) == 0) &&
            (!name || strcmp(snapshot->entry.name, name) == 0))
            return snapshot;
    }
    return NULL;
}

ImageSnapshot *snapshot_list_find(const SnapshotList *list, const char *wanted)
{
    ImageSnapshot *snapshot = snapshot_list_find_exactly(list, wanted, NULL);
    return snapshot ? snapshot : snapshot_list_find_exactly(list, NULL, wanted);
}

char *snapshot_list_names(const SnapshotList *list)
{
    GString *s = g_string_new(snapshot_list_count(list) ? NULL : "none");
    for (guint i = 0; i < snapshot_list_count(list) && s->len < 400; i++) {
        const Qcow2Snapshot *entry = &snapshot_list_get(list, i)->entry;
        g_string_append_printf(s, "%s%.100s (%.100s)", i ? ", " : "", entry->id, entry->name);
    }
    return g_string_free(s, false);
}

bool snapshot_list_try_begin_change(SnapshotList *list)
{
    if (list->is_changing && !MUTANT("snapshots-take-turns"))
        return false;
    list->is_changing = true;
    return true;
}

void snapshot_list_begin_change(Fiber *self, SnapshotList *list)
{
    while (!snapshot_list_try_begin_change(list))
        fiber_queue_wait(self, &list->idle, false, "another internal snapshot's change");
}

void snapshot_list_end_change(SnapshotList *list)
{
    list->is_changing = false;
    fiber_queue_wake_one(&list->idle);
}
