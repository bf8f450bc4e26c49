// SPDX-License-Identifier: LGPL-2.1-or-later
// Something that a back end has under way and whose end it reports on the loop's thread: the head
// of whatever else belongs to it.
#pragma once

typedef struct LoopOp LoopOp;
struct LoopOp {
    void (*done)(LoopOp *op, int result); // bytes or -errno; runs outside any fiber
};
