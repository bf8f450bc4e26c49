// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands and actions that make and delete internal snapshots.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_internal_snapshots_family;
