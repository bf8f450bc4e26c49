// SPDX-License-Identifier: LGPL-2.1-or-later
// A view: one L1 table on an image, as a Node. This header is for this folder: look-up of guest
// offsets, shared by reading (read.c), writing (write.c) and zeroing (zero.c). On the image's loop.
#pragma once

#include "chain-core/node.h"
#include "qcow2/image.h"

struct Qcow2View {
    Node node; // must be first
    Qcow2Image *image;
    EntryTable l1;
    bool is_head;
};

static inline Qcow2View *view_of(Node *node)
{
    return (Qcow2View *)node;
}

// Where the L2 entry of a guest offset lies.
typedef struct EntryPlace {
    const void *slice; // decoded from here; valid until the next suspend point. NULL: no L2 table
    uint32_t index;    // entry within the slice
    uint32_t n_left;   // entries from `index` to the end of the slice (or of the L2 table's range)
} EntryPlace;

// Finds the place, loading the slice if needed (may suspend; then what was known before is stale).
// -EIO (image marked corrupt) for a bad L1 entry. -ESTALE, here and from view_decode_run(), where a
// shared image names a place past its end as known.
int view_find_entry(Fiber *self, Qcow2View *view, GuestOff off, EntryPlace *ret_place);
// The same without suspending: 0, or -EAGAIN when the slice is not there.
int view_try_find_entry(Qcow2View *view, GuestOff off, EntryPlace *ret_place);

// What a guest offset shows, at subcluster granularity, coalesced within the slice.
typedef struct ViewRun {
    Qcow2ClusterKind kind; // UNALLOCATED, ZERO, ZERO_ALLOCATED, DATA, COMPRESSED
    uint64_t len;          // bytes from the offset asked for
    HostOff host;          // DATA: of the first byte. COMPRESSED: of the cluster's stream
    uint32_t compressed_bytes;
    bool copied; // DATA: may be written in place
} ViewRun;

// Decodes the run at `off` from `place`, at most `len` bytes. -EIO (image marked corrupt) for a bad
// entry.
int view_decode_run(Qcow2View *view, const EntryPlace *place, GuestOff off, uint64_t len,
                    ViewRun *ret_run);
// find + decode.
int view_find_run(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, ViewRun *ret_run);

// node operations (read.c, write.c, zero.c)
int view_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch);
int view_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
               NodeIoFlags flags);
int view_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
int view_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
int view_flush(Fiber *self, Node *node);
// Makes a request for [off, off+len) that has just completed durable: fails only when what it
// depends on could not be written (l2-table.c).
int view_make_durable(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len);

// Is it an image with preallocated metadata? (preallocation.c)
bool view_data_may_be_hole(Fiber *self, Node *node);

// Does [off, off+len) read as zeros, as far as metadata tells? May suspend. <0 on error.
int view_reads_as_zeros(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, bool *ret_zeros);

// Does what an entry names look like data clusters that may be freed? (write.c)
bool view_old_is_sane(const Qcow2Image *image, const Qcow2L2Entry *old);
int view_mark_bad_target(Qcow2Image *image, GuestOff off, const Qcow2L2Entry *old); // -EIO
// Frees what an L2 entry of `slice` that has just been replaced named (write.c).
void view_free_old(Qcow2Image *image, const TableSlice *slice, const Qcow2L2Entry *old);

// L2 entries of the head that may be changed: their clusters are locked, their table is the head's
// own (created or copied for that), their slice is held. A value on the fiber's stack.
typedef struct EntryChange {
    ClusterLock lock;
    TableSlice *slice;
    uint32_t index; // of the first entry, within the slice
} EntryChange;
// For guest clusters [first, last], which lie in one slice. Waits while too much is dirty, then for
// the lock; what was looked up before is stale. After 0, view_end_change().
int view_begin_change(Fiber *self, Qcow2View *view, uint64_t first, uint64_t last,
                      EntryChange *ret_change);
void view_end_change(Qcow2View *view, EntryChange *change);
