// SPDX-License-Identifier: LGPL-2.1-or-later
// The raw driver: a file or block device as it is, of any size. On the file's loop.
#pragma once

#include "chain-core/node.h"

// Takes `file` (also on failure). `size_bytes` of the node is the file's size.
int raw_node_new(Fiber *self, File *file, Node **ret_node, GError **error);
