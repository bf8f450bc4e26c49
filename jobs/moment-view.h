// SPDX-License-Identifier: LGPL-2.1-or-later
// What lies below an overlay of a backup's source while the backup saves into that overlay: the
// source as it was at the moment of the backup. So who reads the overlay reads that moment,
// whatever guests do (a pull backup: "image fleecing").
//
//     guests ──▸ copy-before-write ──▸ source
//                       │ saves           ▴
//                       ▾                 │ reads
//     readers ──▸ overlay ──▸ moment view ┘     what is saved meanwhile it reads from the overlay again
//
// It holds no guest up: it reads the source without a lock, and looks afterwards what of that was
// still unsaved (filter_copy_before_read()). On the nodes' loop.
#pragma once

#include "chain-core/node.h"

// To be the backing child of the overlay, which is the target of `filter` (filter-copy-before.h),
// or lies under filters there; owns nothing of it at the moment; and is given whole granules.
// Returned with one reference; holds one on the source, none on the filter.
Node *moment_view_new(Node *source, Node *filter);
// Before the filter is closed, once it has been stopped: from now on what the overlay has not got
// cannot be read (-EACCES).
void moment_view_end(Node *view);
