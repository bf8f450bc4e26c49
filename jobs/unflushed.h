// SPDX-License-Identifier: LGPL-2.1-or-later
// What was written to a job's target since its last flush. A target may lose that and go on: a
// server that was lost and came back says so by a flush that fails, once. Then it is work of the
// copy again. On the target's loop.
#pragma once

#include "copy-engine.h"

// A value, zero-initialised: notes nothing.
typedef struct Unflushed {
    NodeWriteHook hook; // first
    Node *target;
    Bitmap *bits;
} Unflushed;

void unflushed_begin(Unflushed *u, Node *target, uint32_t granularity_bits);
void unflushed_end(Unflushed *u);
// Flushes the target: 0, or what was not durable before is the engine's work.
int unflushed_flush(Fiber *self, Unflushed *u, CopyEngine *engine);
