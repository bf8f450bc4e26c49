// SPDX-License-Identifier: LGPL-2.1-or-later
// External snapshots: blockdev-snapshot, blockdev-snapshot-sync, also as actions of a transaction.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_snapshots_family;
