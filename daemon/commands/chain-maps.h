// SPDX-License-Identifier: LGPL-2.1-or-later
// Which layer owns what of a disk.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_chain_maps_family;
