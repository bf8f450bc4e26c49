// SPDX-License-Identifier: LGPL-2.1-or-later
// The cache of metadata slices (parts of L2 tables and refcount blocks, at most 4 KiB each) of all
// images of one loop, inside the loop's share of MapMemory. A slice is addressed by its image and
// host offset. Slices stay big-endian; format/qcow2-table.h reads and writes them.
//
// Life of a slice: loading (others wait) → clean ⇄ dirty. Clean slices without a holder are evicted
// by the clock algorithm; dirty ones stay until writeback.c has written them. On the loop; the
// functions with `self` may suspend.
#pragma once

#include "chain-core/fiber-sync.h"
#include "chain-core/file.h"
#include "chain-core/map-memory.h"
#include "chain-core/units.h"

typedef struct Qcow2Image Qcow2Image;
typedef struct TableCache TableCache;

typedef enum TableSliceKind { TABLE_SLICE_L2, TABLE_SLICE_REFCOUNT } TableSliceKind;

typedef struct TableSlice TableSlice;
struct TableSlice {
    const Qcow2Image *image;
    HostOff host;
    TableSlice *hash_next;
    TableSlice *ring_prev, *ring_next;   // the clock's circle
    TableSlice *dirty_prev, *dirty_next; // the image's list of dirty slices
    uint32_t n_holders;                  // >0: stays, whatever the clock says
    uint16_t bytes;
    uint8_t kind; // TableSliceKind
    bool referenced, loading, dirty;
    bool has_space; // the host is known to have space for it (metadata-set.c)
    FiberQueue loaders;
    uint8_t *data;
};

// What an image keeps about its own slices.
typedef struct TableSliceList {
    TableSlice *first;
    uint64_t n;
} TableSliceList;

// The cache of `loop`, made at first use; one reference per image.
TableCache *table_cache_ref(Loop *loop, MapMemory *memory);
void table_cache_unref(TableCache *cache);

// The slice if it is there and loaded; no suspend. Valid until the next suspend point.
TableSlice *table_cache_find(TableCache *cache, const Qcow2Image *image, HostOff host);

// Loads if needed; may suspend. Returned held: table_slice_release().
int table_cache_get(Fiber *self, TableCache *cache, const Qcow2Image *image, File *file,
                    HostOff host, TableSliceKind kind, uint32_t bytes, TableSlice **ret_slice);
static inline void table_slice_release(TableSlice *slice)
{
    slice->n_holders--;
}

void table_slice_set_dirty(TableSlice *slice, TableSliceList *list);
void table_slice_set_clean(TableSlice *slice, TableSliceList *list);

// Forgets the slices of [host, host+bytes) (their cluster is being freed). False when one is in
// use, which only a damaged image brings about: leave the cluster alone then.
bool table_cache_forget(TableCache *cache, const Qcow2Image *image, HostOff host, uint64_t bytes,
                        uint32_t slice_bytes, TableSliceList *dirty);
// Forgets all of an image; none may be held.
void table_cache_forget_image(TableCache *cache, const Qcow2Image *image, TableSliceList *dirty);
