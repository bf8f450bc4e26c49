// SPDX-License-Identifier: LGPL-2.1-or-later
// Buffers of one cluster each for copy-on-write, aligned for direct I/O. Some are kept for reuse,
// as pages that are made and freed for each copy cost more than copying; by the loop and not by
// each image, so that a thousand disks, or the layers that snapshots leave, keep no more than one
// disk. Loop thread.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "chain-core/loop.h"

typedef struct CowBuffers CowBuffers;

// The loop's, made at first use. Each image that is open on the loop has a reference; the last one
// frees what is kept.
CowBuffers *cow_buffers_ref(Loop *loop);
void cow_buffers_unref(CowBuffers *buffers); // accepts NULL

// Not initialised. NULL: no memory. Both with the same length, a power of two.
void *cow_buffers_take(CowBuffers *buffers, uint32_t cluster_bytes);
void cow_buffers_put(CowBuffers *buffers, void *buffer, uint32_t cluster_bytes); // accepts NULL

size_t cow_buffers_kept_bytes(const CowBuffers *buffers);
