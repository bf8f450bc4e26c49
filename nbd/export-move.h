// SPDX-License-Identifier: LGPL-2.1-or-later
// An export goes to another loop together with its node, and its connections with it. On the
// export's loop.
#pragma once

#include "export.h"

// To be set in its port.
extern const PortMoveOps nbds_export_move_ops;
