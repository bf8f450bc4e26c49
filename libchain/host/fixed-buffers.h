// SPDX-License-Identifier: LGPL-2.1-or-later
// A loop's memory for small direct reads, known to the kernel beforehand (a registered buffer of
// the ring). Otherwise the kernel looks up and pins the caller's pages for each read, two where it
// crosses a page, which costs more than copying a block does; writes gain nothing measurable
// (docs/performance.md). For libchain/host. Loop thread.
#pragma once

#include "io/file-private.h"

typedef struct FixedBuffer FixedBuffer;
typedef struct HostRing HostRing;

enum {
    FIXED_BUFFER_BYTES = 4096, // a block: copying costs more with every byte
    FIXED_BUFFERS = 256,       // 1 MiB: several loops stay below the usual RLIMIT_MEMLOCK of 8 MiB
};

typedef struct FixedBuffers {
    uint8_t *memory;
    FixedBuffer *all, *free[FIXED_BUFFERS]; // the first n_free of these
    unsigned n_free;
    bool is_refused; // by the kernel, for good
} FixedBuffers;

// Starts what is left of the read `x` of `fd` through a fixed buffer. False when that does not fit,
// all buffers are taken, or the kernel or RLIMIT_MEMLOCK refused them: the caller uses x's memory.
bool fixed_buffers_try_read(FixedBuffers *buffers, HostRing *ring, FileTransfer *x, int fd);
// No read is under way. Also when none ever was.
void fixed_buffers_done(FixedBuffers *buffers);
