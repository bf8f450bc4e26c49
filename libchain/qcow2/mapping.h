// SPDX-License-Identifier: LGPL-2.1-or-later
// From guest offsets to host clusters through one L1 table: find, and on the head begin, set, end.
// A view (view.h) is such a table as a node. On the image's loop.
#pragma once

#include "chain-core/mutant.h"
#include "chain-core/node.h"
#include "qcow2/cluster-span.h"
#include "qcow2/image.h"

struct Qcow2View {
    Node node; // must be first
    Qcow2Image *image;
    EntryTable l1;
    bool is_head;            // the writable one
    ImageSnapshot *snapshot; // of a view on one; NULL: on the head
    // While a snapshot is made: which L2 tables of the head it shares, though neither refcounts nor
    // COPIED say so yet. A bit for each of the first `n_shared` L1 entries.
    uint64_t *shared;
    uint64_t n_shared;
};

static inline Qcow2View *view_of(Node *node)
{
    return (Qcow2View *)node;
}

// Is the L2 table of L1 entry `i1` shared with a snapshot in the making?
static inline bool mapping_is_shared(const Qcow2View *view, uint64_t i1)
{
    return G_UNLIKELY(i1 < view->n_shared) && !MUTANT("marked-table-is-copied") &&
           (view->shared[i1 / 64] >> i1 % 64 & 1);
}

// L1 entry `i1` is not any more: it names a table that is the head's own, or counted as shared.
static inline void mapping_end_shared(Qcow2View *view, uint64_t i1)
{
    if (i1 < view->n_shared)
        view->shared[i1 / 64] &= ~(UINT64_C(1) << i1 % 64);
}

// --- find (mapping.c)

// Where the L2 entry of a guest offset lies.
typedef struct MappingPlace {
    const void *slice; // decoded from here; valid until the next suspend point. NULL: no L2 table
    uint32_t index;    // entry within the slice
    uint32_t n_left;   // entries from `index` to the end of the slice (or of the L2 table's range)
    bool is_own;       // the table is the view's alone: its entries' COPIED means something
} MappingPlace;

// Finds the place, loading the slice if needed (may suspend; then what was known before is stale).
// -EIO (image marked corrupt) for a bad L1 entry. -ESTALE, here and from mapping_decode(), where a
// shared image names a place past its end as known.
int mapping_find_place(Fiber *self, Qcow2View *view, GuestOff off, MappingPlace *ret_place);
// Where the slice lies in the file, whether it is cached or not: 0, or 1 where there is no table.
// Does not suspend; errors as above. *ret_place has no slice.
int mapping_find_slice(Qcow2View *view, GuestOff off, HostOff *ret_host, MappingPlace *ret_place);
// The same as mapping_find_place() without suspending: 0, or -EAGAIN when the slice is not there.
int mapping_try_find_place(Qcow2View *view, GuestOff off, MappingPlace *ret_place);

// What a guest offset shows, at subcluster granularity, coalesced within the slice.
typedef struct MappingRun {
    Qcow2ClusterKind kind; // UNALLOCATED, ZERO, ZERO_ALLOCATED, DATA, COMPRESSED
    uint64_t len;          // bytes from the offset asked for
    HostOff host;          // DATA: of the first byte. COMPRESSED: of the cluster's stream
    uint32_t compressed_bytes;
    bool copied; // DATA: may be written in place
} MappingRun;

// Decodes the run at `off` from `place`, at most `len` bytes. -EIO (image marked corrupt) for a bad
// entry.
int mapping_decode(Qcow2View *view, const MappingPlace *place, GuestOff off, uint64_t len,
                   MappingRun *ret_run);
// find_place + decode.
int mapping_find(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, MappingRun *ret_run);

// --- begin, set, end (mapping-change.c)

// L2 entries of the head that may be changed: their clusters are locked, their table is the head's
// own (created or copied for that), their slice is held and has its space on the host. A value on
// the fiber's stack.
typedef struct MappingChange {
    Qcow2View *view;
    ClusterSpan span;
    ClusterLock lock;
    TableSlice *slice;
} MappingChange;

// For the clusters of `span`. Waits while too much is dirty, then for the lock; what was looked up
// before is stale. After 0, mapping_end().
int mapping_begin(Fiber *self, Qcow2View *view, const ClusterSpan *span, MappingChange *ret_change);
void mapping_end(MappingChange *change);

// The entry of cluster `i` of the span.
static inline Qcow2L2Entry mapping_get(const MappingChange *change, uint32_t i)
{
    return qcow2_l2_entry_decode(&change->view->image->geometry, change->slice->data,
                                 change->span.index + i);
}
// May what the entry names be freed? Not past the end of the file, not metadata. Otherwise -EIO,
// and the image is marked corrupt.
int mapping_check(const MappingChange *change, uint32_t i);
// Replaces the entry, and frees what it named and the new one does not: once that is durable.
// Suspends nowhere.
void mapping_set(MappingChange *change, uint32_t i, const Qcow2L2Entry *entry);

// Makes a request for [off, off+len) that has just completed durable: fails only when what it
// depends on could not be written.
int mapping_make_durable(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len);
