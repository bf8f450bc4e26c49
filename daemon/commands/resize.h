// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands about the size of nodes.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_resize_family;
