// SPDX-License-Identifier: LGPL-2.1-or-later
// What is told of a node over QMP: BlockDeviceInfo and ImageInfo. From the tables of control; no
// loop is asked. Control loop.
#pragma once

#include "daemon/nodes.h"
#include "daemon/qmp/type.h"

extern const QmpType block_device_info; // BlockDeviceInfo
extern const QmpType snapshot_info;     // SnapshotInfo

// What is told of many nodes.
typedef struct NodeInfos NodeInfos;
// Asks the host how much space the files of `nodes` take, on a worker.
NodeInfos *node_infos_new(Fiber *self, const GPtrArray *nodes);
void node_infos_free(NodeInfos *infos);

// Of one of them, a new object, which others may be parts of: it is not to be changed. `is_flat`:
// without what is told of the nodes below. Without the lock; nodes may change between two calls.
json_t *node_infos_get(NodeInfos *infos, const NamedNode *named, bool is_flat);
// How many images are told of in all of them, each as often as it lies below one.
unsigned node_infos_n_images(const NodeInfos *infos);
