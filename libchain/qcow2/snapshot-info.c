// SPDX-License-Identifier: LGPL-2.1-or-later
// Telling which internal snapshots an image has, and keeping it in its place while they change. On
// the image's loop.

#include "qcow2/snapshot-info.h"

#include "qcow2/image.h"

void snapshot_info_fill(const Qcow2Snapshot *entry, Qcow2SnapshotInfo *ret_info)
{
    *ret_info = (Qcow2SnapshotInfo){
        .id = g_strdup(entry->id),
        .name = g_strdup(entry->name),
        .vm_state_bytes = entry->vm_state_bytes,
        .date_sec = entry->date_sec,
        .date_nsec = entry->date_nsec,
        .vm_clock_ns = entry->vm_clock_ns,
        .icount = entry->icount,
        .size_bytes = entry->size_bytes,
    };
}

void qcow2_snapshot_info_clear(Qcow2SnapshotInfo *info)
{
    g_free(info->id);
    g_free(info->name);
    *info = (Qcow2SnapshotInfo){0};
}

GArray *qcow2_snapshots(Node *node)
{
    const Qcow2Image *image = qcow2_node_image(node);
    GArray *all = g_array_new(false, true, sizeof(Qcow2SnapshotInfo));
    g_array_set_clear_func(all, (GDestroyNotify)qcow2_snapshot_info_clear);
    for (guint i = 0; image && i < snapshot_list_count(&image->snapshots); i++) {
        Qcow2SnapshotInfo info;
        snapshot_info_fill(&snapshot_list_get(&image->snapshots, i)->entry, &info);
        g_array_append_val(all, info);
    }
    return all;
}

bool qcow2_snapshot_find(Node *node, const char *id, const char *name, Qcow2SnapshotInfo *ret_info)
{
    const Qcow2Image *image = qcow2_node_image(node);
    const ImageSnapshot *found =
        image ? snapshot_list_find_exactly(&image->snapshots, id, name) : NULL;
    if (found && ret_info)
        snapshot_info_fill(&found->entry, ret_info);
    return found;
}

void qcow2_snapshot_hold(Node *head)
{
    Qcow2Image *image = qcow2_node_image(head);
    if (!image)
        return;
    image->n_snapshot_works++;
    fiber_wait_group_add(&image->fibers, 1);
}

void qcow2_snapshot_release(Node *head)
{
    Qcow2Image *image = qcow2_node_image(head);
    if (!image)
        return;
    image->n_snapshot_works--;
    fiber_wait_group_done(&image->fibers);
}
