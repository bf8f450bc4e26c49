// SPDX-License-Identifier: LGPL-2.1-or-later
// A dirty bitmap of a mirror's source: what is to be copied, what is left. While the job is there
// nobody else changes it, but for guests' writes, which it goes on noting. On the source's loop.
#pragma once

#include "copy-engine.h"
#include "jobs/mirror.h"

// A value; without a bitmap nothing here does anything.
typedef struct MirrorBitmap {
    DirtyBitmap *bitmap; // a reference
    MirrorBitmapMode mode;
    Bitmap *clean; // to be its bits
} MirrorBitmap;

void mirror_bitmap_init(MirrorBitmap *of, DirtyBitmap *bitmap, MirrorBitmapMode mode);
void mirror_bitmap_done(MirrorBitmap *of);
// Before it may change: what its image says of it is not to be believed after a crash.
int mirror_bitmap_begin(Fiber *self, MirrorBitmap *of);
// How far from `off` on all is dirty, or not.
uint64_t mirror_bitmap_look(const MirrorBitmap *of, uint64_t off, uint64_t len, bool *ret_dirty);
// While no guest is inside: all that the source shows is in the target; or what the engine has
// still to do is not.
void mirror_bitmap_set_copied(MirrorBitmap *of);
// `unflushed` may be lost, so it is left, too.
void mirror_bitmap_set_left(MirrorBitmap *of, CopyEngine *engine, const Bitmap *unflushed);
