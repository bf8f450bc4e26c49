// SPDX-License-Identifier: LGPL-2.1-or-later
// The command `transaction`: several actions that take effect together or not at all.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_transaction_family;

// --- for who does the same with actions of his own; `args` are the command's

// First, without the graph lock.
int qmp_rehearse_transaction(Fiber *self, QmpCall *call, const json_t *args, GError **error);
// Then, with it.
int qmp_run_transaction(Fiber *self, QmpCall *call, const json_t *args, GError **error);
