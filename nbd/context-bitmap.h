// SPDX-License-Identifier: LGPL-2.1-or-later
// "qemu:dirty-bitmap:NAME": which granules of an export a dirty bitmap of its node, or of one
// below, calls dirty. The bitmap is busy as long as the export has it.
#pragma once

#include "context.h"
#include "nbd/server.h"

// One for each of config->bitmaps.
void nbds_context_bitmaps_add(GPtrArray *contexts, const NbdsExportConfig *config);
