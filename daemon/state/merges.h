// SPDX-License-Identifier: LGPL-2.1-or-later
// What the catalogue says once layers were merged: by a stream, which fills an image until it needs
// what lies below no more, or by a commit, which writes a layer into the one below. The intent of a
// merge says what it is to be; whoever saw it happen, the job or the headers after a crash, notes
// it here. So does a rollback that drops points. Control loop, with the catalogue's lock.
#pragma once

#include "catalogue.h"

// The image stands on `base` (NULL: on nothing) then; the point of that name leaves `disk`, if
// given.
typedef struct StreamMerge {
    DiskLayer *image, *base;
    Disk *disk;
    const char *point;
} StreamMerge;
json_t *stream_merge_detail(const StreamMerge *merge);
// False: what it speaks of is gone.
bool stream_merge_parse(const Catalogue *catalogue, const json_t *detail, StreamMerge *ret_merge);

// `base` shows what `top` does then, and is in its place, for overlays and points, or as the head.
typedef struct CommitMerge {
    DiskLayer *top, *base;
} CommitMerge;
json_t *commit_merge_detail(const CommitMerge *merge);
bool commit_merge_parse(const Catalogue *catalogue, const json_t *detail, CommitMerge *ret_merge);

// Files that nobody needs any more, and the intent that they are removed.
typedef struct MergeLeft {
    int64_t intent;
    json_t *files; // owned
} MergeLeft;
void merge_left_clear(MergeLeft *left);

// `intent` is over. What cannot be written yet is kept.
void stream_merge_note(Fiber *self, Catalogue *catalogue, int64_t intent, const StreamMerge *merge,
                       MergeLeft *ret_left);
// Of a top that is no head. `is_over(arg, layer)`: does this overlay of the top stand on the base
// now?
typedef bool MergeIsOverFn(void *arg, const DiskLayer *overlay);
void commit_merge_note(Fiber *self, Catalogue *catalogue, int64_t intent, const CommitMerge *merge,
                       MergeIsOverFn *is_over, void *arg, MergeLeft *ret_left);
// Of a head, before its clients write the base. On failure nothing has changed.
int commit_merge_pivot(Fiber *self, Catalogue *catalogue, int64_t intent, const CommitMerge *merge,
                       MergeLeft *ret_left, GError **error);
// A rollback after which the disk stands on another layer: its points of these names leave, with
// what exports them, and layers that nobody needs then.
json_t *rollback_drop_detail(const Disk *disk, const GPtrArray *points); // of Point
void rollback_drop_note(Fiber *self, Catalogue *catalogue, int64_t intent, const json_t *detail,
                        MergeLeft *ret_left);
// Before the disk's clients write `as`, a layer that stands on nothing: it is the head then, the
// intent is over, and one of the kind "drop" (`detail`, which rollback_drop_note() takes) is there.
// On failure nothing has changed.
int head_replace(Fiber *self, Catalogue *catalogue, int64_t intent, Disk *disk, const DiskLayer *as,
                 json_t *detail, int64_t *ret_drop, GError **error);
// The intent is over, and nothing has come of it.
void merge_give_up(Fiber *self, Catalogue *catalogue, int64_t intent);
