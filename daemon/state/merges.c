// SPDX-License-Identifier: LGPL-2.1-or-later
// One change of the database each, in which the end of the intent is, and the intent to remove
// files.
#include "merges.h"

#include <errno.h>

#include "daemon/log.h"
#include "daemon/qmp/args.h"
#include "stop-point.h"

static DiskLayer *layer_of(const Catalogue *c, const json_t *detail, const char *name)
{
    return catalogue_layer(c, qmp_args_int(detail, name, 0));
}

json_t *stream_merge_detail(const StreamMerge *merge)
{
    return json_pack("{s:I, s:I, s:s*, s:s*}", "image", (json_int_t)merge->image->id, "base",
                     (json_int_t)(merge->base ? merge->base->id : 0), "disk",
                     merge->point ? merge->disk->name : NULL, "point", merge->point);
}

bool stream_merge_parse(const Catalogue *c, const json_t *detail, StreamMerge *ret_merge)
{
    const char *disk = qmp_args_str(detail, "disk");
    *ret_merge = (StreamMerge){
        .image = layer_of(c, detail, "image"),
        .base = layer_of(c, detail, "base"),
        .disk = disk ? catalogue_find_disk(c, disk) : NULL,
        .point = qmp_args_str(detail, "point"),
    };
    return ret_merge->image && (ret_merge->base || !qmp_args_int(detail, "base", 0));
}

json_t *commit_merge_detail(const CommitMerge *merge)
{
    return json_pack("{s:I, s:I}", "top", (json_int_t)merge->top->id, "base",
                     (json_int_t)merge->base->id);
}

bool commit_merge_parse(const Catalogue *c, const json_t *detail, CommitMerge *ret_merge)
{
    *ret_merge = (CommitMerge){layer_of(c, detail, "top"), layer_of(c, detail, "base")};
    return ret_merge->top && ret_merge->base;
}

void merge_left_clear(MergeLeft *left)
{
    json_decref(left->files);
    *left = (MergeLeft){0};
}

static void note(Fiber *self, Catalogue *c, DatabaseChange *change)
{
    g_autoptr(GError) error = NULL;
    if (database_note(self, c->database, change, &error) < 0)
        log_line(LOG_ERROR, "%s", error->message);
}

static void leave_files(Catalogue *c, DatabaseChange *change, int64_t intent, MergeLeft *left)
{
    catalogue_end_intent(change, intent);
    left->intent =
        catalogue_add_intent(c, change, "remove", json_pack("{s:O}", "files", left->files));
}

void stream_merge_note(Fiber *self, Catalogue *c, int64_t intent, const StreamMerge *merge,
                       MergeLeft *ret_left)
{
    DatabaseChange *change = database_change_new();
    Point *point = merge->disk && merge->point ? disk_find_point(merge->disk, merge->point) : NULL;
    *ret_left = (MergeLeft){.files = json_array()};
    disk_layer_set_below(change, merge->image, merge->base);
    if (point)
        disk_remove_point(change, merge->disk, point);
    catalogue_drop_unneeded(c, change, ret_left->files);
    leave_files(c, change, intent, ret_left);
    note(self, c, change);
    stop_point("a stream is noted");
}

static void move_points(Catalogue *c, DatabaseChange *change, const CommitMerge *merge)
{
    for (guint d = 0; d < c->disks->len; d++) {
        const Disk *disk = c->disks->pdata[d];
        for (guint i = 0; i < disk->points->len; i++) {
            Point *point = disk->points->pdata[i];
            if (point->layer == merge->top)
                disk_move_point(change, disk, point, merge->base);
        }
    }
}

void commit_merge_note(Fiber *self, Catalogue *c, int64_t intent, const CommitMerge *merge,
                       MergeIsOverFn *is_over, void *arg, MergeLeft *ret_left)
{
    DatabaseChange *change = database_change_new();
    g_autoptr(GPtrArray) overlays = catalogue_layers_above(c, merge->top);
    *ret_left = (MergeLeft){.files = json_array()};
    disk_layer_set_merging(change, merge->base, false);
    for (guint i = 0; i < overlays->len; i++)
        if (is_over(arg, overlays->pdata[i]))
            disk_layer_set_below(change, overlays->pdata[i], merge->base);
    move_points(c, change, merge);
    catalogue_drop_unneeded(c, change, ret_left->files);
    leave_files(c, change, intent, ret_left);
    note(self, c, change);
    stop_point("a commit is noted");
}

