// SPDX-License-Identifier: LGPL-2.1-or-later
// What blockdev-reopen may change of how a node was described, in QEMU's words where it may not.
// Control loop; pure.
#pragma once

#include "daemon/named-node.h"

// Can the node be described so at all? All options that it was given and that cannot be taken back
// are given again.
int reopen_check_given(const NamedNode *named, const NodeConfig *config, GError **error);
// Is what differs, of its own options and of what is described within it, what may? Children that
// are named are the caller's to look at, but for those of roles that stay.
int reopen_check_changes(const NamedNode *named, const NodeConfig *config, GError **error);
// Does an option differ that the driver has to see to?
bool reopen_needs_driver(const NamedNode *named, const NodeConfig *config);
// Was the child made with `named`, by one description, and so may be described within it again?
bool reopen_came_with(const NamedNode *named, const NamedNode *child);
