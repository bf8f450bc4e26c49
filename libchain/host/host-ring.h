// SPDX-License-Identifier: LGPL-2.1-or-later
// The io_uring of a loop: entries to fill, handed over at the end of the turn, and the completions,
// each of which goes to its LoopOp. Loop thread.
#pragma once

#include <glib.h>
#include <liburing.h>

#include "loop/loop-op.h"

typedef struct HostRing {
    struct io_uring uring;
    bool is_enabled;
} HostRing;

// 0, or -errno with a sentence that says what to do. By any thread; host_ring_enable() by the
// loop's own, before the first entry is submitted.
int host_ring_init(HostRing *ring, GError **error);
void host_ring_enable(HostRing *ring);
void host_ring_done(HostRing *ring);

// An entry to fill. `op`->done gets its result; NULL: nobody does. Never NULL.
struct io_uring_sqe *host_ring_get_sqe(HostRing *ring, LoopOp *op);
// Asks the kernel to end `op` early; op->done comes nevertheless.
void host_ring_cancel(HostRing *ring, LoopOp *op);
// Calls `done` of all that has completed.
void host_ring_reap(HostRing *ring);
