// SPDX-License-Identifier: LGPL-2.1-or-later
// Queries about nodes: they read the tables of control, and ask no loop.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_node_queries_family;
