// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands that make, change and delete nodes.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_nodes_family;
