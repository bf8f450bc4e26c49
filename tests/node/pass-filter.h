// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: the filter that has nothing of its own, so that everything goes on to what it filters.
#pragma once

#include "chain-core/node.h"

static const NodeOps pass_ops = {.driver = "pass", .is_filter = true};

static inline Node *pass_filter_new(Loop *loop, const char *name, uint64_t size_bytes)
{
    Node *node = g_new0(Node, 1);
    node_init(node, &pass_ops, loop, name, size_bytes);
    return node;
}
