// SPDX-License-Identifier: LGPL-2.1-or-later
// A dirty bitmap on a node: which granules its guests changed since the bitmap was made. While it
// is enabled a bit is set after each write, zero or discard ended, also one that failed, and before
// the caller hears of it. A persistent one is kept in the node's image (its driver's
// DirtyBitmapStore says how); it goes with the node, and is stored when that closes.
//
// States: enabled or disabled; beside that
//     busy           somebody (export, job) uses it: nobody else changes it
//     read-only      persistent, and its image cannot be written: may be read
//     inconsistent   persistent, and what the image says of it is not to be trusted: may be removed
//
// Made, changed and removed on the node's loop. References may be held, and dirty_bitmap_info()
// and the constant facts read, by any thread.
#pragma once

#include <glib.h>

#include "chain-core/bitmap.h"
#include "chain-core/node.h"

typedef struct DirtyBitmap DirtyBitmap;

enum { DIRTY_BITMAP_MAX_NAME_BYTES = 1023 };

// How a driver keeps persistent bitmaps; NodeOps.bitmap_store. `node_name` is for messages.
struct DirtyBitmapStore {
    // Could one of that name be stored? -errno with a sentence.
    int (*can_add)(Node *node, const char *node_name, const char *name, uint32_t granularity_bits,
                   GError **error);
    // A persistent bitmap is about to change without a guest's write: what the image says of it is
    // no longer to be believed after a crash. Durable on return.
    int (*before_change)(Fiber *self, Node *node);
    // Removes it from the image, if it is there; durable on return.
    int (*forget)(Fiber *self, Node *node, const char *name, GError **error);
};

typedef struct DirtyBitmapSpec {
    const char *name; // NULL: it has none, and nobody finds it
    const char *node_name;
    uint32_t granularity_bits;
    bool is_persistent, is_disabled;
} DirtyBitmapSpec;

typedef struct DirtyBitmapInfo {
    uint64_t dirty_granules;
    bool is_enabled, is_busy, is_read_only, is_inconsistent;
} DirtyBitmapInfo;

// QEMU's choice: the cluster's size, from 4 to 64 KiB.
uint32_t dirty_bitmap_default_granularity_bits(const Node *node);

// All clean. Returned borrowed: the node's until dirty_bitmap_remove(), or its end. -EEXIST,
// -EINVAL or -ENOTSUP with a sentence.
int dirty_bitmap_add(Node *node, const DirtyBitmapSpec *spec, DirtyBitmap **ret_bitmap,
                     GError **error);
// For a driver that loads its stored bitmaps, whose names it knows to differ. Takes `bits` (NULL:
// inconsistent, for `reason`).
DirtyBitmap *dirty_bitmap_add_stored(Node *node, const DirtyBitmapSpec *spec, Bitmap *bits,
                                     const char *reason);
DirtyBitmap *dirty_bitmap_find(const Node *node, const char *name); // borrowed; NULL: none
// All of a node, DirtyBitmap *, oldest first; NULL: none. Borrowed until the next one is added or
// removed.
const GPtrArray *dirty_bitmaps_of(const Node *node);
// Off the node, and out of its image if it is persistent. When that fails it stays.
int dirty_bitmap_remove(Fiber *self, DirtyBitmap *bitmap, GError **error);
// The two steps of that: out of the image, where it is stored again if it stays on its node; off
// the node.
int dirty_bitmap_forget(Fiber *self, DirtyBitmap *bitmap, GError **error);
void dirty_bitmap_drop(DirtyBitmap *bitmap);

DirtyBitmap *dirty_bitmap_ref(DirtyBitmap *bitmap);
void dirty_bitmap_unref(DirtyBitmap *bitmap); // accepts NULL; memory only

// Constant.
const char *dirty_bitmap_name(const DirtyBitmap *bitmap);
uint32_t dirty_bitmap_granularity_bits(const DirtyBitmap *bitmap);
bool dirty_bitmap_is_persistent(const DirtyBitmap *bitmap);
// Why it is inconsistent, or NULL.
const char *dirty_bitmap_reason(const DirtyBitmap *bitmap);
void dirty_bitmap_info(const DirtyBitmap *bitmap, DirtyBitmapInfo *ret_info);

// May it be used so? 0, or -EBUSY, -EROFS, -EINVAL with QEMU's sentence. Any thread.
typedef enum DirtyBitmapUse {
    DIRTY_BITMAP_USE_READ,   // read, enable, disable: not if busy or inconsistent
    DIRTY_BITMAP_USE_CHANGE, // the same, nor if read-only
    DIRTY_BITMAP_USE_REMOVE, // not if busy or read-only
} DirtyBitmapUse;
int dirty_bitmap_check(const DirtyBitmap *bitmap, DirtyBitmapUse use, GError **error);

// One more user, one less. On the control side or the node's loop.
void dirty_bitmap_set_busy(DirtyBitmap *bitmap, bool is_busy);
// The image can be written no longer, or again (persistent ones).
void dirty_bitmap_set_read_only(DirtyBitmap *bitmap, bool is_read_only);

// To be called before the changes below; may suspend. Nothing for a bitmap that is not persistent.
int dirty_bitmap_before_change(Fiber *self, DirtyBitmap *bitmap);
void dirty_bitmap_set_enabled(DirtyBitmap *bitmap, bool is_enabled);
// Its bits, for reading until the next suspend point (NULL: inconsistent).
const Bitmap *dirty_bitmap_bits(const DirtyBitmap *bitmap);
// Other bits from now on (taken); returns the old ones, owned, to be put back or freed.
Bitmap *dirty_bitmap_swap_bits(DirtyBitmap *bitmap, Bitmap *bits);
// What is dirty in `from` becomes dirty here, too; lets others have their turn meanwhile.
void dirty_bitmap_merge(Fiber *self, DirtyBitmap *bitmap, const Bitmap *from);
// The node has another size: all its bitmaps follow. -ENOMEM: none did.
int dirty_bitmaps_resize(Node *node, uint64_t size_bytes);

// For the driver: has it changed since it was loaded, or stored?
bool dirty_bitmap_has_changed(const DirtyBitmap *bitmap);
void dirty_bitmap_set_stored(DirtyBitmap *bitmap);

// What QEMU's x-debug-block-dirty-bitmap-sha256 says of these bits: a hash, in hexadecimal digits,
// over whole words of 64 granules, at least one. Owned. In any fiber that may use the bits; lets
// others have their turn.
char *dirty_bitmap_sha256(Fiber *self, const Bitmap *bits);
