// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands that copy what a node shows at one moment. Control loop.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_blockdev_backup_family;
