// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands of the NBD server and its exports.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_exports_family;
