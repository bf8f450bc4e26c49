// SPDX-License-Identifier: LGPL-2.1-or-later
// The insides of a Qcow2Image, for this folder only: one file, its decoded header, caches,
// allocator state and write-back state, and what all who work on them call. The allocator,
// refcounts and the mapping stand above it, then opening and closing (open.h), then the views
// (view.h) that hang on it. On the file's loop.
//
//   view (L1) ──┐                        ┌─ table cache (slices of L2 tables and refcount blocks)
//   view (L1) ──┴─ Qcow2Image ── File    ├─ allocator (free ranges, tail)
//                                        ├─ writeback (metadata, in the order of docs/ordering.md)
//                                        ├─ freed (clusters on their way to be free; pins)
//                                        └─ metadata set (overlap checks, space on the host)
//
// Lock order (an earlier one may be held while taking a later one):
//   0. claim_mutex, before anything else is held
//   1. cluster ranges of a view (cluster-lock.h), ascending
//   2. l2_mutex: creating or copying an L2 table
//   3. grow_mutex: new refcount blocks and tables
//   4. header_mutex
//   5. the metadata set's space_mutex: taken with any of these held, takes none
//   6. the write-back in progress (writeback.h)
// Nothing is held while waiting for a limit, and a write-back takes none of 1 to 3.
#pragma once

#include <glib.h>
#include <stdatomic.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/mutant.h"
#include "chain-core/qcow2.h"
#include "format/qcow2-header.h"
#include "format/qcow2-table.h"
#include "qcow2/cluster-lock.h"
#include "qcow2/cow-buffers.h"
#include "qcow2/entry-table.h"
#include "qcow2/freed.h"
#include "qcow2/metadata-set.h"
#include "qcow2/snapshot-list.h"
#include "qcow2/table-cache.h"
#include "qcow2/writeback.h"

typedef struct Qcow2View Qcow2View;
typedef struct InflatedCache InflatedCache;

typedef struct Allocator {
    GArray *free;       // of ClusterRange, unsorted: last in, first out; bounded
    uint64_t scan_next; // refcounts below are in `free` or in use; scanned on demand up to scan_end
    uint64_t scan_end;
    bool rescan; // a free range was forgotten for lack of room: scan again when the rest is used up
    uint64_t tail;       // all clusters from here on are unused
    uint64_t fresh_from; // clusters from here on were never written: they read as zeros
    FiberMutex grow_mutex;
} Allocator;

// Of all bitmaps together: their numbers are kept in memory, in at most half a gibibyte. With the
// smallest clusters that is 8 GiB, or sixteen of the largest bitmaps.
enum { QCOW2_MAX_BITMAP_CLUSTERS = 16 << 20 };

struct Qcow2Image {
    unsigned n_refs;
    Loop *loop;
    File *file;
    File *data_file; // external data file, else NULL
    char *name;      // for messages: the file's path
    MapMemory *memory;
    TableCache *cache;
    Qcow2Header header;
    Qcow2Geometry geometry;
    bool writable;
    bool is_loaded;    // tables read and checked
    bool is_claimed;   // what must be on disk before the first guest write is there
    bool claim_failed; // and the owner was told
    enum { PREALLOCATION_UNKNOWN, PREALLOCATION_NO, PREALLOCATION_YES } preallocation;
    bool is_shared;   // another program may write it: what lies past the end may be new, not wrong
    bool is_inactive; // so it may, and only for now
    atomic_bool corrupt; // marked during this run: everything but reads answers -EIO
    const NodeEvents *events;

    EntryTable refcount_table; // writable images only
    SnapshotList snapshots;
    GArray *bitmaps; // StoredBitmap (bitmap-directory.h): as the file has them; NULL: not loaded
    uint64_t max_bitmap_clusters; // QCOW2_MAX_BITMAP_CLUSTERS, but in tests
    Qcow2View *head;              // the writable head view, borrowed
    GPtrArray *views;             // all of them, borrowed
    TableSlice *moving;           // those of its tables, while it is on its way to another loop
    bool is_detached;             // it is

    Allocator allocator;
    HostOff packed_next; // the first free byte of a cluster that streams share (packed.h); 0: none
    Writeback writeback;
    FreedClusters freed;
    unsigned n_snapshot_works; // under way: qcow2_snapshot_hold()
    FiberWaitGroup fibers;     // of write-back, of releasing, and the one that marks it corrupt
    FiberMutex l2_mutex;
    FiberMutex claim_mutex;
    FiberMutex header_mutex; // of image_change_header()
    CowBuffers *cow_buffers;
    ClusterLocks locks;
    MetadataSet metadata; // writable images
    InflatedCache *inflated;
};

// Measures a shared image's file (`file`: it, or its data file) again; the tail follows, never
// down.
int image_remeasure(Fiber *self, Qcow2Image *image, File *file);
// The same if `end` lies past the file's end as known, before what ends there is read.
static inline int image_see_end(Fiber *self, Qcow2Image *image, File *file, uint64_t end)
{
    if (G_LIKELY(!image->is_shared || end <= file_size(file)))
        return 0;
    return image_remeasure(self, image, file);
}

// A line for the owner's log.
G_GNUC_PRINTF(2, 3) void image_tell(const Qcow2Image *image, const char *format, ...);

// Marks the image corrupt, on disk too when writable (once), tells the owner in one sentence, and
// returns -EIO. `what` says what was found, with offsets. May be called anywhere; the write happens
// in a fiber. A shared image may only look corrupt, while another program writes it: -EIO, no more.
G_GNUC_PRINTF(2, 3) int image_mark_corrupt(Qcow2Image *image, const char *what, ...);

