// SPDX-License-Identifier: LGPL-2.1-or-later
// Copies of points in time that share their blocks with them.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_disk_copy_family;
