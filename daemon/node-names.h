// SPDX-License-Identifier: LGPL-2.1-or-later
// The names in a node's description: those it gives, and those of nodes that there must be.
// `by_name` has the nodes that there are, NamedNode. Control loop.
#pragma once

#include "named-node.h"

// Are the names that `config` gives allowed, new, and different from each other? QEMU's words.
int node_names_check(GHashTable *by_name, const NodeConfig *config, GError **error);
// Appends the nodes that it names as children (NamedNode), each once, to `used`.
int node_names_find_used(GHashTable *by_name, const NodeConfig *config, GPtrArray *used,
                         GError **error);

// Begins all those uses, as they will be; NodeUse, owned: nodes_end_use(). Some may have begun when
// one cannot.
int node_names_use(GHashTable *by_name, const NodeConfig *config, GPtrArray *uses, GError **error);

// May a node be called that?
bool node_names_is_allowed(const char *name);
// And something else that has an id: the same, of any length.
bool node_names_is_id(const char *id);
