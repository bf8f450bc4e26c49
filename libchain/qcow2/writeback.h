// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-back of metadata, in the order that keeps an image consistent at every point
// (docs/ordering.md). For writable images. On the image's loop.
#pragma once

#include "qcow2/image.h"

void writeback_init(Qcow2Image *image);
void writeback_done(Qcow2Image *image);

// Makes durable all that completed before the call: data, refcounts, tables, L1. Callers that come
// while one runs share the next. 0 or -errno; -EIO for good after a failed sync. When some pieces
// could not be written the others are durable, and the caller may ask whether it depends on those
// that are not.
int writeback_run(Fiber *self, Qcow2Image *image);
// After writeback_run() failed: is what lies at `place` (an L2 slice, an L1 entry) not durable?
bool writeback_has_failed(const Qcow2Image *image, HostOff place);
// As writeback_run(), for one who needs all refcounts on disk, and nothing else.
int writeback_run_refcounts(Fiber *self, Qcow2Image *image);

// After -ENOSPC: writes back, and waits until what was freed before the call can be taken again,
// unless something was released since `n_released` (of FreedClusters) was looked at. The caller
// must hold no pin on the image. False when another try is hopeless.
bool writeback_reclaim(Fiber *self, Qcow2Image *image, uint64_t n_released);

// To be called before dirtying more metadata: starts write-back when enough is dirty, waits for it
// when far too much is, and returns its error if that does not help. May suspend.
int writeback_throttle(Fiber *self, Qcow2Image *image);
