// SPDX-License-Identifier: LGPL-2.1-or-later
// Overlays that stay valid points in time while the layer below them is overwritten: each comes to
// own what it shows in a range, durably, before that range is written. So they are right whenever
// the job ends, however, and after a power cut. On the nodes' loop.
#pragma once

#include "chain-core/port.h"
#include "copy-engine.h"

typedef struct KeptPoint {
    Port port;
} KeptPoint;

// A value, zero-initialised: none.
typedef struct KeepPoints {
    KeptPoint *points;
    unsigned n;
} KeepPoints;

// The nodes are referenced until the end, and writable.
void keep_points_init(KeepPoints *keep, Node *const *nodes, unsigned n);
void keep_points_done(Fiber *self, KeepPoints *keep);

// What lies below them may be written in the chunk's range after that: 0. Or -errno. With no port
// entered. What it moves for that counts in the chunk as bytes beside it.
int keep_points_save(Fiber *self, const KeepPoints *keep, CopyChunk *chunk);
