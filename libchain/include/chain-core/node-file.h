// SPDX-License-Identifier: LGPL-2.1-or-later
// A node as the file in which an image lies: what is on an NBD server, or behind a filter. It ends
// where the node ends and holds whatever was there before, like a block device; nobody can be locked
// out of it. Reads and writes take a fiber each. On the node's loop.
#pragma once

#include "chain-core/node.h"

// Takes a reference on `node`. The error of a writable one over a node that is not: -EACCES.
int node_file_new(Node *node, bool is_writable, File **ret_file, GError **error);
