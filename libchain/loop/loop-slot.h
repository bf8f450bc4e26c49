// SPDX-License-Identifier: LGPL-2.1-or-later
// Things of which each loop has one, such as its table cache. Loop thread.
#pragma once

#include "chain-core/loop.h"

// The place for `key` (an address; at most LOOP_MAX_SLOTS different ones), NULL at first. Who
// stores a value there clears it before the loop ends.
void **loop_slot(Loop *loop, const void *key);
