// SPDX-License-Identifier: LGPL-2.1-or-later
// External snapshots: an overlay that was made and opened becomes the head of a chain under load,
// what was the head becomes its backing layer, and whoever used that uses the overlay from then on.
// On the nodes' loop; the stages of a Switch (switch.h) let several disks, also of several loops,
// have theirs at one moment:
//
//     external_snapshot_prepare → switch_drain → switch_commit → switch_resume → switch_end
//                                                            → external_snapshot_finish
//
// What waits is what writes, and it waits for writes in flight only. What was written to the old
// head and is not durable yet becomes flush debt of the overlay: the next flush settles it.
#pragma once

#include "chain-core/map-memory.h"
#include "chain-core/switch.h"

// `overlay` is writable (unless `head` is not), has no backing layer, is not smaller than `head`,
// and nobody uses it yet. Its file, which names that of `head` below, is durable. Parents of `head`
// that are filters, and all ports, will move; another overlay on it, or somebody who holds its
// place, is -EBUSY; a layer that another program changed -ESTALE. Flushes ahead, so that little is
// left to wait for. The Switch is the caller's; ending it uncommitted leaves all as it was.
int external_snapshot_prepare(Fiber *self, Node *head, Node *overlay, MapMemory *memory,
                              Switch **ret_switch, GError **error);
// After the resume: makes durable what is left in the old head, and gives up writing to its file.
// When that fails the snapshot is there all the same: the overlay's flushes tell.
int external_snapshot_finish(Fiber *self, Node *old_head, GError **error);
