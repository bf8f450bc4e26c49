// SPDX-License-Identifier: LGPL-2.1-or-later
// What a job has still to do: which ranges of a disk, in two kinds. *Data* has to be moved, byte by
// byte, and is what progress counts. *Metadata* (holes, zero clusters, what is not allocated) is
// done in any length at once. It is filled while it is worked off: from metadata by the copy
// engine, and by guests' writes. Found in order of offsets, round and round, so that what came to
// nothing is tried again after all else.
//
// On one loop; does not suspend.
#pragma once

#include "chain-core/bitmap.h"

typedef struct WorkSet WorkSet;

typedef enum WorkKind {
    WORK_DATA,
    WORK_METADATA,
} WorkKind;

WorkSet *work_set_new(uint64_t size_bytes, uint32_t granularity_bits);
void work_set_free(WorkSet *set); // accepts NULL

uint64_t work_set_granularity(const WorkSet *set); // in bytes

// Each granule that [off, off+len) touches is work of that kind (data, where it is both).
void work_set_add(WorkSet *set, WorkKind kind, uint64_t off, uint64_t len);
// Each granule that lies in the range is no work any more. It may stay some where memory is short.
void work_set_remove(WorkSet *set, uint64_t off, uint64_t len);
// All work of `from` is work of `to`, of the same size and granularity, instead.
void work_set_move(WorkSet *from, WorkSet *to);
bool work_set_is_empty(const WorkSet *set);
bool work_set_has(const WorkSet *set, uint64_t off); // the granule at `off`, of any kind
// How far from `off` on, at most `len` (≥1), it is like there: work of any kind, or none.
uint64_t work_set_run(const WorkSet *set, uint64_t off, uint64_t len, bool *ret_is_work);
uint64_t work_set_data_bytes(const WorkSet *set); // left, in whole granules

// All of it, of both kinds, becomes dirty in `bitmap`.
void work_set_add_to(const WorkSet *set, Bitmap *bitmap);

// The next run of one kind; false: there is none. It stays in the set until it is removed.
bool work_set_next(WorkSet *set, WorkKind *ret_kind, BitmapRun *ret_run);
// The search goes on from `off`.
void work_set_go_on(WorkSet *set, uint64_t off);
