// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-back of metadata, in the order that keeps an image consistent at every point
// (docs/ordering.md), and the fate of freed clusters. For writable images. On the image's loop.
#pragma once

#include "qcow2/image.h"

void writeback_init(Qcow2Image *image);
void writeback_done(Qcow2Image *image);

// Makes durable all that completed before the call: data, refcounts, tables, L1. Callers that come
// while one runs share the next. 0 or -errno; -EIO for good after a failed sync.
int writeback_run(Fiber *self, Qcow2Image *image);

// `range` is no longer linked in memory (its L2 change is made). It is released when that is
// durable and no pin taken before is left.
void writeback_free(Qcow2Image *image, ClusterRange range);

// After -ENOSPC: writes back, and waits until what was freed before the call can be taken again,
// unless something was released since `n_released` (of Writeback) was looked at. The caller must
// hold no pin on the image. False when another try is hopeless.
bool writeback_reclaim(Fiber *self, Qcow2Image *image, uint64_t n_released);

// To be called before dirtying more metadata: starts write-back when enough is dirty, waits for it
// when far too much is, and returns its error then. May suspend.
int writeback_throttle(Fiber *self, Qcow2Image *image);

// Called by the pins when their last holder lets go.
void writeback_pin_drained(IoPin *pin);
