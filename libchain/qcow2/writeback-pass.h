// SPDX-License-Identifier: LGPL-2.1-or-later
// One pass of write-back: a copy of all that is dirty, written in the order of docs/ordering.md;
// the second chapter of writeback.c, and called by it only. In a fiber on the image's loop.
#pragma once

#include <glib.h>

#include "qcow2/entry-table.h"
#include "qcow2/freed.h"
#include "qcow2/metadata-set.h"
#include "qcow2/table-cache.h"

typedef struct WritebackPass WritebackPass;

// What of an image is written back.
typedef struct WritebackParts {
    File *file;
    File *data_file; // of its data, if that is another one; else NULL
    const Qcow2Geometry *geometry;
    MetadataSet *metadata;
    EntryTable *refcount_table;
    EntryTable *l1; // of the writable head, NULL without one
    FreedClusters *freed;
    TableSliceList dirty; // slices changed in memory
} WritebackParts;

// What a pass left unwritten, all of it dirty again.
typedef struct WritebackRest {
    int result;         // -errno of a sync: all of it
    int error;          // why a part could not be written; 0: all could
    GArray *places;     // uint64_t, sorted: of L2 slices and L1 entries
    bool has_refcounts; // refcounts, or entries of their table
} WritebackRest;

// Copies what is dirty, which is clean from now on. Suspends nowhere.
WritebackPass *writeback_pass_begin(WritebackParts *parts);
// 0: it is over, and writeback_pass_end() tells what has become durable. -errno: a sync failed, and
// nothing can be told.
int writeback_pass_write(Fiber *self, WritebackPass *pass);
// Fills `ret_rest`, whose `places` is there already. Frees `pass`.
void writeback_pass_end(WritebackPass *pass, int result, WritebackRest *ret_rest);
// Is what lies at `place` (an L2 slice, an L1 entry) among the rest?
bool writeback_rest_has(const WritebackRest *rest, HostOff place);
