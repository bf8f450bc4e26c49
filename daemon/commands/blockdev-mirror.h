// SPDX-License-Identifier: LGPL-2.1-or-later
// The command blockdev-mirror.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_blockdev_mirror_family;
