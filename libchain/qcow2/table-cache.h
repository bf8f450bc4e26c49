// SPDX-License-Identifier: LGPL-2.1-or-later
// The cache of metadata slices (parts of L2 tables and refcount blocks, at most 4 KiB each) of all
// images of one loop, inside the budget of MapMemory that all loops share. A slice is addressed by
// its image and host offset. Slices stay big-endian; format/qcow2-table.h reads and writes them.
//
// Life of a slice:
//
//     loading ──▶ clean ⇄ dirty ──(table_slice_begin_write)──▶ writing ──▶ clean, or dirty again
//     (others wait)
//
// Only a clean slice is on the clock's ring, where memory is found when a slice is added. So that
// costs a bounded number of steps, however much is dirty. On the loop; the functions with `self`
// may suspend.
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
    TableSlice *prev, *next; // clean: the clock's ring; dirty: its image's list; loading: a fetch
    uint32_t n_holders;      // >0: stays, whatever the clock says
    uint16_t bytes;
    uint8_t kind; // TableSliceKind
    uint8_t age;  // the cache's when it was used last
    bool loading, dirty, writing;
    bool has_space;     // the host is known to have space for it (metadata-set.c)
    bool is_unwritable; // the host failed to write it (-EIO), and has not done so since
    FiberQueue loaders;
    uint8_t *data;
};

// What an image keeps about its own slices that are not on disk, and how its loop's cache finds the
// images with many of them.
typedef struct TableSliceList TableSliceList;
struct TableSliceList {
    TableCache *cache;
    TableSlice *first;     // dirty
    uint64_t n;            // dirty
    uint64_t pinned_bytes; // dirty or writing
    // Starts a write-back, unless one is under way or the last one failed. Must not suspend.
    void (*start_write)(TableSliceList *list);
    TableSliceList *prev, *next; // ring of the cache's images with pinned slices
};

// The cache of `loop`, made at first use; one reference per image.
TableCache *table_cache_ref(Loop *loop, MapMemory *memory);
void table_cache_unref(Fiber *self, TableCache *cache);

// The slice if it is there and loaded; no suspend. Valid until the next suspend point.
TableSlice *table_cache_find(TableCache *cache, const Qcow2Image *image, HostOff host);

// Which slice, and where it is read from.
typedef struct TableSliceKey {
    const Qcow2Image *image;
    File *file;
    HostOff host;
    TableSliceKind kind;
    uint32_t bytes;
} TableSliceKey;

// Loads if needed; may suspend. Returned held: table_slice_release().
int table_cache_get(Fiber *self, TableCache *cache, const TableSliceKey *key,
                    TableSlice **ret_slice);
static inline void table_slice_release(TableSlice *slice)
{
    slice->n_holders--;
}

void table_slice_set_dirty(TableSlice *slice, TableSliceList *list);
// A copy of the slice is about to be written: it is no longer dirty, and stays until end_write();
// if that was not durable it is dirty again. The copy's memory is charged in between.
void table_slice_begin_write(TableSlice *slice, TableSliceList *list);
void table_slice_end_write(TableSlice *slice, TableSliceList *list, bool durable);

// Several slices at once: add() starts to load each that is not there, end() waits for them. What
// cannot be read is then not there either, and whoever gets it meets the error.
typedef struct TableFetch {
    TableCache *cache;
    const Qcow2Image *image;
    File *file;
    uint32_t bytes; // of a slice
    IoBatch batch;
    TableSlice *first;
} TableFetch;
void table_fetch_begin(Fiber *self, TableFetch *fetch, TableCache *cache, const Qcow2Image *image,
                       File *file, uint32_t bytes);
void table_fetch_add(TableFetch *fetch, HostOff host, TableSliceKind kind);
void table_fetch_end(Fiber *self, TableFetch *fetch);

// How much may be dirty or being written, of all images on all loops (soft: write-backs begin at
// half of it), and the part of it that each image may have however much the others have.
uint64_t table_cache_dirty_limit(const TableCache *cache);
uint64_t table_cache_dirty_share(const TableCache *cache);
// Too much is dirty: starts write-backs of images that have at least half of their share, here or,
// through a message, on the loops where they are. A bounded number of steps.
void table_cache_press(TableCache *cache);

// Forgets the slices of [host, host+bytes) (their cluster is being freed). False when one is in
// use, which only a damaged image brings about: leave the cluster alone then.
bool table_cache_forget(TableCache *cache, const Qcow2Image *image, HostOff host, uint64_t bytes,
                        uint32_t slice_bytes, TableSliceList *dirty);
// Forgets all of an image; none may be held.
void table_cache_forget_image(TableCache *cache, const Qcow2Image *image, TableSliceList *dirty);

// All slices of an image leave a cache, dirty ones too, and enter another loop's. None may be
// loading, held or being written.
TableSlice *table_cache_take_image(TableCache *cache, const Qcow2Image *image,
                                   TableSliceList *dirty);
void table_cache_put_image(TableCache *cache, TableSlice *slices, TableSliceList *dirty);

// What it did so far.
typedef struct TableCacheStats {
    uint64_t n_slices, n_clean; // there now
    uint64_t n_misses;          // slices loaded
    uint64_t n_steps;           // slices looked at for eviction
    uint64_t most_steps;        // of these, for one miss
} TableCacheStats;
TableCacheStats table_cache_stats(const TableCache *cache);
