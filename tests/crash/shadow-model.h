// SPDX-License-Identifier: LGPL-2.1-or-later
// What a disk may contain after a crash. The disk is divided into cells; each request that changes
// it is a version, whose content in a cell says which version and which cell it is. For every cell
// the model keeps the versions that may be found there: after an acknowledged flush those that the
// flush covered or that came later, never an older one. No I/O; one thread.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ShadowModel ShadowModel;

// 512 or a divisor of it: what a disk writes whole, so that no cell is a mixture.
ShadowModel *shadow_model_new(uint64_t size_bytes, uint32_t cell_bytes);
void shadow_model_free(ShadowModel *model);
uint64_t shadow_model_n_cells(const ShadowModel *model);
uint32_t shadow_model_cell_bytes(const ShadowModel *model);

typedef enum ShadowKind {
    SHADOW_DATA,
    SHADOW_ZEROS,
    SHADOW_HINT, // zeros, or what was there before (a discard of a partial cluster)
} ShadowKind;

// A request for [off, off+len), multiples of a cell, is about to be made. Returns its version.
uint32_t shadow_model_begin(ShadowModel *model, ShadowKind kind, uint64_t off, uint64_t len);
// It ended, with 0 or -errno. With `is_durable` (FUA) a success is durable. A failed request may
// have happened in any of its cells.
void shadow_model_end(ShadowModel *model, uint32_t version, int result, bool is_durable);
// The bytes that version `version` writes at [off, off+len).
void shadow_model_fill(const ShadowModel *model, uint32_t version, uint64_t off, void *buf,
                       size_t len);
// The disk starts with `kind` here, durably. Before any request. Returns the version.
uint32_t shadow_model_set_initial(ShadowModel *model, ShadowKind kind, uint64_t off, uint64_t len);

// A flush covers what had ended when it began.
uint64_t shadow_model_flush_begin(ShadowModel *model);
void shadow_model_flush_end(ShadowModel *model, uint64_t begun, int result);

// Content read from the disk: every cell of [off, off+len) must be one that may be there. After a
// crash `read_begun` is 0; for a read while the disk is in use it is what shadow_model_read_begin()
// said, which rules out what had been overwritten by then. Returns true, or describes the first
// wrong cell in `problem`. `ret_versions` (may be NULL) takes the version found for each cell.
bool shadow_model_check(const ShadowModel *model, uint64_t off, const void *buf, size_t len,
                        uint64_t read_begun, uint32_t *ret_versions, char problem[256]);

// Around a read and its check while the disk is in use.
uint64_t shadow_model_read_begin(ShadowModel *model);
void shadow_model_read_end(ShadowModel *model);

// The disk as it is now, for good: what a snapshot of it shows, in which what was written before
// becomes durable with the same flushes. No request that changes anything is in flight. Owned by
// `model`.
const ShadowModel *shadow_model_keep(ShadowModel *model);
// For a look at what shadow_model_keep() gave, at any time: as if nothing of it were lost.
uint64_t shadow_model_kept_at(const ShadowModel *kept);

// Its size, at most the one that it was made with (which it has until then). What comes new is
// zeros. One change at a time. On failure either size may be found after a crash.
uint64_t shadow_model_size(const ShadowModel *model);
void shadow_model_set_initial_size(ShadowModel *model, uint64_t bytes);
void shadow_model_resize_begin(ShadowModel *model, uint64_t bytes);
void shadow_model_resize_end(ShadowModel *model, int result);
bool shadow_model_may_have_size(const ShadowModel *model, uint64_t bytes);

uint64_t shadow_model_now(ShadowModel *model); // a moment

// Equal models with equal hashes expect the same after a crash.
uint64_t shadow_model_hash(const ShadowModel *model);
ShadowModel *shadow_model_copy(const ShadowModel *model);

// A model of a disk on which exactly these versions were found, durably.
ShadowModel *shadow_model_found(const ShadowModel *model, const uint32_t *versions);
