// SPDX-License-Identifier: LGPL-2.1-or-later
// Which metadata contexts an export has. A new kind is a file context-KIND.c and a line in the
// table of contexts.c.
#pragma once

#include "context.h"
#include "nbd/server.h"

// Of an export that is to be made so (NULL: all that need nothing of its own). Returned owned.
GPtrArray *nbds_contexts_new(const NbdsExportConfig *config);
// Gives up what they pin: on the export's loop, when it has no client any more.
void nbds_contexts_release(Fiber *self, const GPtrArray *contexts);
