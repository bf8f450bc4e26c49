// SPDX-License-Identifier: LGPL-2.1-or-later
// What the clients of exports do, and how long it takes.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_export_stats_family;
