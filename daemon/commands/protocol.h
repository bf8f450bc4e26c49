// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands about QMP itself, and the end of the daemon.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_protocol_family;
