// SPDX-License-Identifier: LGPL-2.1-or-later
// Buffers for moving data from file to file, of a loop. The pages of a large buffer that is made
// and freed for each transfer cost several times what moving its bytes does (docs/performance.md);
// so while somebody holds the buffers of a loop (a job, for as long as it moves data) those that
// are free are kept for the next transfer: as many as were in use at once. Aligned for direct I/O.
// Loop thread.
#pragma once

#include <stddef.h>

#include "chain-core/loop.h"

enum {
    IO_BUFFER_BYTES = 1 << 20, // larger ones are not kept
    // What is moved without waiting (in memory, in the page cache) before others get their turn.
    IO_TURN_BYTES = 128 << 10,
};

void io_buffers_hold(Loop *loop);
void io_buffers_release(Loop *loop);

// `len` bytes, not initialised. NULL: no memory. io_buffer_put() with the same length.
void *io_buffer_take(Loop *loop, size_t len);
void io_buffer_put(Loop *loop, void *buffer, size_t len); // accepts NULL
