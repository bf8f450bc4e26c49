// SPDX-License-Identifier: LGPL-2.1-or-later
// x-chain-plan: which jobs remove points in time from a chain, and what each way would cost.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_plans_family;
