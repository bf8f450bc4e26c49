// SPDX-License-Identifier: LGPL-2.1-or-later
// One pass of write-back: a copy of all that is dirty, written in the order of docs/ordering.md;
// the second chapter of writeback.c, and called by it only.
#pragma once

#include "qcow2/image.h"

typedef struct WritebackPass WritebackPass;

// Copies what is dirty, which is clean from now on. Suspends nowhere.
WritebackPass *writeback_pass_begin(Qcow2Image *image);
// 0: it is over, and writeback_pass_end() tells what has become durable. -errno: a sync failed, and
// nothing can be told.
int writeback_pass_write(Fiber *self, WritebackPass *pass);
// What is not durable is dirty again, and remembered in the image's Writeback. Frees `pass`.
void writeback_pass_end(WritebackPass *pass, int result);
// Did the last pass leave what is at `place` (an L2 slice, an L1 entry) unwritten?
bool writeback_pass_failed(const Qcow2Image *image, HostOff place);