// As statements first: what cannot be written has not happened.
static DatabaseChange *pivot_change(Catalogue *c, int64_t intent, const CommitMerge *merge,
                                    const Disk *disk, MergeLeft *left)
{
    long long top = merge->top->id, base = merge->base->id;
    DatabaseChange *change = database_change_new();
    database_change_add(change, "UPDATE disks SET head = %lld WHERE name = %Q", base, disk->name);
    database_change_add(change, "UPDATE layers SET is_merging = 0 WHERE id = %lld", base);
    database_change_add(change, "DELETE FROM checkpoints WHERE layer = %lld", top);
    database_change_add(change, "DELETE FROM layers WHERE id = %lld", top);
    leave_files(c, change, intent, left);
    return change;
}

int commit_merge_pivot(Fiber *self, Catalogue *c, int64_t intent, const CommitMerge *merge,
                       MergeLeft *ret_left, GError **error)
{
    Disk *disk = catalogue_disk_of_head(c, merge->top);
    MergeLeft left = {.files = json_array()};
    if (merge->top->is_ours)
        json_array_append_new(left.files, json_string(merge->top->file));
    stop_point("a pivot is about to be noted");
    int r = database_write(self, c->database, pivot_change(c, intent, merge, disk, &left), error);
    stop_point("a pivot is noted");
    if (r < 0) {
        merge_left_clear(&left);
        return r;
    }
    disk_set_head(NULL, disk, merge->base);
    disk_layer_set_merging(NULL, merge->base, false);
    catalogue_remove_layer(c, NULL, merge->top);
    *ret_left = left;
    return 0;
}

json_t *rollback_drop_detail(const Disk *disk, const GPtrArray *points)
{
    json_t *names = json_array();
    for (guint i = 0; points && i < points->len; i++)
        json_array_append_new(names, json_string(((const Point *)points->pdata[i])->name));
    return json_pack("{s:s, s:o}", "disk", disk->name, "points", names);
}

static void drop_point(DatabaseChange *change, Disk *disk, const char *name)
{
    Point *point = disk_find_point(disk, name);
    for (guint i = disk->exports->len; i-- > 0;) {
        DiskExport *export = disk->exports->pdata[i];
        if (g_strcmp0(export->point, name) == 0)
            disk_remove_export(change, disk, export);
    }
    if (point)
        disk_remove_point(change, disk, point);
}

void rollback_drop_note(Fiber *self, Catalogue *c, int64_t intent, const json_t *detail,
                        MergeLeft *ret_left)
{
    DatabaseChange *change = database_change_new();
    Disk *disk = catalogue_find_disk(c, qmp_args_str(detail, "disk"));
    const json_t *name;
    size_t i;
    *ret_left = (MergeLeft){.files = json_array()};
    json_array_foreach(json_object_get(detail, "points"), i, name)
    {
        if (disk)
            drop_point(change, disk, json_string_value(name));
    }
    catalogue_drop_unneeded(c, change, ret_left->files);
    leave_files(c, change, intent, ret_left);
    note(self, c, change);
    stop_point("a rollback has dropped what was above");
}

int head_replace(Fiber *self, Catalogue *c, int64_t intent, Disk *disk, const DiskLayer *as,
                 json_t *detail, int64_t *ret_drop, GError **error)
{
    DatabaseChange *change = database_change_new();
    DiskLayer *old = disk->head, *head = catalogue_add_layer(c, change, as);
    disk_set_head(change, disk, head);
    catalogue_end_intent(change, intent);
    int64_t drop = catalogue_add_intent(c, change, "drop", json_incref(detail));
    stop_point("a pivot is about to be noted");
    int r = database_write(self, c->database, change, error);
    stop_point("a pivot is noted");
    if (r < 0) {
        disk_set_head(NULL, disk, old);
        catalogue_remove_layer(c, NULL, head);
        return r;
    }
    *ret_drop = drop;
    return 0;
}

void merge_give_up(Fiber *self, Catalogue *c, int64_t intent)
{
    DatabaseChange *change = database_change_new();
    catalogue_end_intent(change, intent);
    note(self, c, change);
}
