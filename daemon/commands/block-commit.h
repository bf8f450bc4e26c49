// SPDX-License-Identifier: LGPL-2.1-or-later
// The command block-commit.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_block_commit_family;
