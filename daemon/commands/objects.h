// SPDX-License-Identifier: LGPL-2.1-or-later
// Commands for objects: object-add, object-del, and what of QOM scripts need for them.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_objects_family;
