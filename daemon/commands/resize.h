// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands about the size of nodes.
#pragma once

#include "daemon/nodes.h"
#include "daemon/qmp/command.h"

extern const QmpFamily qmp_resize_family;

// What block_resize does, for who has the graph lock.
int qmp_resize_node(Fiber *self, Nodes *nodes, NamedNode *named, uint64_t size_bytes,
                    GError **error);
