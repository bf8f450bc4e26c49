// SPDX-License-Identifier: LGPL-2.1-or-later
// Whether the files of a chain are what they were when they were opened.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_chain_health_family;
