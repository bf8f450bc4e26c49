// SPDX-License-Identifier: LGPL-2.1-or-later
// Whether all loops still turn. Each gets a message, which wakes it if it sleeps, so an idle loop
// answers at once; one that hangs does not. Between two checks nothing is awake for it. Control
// loop.
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "chain-core/loop.h"

typedef struct Heartbeat Heartbeat;

Heartbeat *heartbeat_new(void);
// After the end of all loops that were asked: a message may still wait for one. Accepts NULL.
void heartbeat_free(Heartbeat *heartbeat);

// Has every loop answered that was asked before? Then all of `loops` (Loop) are asked anew.
bool heartbeat_check(Heartbeat *heartbeat, const GPtrArray *loops);
