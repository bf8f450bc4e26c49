// SPDX-License-Identifier: LGPL-2.1-or-later
// The command blockdev-mirror, also as an action of a transaction.
#pragma once

#include "daemon/qmp/command.h"
#include "job-start.h"

extern const QmpFamily qmp_blockdev_mirror_family;

// For who starts its job with arguments of his own.
extern const QmpType qmp_blockdev_mirror_args;
QmpPrepareJobFn qmp_prepare_mirror;