// The same for [off, off+bytes) of the file, which `what` names (a table, what a guest offset maps
// to) and which does not lie inside it: says that the file is cut off, and by how much. Where no
// refcount could ever have counted the place, it is no place and what named it is damaged.
G_GNUC_PRINTF(4, 5)
int image_mark_cut_off(Qcow2Image *image, HostOff off, uint64_t bytes, const char *what, ...);

// Changes fields of the header: on disk, synced, then in image->header; all of it or nothing at
// each moment (docs/ordering.md §11). `edit` is called under the header's lock with a copy of what
// holds then: it sets what is to be different (strings are owned: g_free() the old), and suspends
// nowhere. It may change the backing file's name and format, the size, L1, refcount table,
// snapshots, the bitmaps extension, features, the version from 2 to 3; several at once. The caller
// has made durable what the new fields name, and afterwards frees what the old ones named
// (freed_add()) and sets what the image derives from them (geometry, tables).
// -ENOSPC: the first cluster has no room for it; -EINVAL: no header can say that (names too long,
// features in version 2); another -errno: nothing has changed, or nobody knows what the disk says,
// and no write-back writes any more.
typedef void HeaderEditFn(Qcow2Header *header, const void *arg);
int image_change_header(Fiber *self, Qcow2Image *image, HeaderEditFn *edit, const void *arg);

// Sets incompatible bits and clears autoclear bits, with image_change_header().
int image_change_features(Fiber *self, Qcow2Image *image, uint64_t incompatible_set,
                          uint64_t autoclear_cleared);

// Keeps freed host ranges from reuse until the batch has been waited for. To be called before the
// look-up.
static inline void image_pin(Fiber *self, Qcow2Image *image, IoBatch *batch)
{
    if (image->writable)
        io_batch_pin(self, batch, freed_pin(&image->freed));
}

// The same for a scope in which ranges are looked up and nothing is transferred:
//     G_GNUC_UNUSED g_auto(PinGuard) pin = pin_guard_take(image);
typedef struct PinGuard {
    IoPin *pin;
} PinGuard;
static inline PinGuard pin_guard_take(Qcow2Image *image)
{
    PinGuard guard = {image->writable ? freed_pin(&image->freed) : NULL};
    if (guard.pin)
        io_pin_hold(guard.pin);
    return guard;
}
static inline void pin_guard_release(PinGuard *guard)
{
    if (guard->pin)
        io_pin_release(guard->pin);
    guard->pin = NULL;
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(PinGuard, pin_guard_release)

// To another loop, with what it has cached. `detach` once no request is in any of its views: waits
// for write-back and whatever else it does by itself. Each of its views does both; the first and
// the last of them count (image-move.c).
void image_detach(Fiber *self, Qcow2Image *image);
void image_attach(Qcow2Image *image, Loop *loop);
// While it is detached: `file` (taken) is another way to the same bytes. Returns the old one,
// owned.
File *image_exchange_file(Qcow2Image *image, File *file);

// Where data clusters lie.
static inline File *image_data_file(const Qcow2Image *image)
{
    return image->data_file ? image->data_file : image->file;
}

// Must the data file by itself be what the guest sees? (data_file_raw)
static inline bool image_has_raw_data(const Qcow2Image *image)
{
    return image->data_file && (image->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
}

static inline uint64_t image_cluster_of(const Qcow2Image *image, HostOff off)
{
    return off.v >> image->geometry.cluster_bits;
}
static inline HostOff image_cluster_off(const Qcow2Image *image, uint64_t cluster)
{
    return host_off(cluster << image->geometry.cluster_bits);
}

// Clusters that `bytes` fill or begin.
static inline uint64_t image_clusters_for(const Qcow2Image *image, uint64_t bytes)
{
    return (bytes + image->geometry.cluster_bytes - 1) >> image->geometry.cluster_bits;
}

// How many clusters the host can hold: as far as a block device goes now.
static inline uint64_t image_host_clusters(const Qcow2Image *image)
{
    bool is_device = file_is_block_device(image->file);
    return is_device ? file_size(image->file) >> image->geometry.cluster_bits : UINT64_MAX;
}

// The slice of a table that holds byte `off` of the file.
static inline HostOff image_slice_of(const Qcow2Image *image, HostOff off)
{
    return host_off(off.v & ~(uint64_t)(image->geometry.slice_bytes - 1));
}

// A buffer of one cluster (cow-buffers.h).
static inline void *image_take_cow_buffer(Qcow2Image *image)
{
    return cow_buffers_take(image->cow_buffers, image->geometry.cluster_bytes);
}

static inline void image_put_cow_buffer(Qcow2Image *image, void *buffer)
{
    cow_buffers_put(image->cow_buffers, buffer, image->geometry.cluster_bytes);
}

// [off, off+bytes) is about to be free: no more streams go there.
static inline void image_leave_packed(Qcow2Image *image, HostOff off, uint64_t bytes)
{
    if (image->packed_next.v - off.v < bytes && !MUTANT("packed-leaves-freed-cluster"))
        image->packed_next = host_off(0);
}

// Could freeing these clusters be right? Not past the end of the file, none holds metadata.
bool image_range_is_sane(const Qcow2Image *image, ClusterRange range);

// May a data cluster lie here? Not past the end of the file, not on metadata.
bool image_host_is_sane(Qcow2Image *image, HostOff cluster);

static inline int image_get_slice(Fiber *self, Qcow2Image *image, HostOff slice,
                                  TableSliceKind kind, TableSlice **ret_slice)
{
    TableSliceKey key = {image, image->file, slice, kind, image->geometry.slice_bytes};
    return table_cache_get(self, image->cache, &key, ret_slice);
}
