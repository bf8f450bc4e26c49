// SPDX-License-Identifier: LGPL-2.1-or-later
// The command `transaction`: several actions that take effect together or not at all.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_transaction_family;
