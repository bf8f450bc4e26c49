// SPDX-License-Identifier: LGPL-2.1-or-later
// The command block-commit.
#pragma once

#include "job-start.h"

extern const QmpFamily qmp_block_commit_family;

// --- for who starts one himself
QmpPrepareJobFn qmp_prepare_commit;
