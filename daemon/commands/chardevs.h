// SPDX-License-Identifier: LGPL-2.1-or-later
// The family of character devices.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_chardevs_family;
