// SPDX-License-Identifier: LGPL-2.1-or-later
// The type of what blockdev-add takes, made from the tables of all drivers: the driver's name
// decides which options there are. Control loop.
#pragma once

#include "daemon/qmp/type.h"

extern QmpType blockdev_options;   // BlockdevOptions
extern const QmpType blockdev_ref; // a node's name, or BlockdevOptions
// Fills them in; once, before they are used.
void blockdev_type_init(void);
