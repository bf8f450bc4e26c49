// SPDX-License-Identifier: LGPL-2.1-or-later
// All families of commands. Control loop.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily *const qmp_families[]; // ends with NULL
