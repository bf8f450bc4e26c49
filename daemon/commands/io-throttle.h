// SPDX-License-Identifier: LGPL-2.1-or-later
// Limits of exports.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_io_throttle_family;
