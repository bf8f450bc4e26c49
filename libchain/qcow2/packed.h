// SPDX-License-Identifier: LGPL-2.1-or-later
// Host bytes for compressed clusters, several of which share a host cluster. For writable images,
// on their loop.
#pragma once

#include "qcow2/image.h"

// Where some streams go, one behind the other.
typedef struct PackedPlace {
    HostOff host;
    uint32_t n;
    uint64_t bytes;
} PackedPlace;

// Takes space for the first of `n` streams of `lens` bytes (1 to a cluster each), at least for one.
// From now on each host cluster counts one reference for each stream that touches it, as it will
// for the entry that names the stream: in memory, as allocator_take() has it, with its errors.
int packed_take(Fiber *self, Qcow2Image *image, const uint32_t *lens, uint32_t n,
                PackedPlace *ret_place);
// Gives back the space of one stream that nothing names, or ever named, and whose I/O has ended.
void packed_release(Fiber *self, Qcow2Image *image, HostOff host, uint32_t len);
