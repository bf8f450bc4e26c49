// SPDX-License-Identifier: LGPL-2.1-or-later
// A node as the file in which an image lies: what is behind a filter, a part of a file, what is on
// an NBD server. Over a file of the host it grows, is locked and made writable as that file is.
// Anything else ends where the node ends and holds whatever was there before, like a block device.
// Reads and writes take a fiber each. It moves to another loop with the node, which is to be a
// child of the one whose file it is. On the node's loop.
#pragma once

#include "chain-core/node.h"

// Takes a reference on `node`. Its path is that of the file below, or the node's name. The error of
// a writable one over a node that is not: -EACCES.
int node_file_new(Node *node, bool is_writable, File **ret_file, GError **error);
// The node whose file it is; borrowed. NULL: a file of the host.
Node *node_file_node(const File *file);
// Formats write a file of the host past its node: once they have, that and `file`, which may be one
// of these, get to know how long it has become. Memory only.
void node_file_follow(File *file);
