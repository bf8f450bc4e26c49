// SPDX-License-Identifier: LGPL-2.1-or-later
// Drivers of libchain/node: what needs no file of its own, and nothing but nodes. Their options are
// in their tables.
#pragma once

#include "chain-core/driver.h"

// A disk of zeros of any size, which forgets what is written to it: for measurements and tests.
extern const Driver null_co_driver;
// A filter: what is read from below the node under it is copied into that node. Gives the same
// bytes as without.
extern const Driver copy_on_read_driver;
// A filter: whole clusters that are written are compressed.
extern const Driver compress_driver;
// A filter: requests fail on demand, for tests.
extern const Driver blkdebug_driver;
// A filter: requests wait as the limits of a throttle group say.
extern const Driver throttle_driver;
