// SPDX-License-Identifier: LGPL-2.1-or-later
// The contexts that an export's nodes tell themselves: base:allocation, which is the protocol's
// own, and qemu:allocation-depth, documented in QEMU's docs/interop/nbd.rst (0 unallocated, 1 in
// the export's own layer, 2 and more below it). One walk serves both.
#pragma once

#include "context.h"
#include "nbd/server.h"

// base:allocation for every export, the other one where `config` (NULL: both) wants it.
void nbds_context_node_add(GPtrArray *contexts, const NbdsExportConfig *config);

// What they say of an extent, as node_status_of_host() of the export's node gave it.
uint64_t nbds_context_allocation_flags(const NodeExtent *extent);
uint64_t nbds_context_depth_flags(const NodeExtent *extent);
