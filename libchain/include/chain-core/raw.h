// SPDX-License-Identifier: LGPL-2.1-or-later
// The raw driver: a file or block device as it is, of any size, or a part of it. And the nodes of
// files themselves, in which formats lie. On the file's loop.
#pragma once

#include "chain-core/driver.h"

// Its options: "offset" and "size" of the part of the file that is the disk, in bytes.
extern const Driver raw_driver;
// Regular files, and block devices.
extern const Driver file_driver, host_device_driver;

// The node of a file. Takes `file`.
Node *file_node_new(File *file);

// Takes `file` (also on failure). `size_bytes` of the node is the file's size.
int raw_node_new(Fiber *self, File *file, Node **ret_node, GError **error);

// The part of `file` from `offset` on, `size_bytes` long (RAW_TO_END: as long as the file goes).
// -EINVAL with a sentence when it does not lie within the file. Takes `file` (also on failure).
#define RAW_TO_END UINT64_MAX
int raw_node_new_part(Fiber *self, File *file, uint64_t offset, uint64_t size_bytes,
                      Node **ret_node, GError **error);
