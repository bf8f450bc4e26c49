// SPDX-License-Identifier: LGPL-2.1-or-later
// Drivers of nodes that work like jobs. Their options are in their tables.
#pragma once

#include "chain-core/driver.h"

// A filter: what guests are about to change is saved to another node first, so that
// snapshot-access can show what there was.
extern const Driver copy_before_write_driver;
// What a copy-before-write node showed when it was made.
extern const Driver snapshot_access_driver;
