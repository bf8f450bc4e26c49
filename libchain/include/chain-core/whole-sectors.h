// SPDX-License-Identifier: LGPL-2.1-or-later
// A filter that shows a node as whole sectors of 512 bytes, for clients that can address nothing
// smaller: the kernel's nbd driver drops a last sector that is cut short, and QEMU's block layer
// rounds the size up itself and fails when it writes there. On the node's loop.
#pragma once

#include "chain-core/node.h"

enum { SECTOR_BYTES = 512 };

// A node over `node` (takes a reference) whose size is the next multiple of SECTOR_BYTES. The bytes
// after `node`'s end read as zeros. Zeros written there are accepted and kept nowhere; a write of
// anything else there is -ENOSPC, and then nothing of it is written. Returned with one reference.
Node *whole_sectors_new(Fiber *self, Node *node);
