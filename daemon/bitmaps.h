// SPDX-License-Identifier: LGPL-2.1-or-later
// Dirty bitmaps as control sees them: by the names of node and bitmap. What is told of one is read
// from its atomics; what changes one runs on its node's loop. Control loop; what changes one with
// the graph lock held.
#pragma once

#include "chain-core/dirty-bitmap.h"
#include "nodes.h"

// A bitmap in its place; borrowed while the graph lock is held.
typedef struct NamedBitmap {
    NamedNode *named;
    DirtyBitmap *bitmap;
} NamedBitmap;

// QEMU's words when there is no such node or bitmap.
int bitmaps_find(const Nodes *nodes, const char *node, const char *name, NamedBitmap *ret_bitmap,
                 GError **error);
// Of this node; NULL: none of that name.
DirtyBitmap *bitmaps_of(const NamedNode *named, const char *name);

// As query-named-block-nodes tells them: an array of BlockDirtyInfo, the latest first; NULL: none.
json_t *bitmaps_info(const NamedNode *named);

// Those that an export of `named` is to show: strings name bitmaps of it or of a node below,
// objects ({"node", "name"}) any; DirtyBitmap, a reference each. QEMU's words when one cannot be
// shown.
int bitmaps_for_export(const Nodes *nodes, const NamedNode *named, const json_t *refs,
                       bool is_writable, GPtrArray **ret_bitmaps, GError **error);

// The bits as they are now, owned: to be used on any loop. An inconsistent bitmap has none: as QEMU
// tells of those, all clean.
Bitmap *bitmaps_snapshot(Fiber *self, const NamedBitmap *of);

// A change of a bitmap that can be undone.
typedef enum BitmapChangeKind {
    BITMAP_ADD,
    BITMAP_REMOVE,
    BITMAP_CLEAR,
    BITMAP_ENABLE,
    BITMAP_DISABLE,
    BITMAP_MERGE,
} BitmapChangeKind;

typedef struct BitmapChange {
    BitmapChangeKind kind;
    NamedNode *named;
    DirtyBitmap *bitmap;  // a reference, of its node until it is over; ADD: set by the change
    DirtyBitmapSpec spec; // ADD
    GPtrArray *sources;   // MERGE: of Bitmap, owned
    bool is_drained;      // hold guests' requests that write back from the change on
    // Filled in by the change.
    Bitmap *old_bits;
    bool was_enabled;
    struct GuestChanges *since; // what guests changed after the resume; NULL: nothing was resumed
    bool is_undone;
    int result;
    GError *error;
} BitmapChange;

// Makes it; what fails has changed nothing, and needs nothing more. Else done comes last, and
// before it perhaps a resume, which lets guests go on, and perhaps an undo, as if the change had
// not been made, whatever guests have changed meanwhile. These do not fail.
int bitmap_change_make(Fiber *self, BitmapChange *change, GError **error);
void bitmap_change_resume(Fiber *self, BitmapChange *change);
void bitmap_change_undo(Fiber *self, BitmapChange *change);
void bitmap_change_done(Fiber *self, BitmapChange *change);
