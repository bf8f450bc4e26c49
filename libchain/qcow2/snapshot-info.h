// SPDX-License-Identifier: LGPL-2.1-or-later
// An entry of the snapshot table as others see it. For this folder.
#pragma once

#include "chain-core/qcow2-snapshot.h"
#include "format/qcow2-snapshot.h"

// Copies the strings.
void snapshot_info_fill(const Qcow2Snapshot *entry, Qcow2SnapshotInfo *ret_info);
