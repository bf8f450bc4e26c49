// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands of the exports of remembered disks.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_exports_family;
