// SPDX-License-Identifier: LGPL-2.1-or-later
// blockdev-create: new images, each made by a job.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_create_family;
