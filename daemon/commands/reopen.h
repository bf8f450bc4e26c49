// SPDX-License-Identifier: LGPL-2.1-or-later
// blockdev-reopen: options of nodes that change while they are in use.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_reopen_family;
