// SPDX-License-Identifier: LGPL-2.1-or-later
// What is told of a node over QMP: BlockDeviceInfo and ImageInfo. From the tables of control; no
// loop is asked. Control loop.
#pragma once

#include "daemon/nodes.h"
#include "daemon/qmp/type.h"

extern const QmpType block_device_info; // BlockDeviceInfo
extern const QmpType snapshot_info;     // SnapshotInfo

// How much space the files of nodes take; asked of the host, on a worker.
typedef struct FileSpace FileSpace;
FileSpace *file_space_new(Fiber *self, const GPtrArray *nodes);
void file_space_free(FileSpace *space);

// A new object. `is_flat`: without what is told of the nodes below.
json_t *node_info(const NamedNode *named, const FileSpace *space, bool is_flat);
