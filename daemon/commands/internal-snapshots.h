// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and actions that make and delete internal snapshots.
#pragma once

#include "daemon/named-node.h"
#include "daemon/qmp/command.h"

extern const QmpFamily qmp_internal_snapshots_family;

// Is no internal snapshot of it being made or deleted by a command of its own? A sentence, for who
// would wait for the end of that with the graph lock held.
int internal_snapshots_check_none(const NamedNode *named, GError **error);
