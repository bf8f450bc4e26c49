// SPDX-License-Identifier: LGPL-2.1-or-later
// What to make a node of: its driver, the driver's options, its children. Comes from a json: name,
// a plain path, or the options of blockdev-add. What is not understood is refused, never guessed.
// Pure; any thread, and not changed once a node is made of it.
#pragma once

#include "chain-core/driver.h"

typedef struct NodeConfig NodeConfig;

typedef struct NodeConfigChild {
    const char *role;   // "file", "backing", …: the name of the driver's option
    char *node;         // the name of a node that exists; or
    NodeConfig *config; // what to make one of; both NULL: null was given
} NodeConfigChild;

enum { NODE_CONFIG_MAX_CHILDREN = 4 };

struct NodeConfig {
    const Driver *driver; // NULL: a format, as the file itself says
    json_t *values;       // driver_value_…() reads it; without children
    NodeConfigChild children[NODE_CONFIG_MAX_CHILDREN];
    unsigned n_children;
};

// From `object`, in which children and members may be written flat ("file.filename": …) and numbers
// as text. `may_name_nodes`: children may be names of nodes; else that is refused. An empty name
// stands for null. -ENOTSUP for
// what chaind does not know, -EINVAL for what makes no sense.
int node_config_new(json_t *object, bool may_name_nodes, NodeConfig **ret_config, GError **error);
// From a name that a user gives, a path or a json: name, and a format that is asked for (NULL:
// none).
int node_config_new_name(const char *name, const char *format, NodeConfig **ret_config,
                         GError **error);
// A format (NULL: as the file says) in the file at `path`.
NodeConfig *node_config_new_path(const char *path, const Driver *format);
// A format that is not known yet, in the file (or other source) that `file` describes. Takes it.
NodeConfig *node_config_new_over(NodeConfig *file);
// The same as `config`, but for the child of that role: it is the node called `node` (NULL: none).
NodeConfig *node_config_new_with(const NodeConfig *config, const char *role, const char *node);
void node_config_free(NodeConfig *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NodeConfig, node_config_free)

// Sets what the description says of `node`, made of it, whatever its driver: "discard" and
// "detect-zeroes"; without them discards go through. On the node's loop.
void node_config_apply(const NodeConfig *config, Node *node);

// The child of that role; NULL: none was given.
const NodeConfigChild *node_config_child(const NodeConfig *config, const char *role);
// The one that a node without layers of its own filters, or lies in; NULL: there is none.
const NodeConfigChild *node_config_below(const NodeConfig *config);
// The file at the bottom of a format's "file" children; NULL: they end in a node's name or in
// something else than a file of the host.
const NodeConfig *node_config_file(const NodeConfig *config);
