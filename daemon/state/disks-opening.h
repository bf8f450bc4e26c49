// SPDX-License-Identifier: LGPL-2.1-or-later
// All disks are opened and exported at the start. Those that need another machine are opened each
// by itself, as that may answer late or never: nobody waits for it but them, and it is asked again.
// Control loop.
#pragma once

#include "chain-core/fiber.h"

typedef struct Daemon Daemon;

// With the catalogue's lock, before any client is served. A disk that cannot be opened is told in
// the log and by query-disks; the others are there.
void disks_open_all(Fiber *self, Daemon *daemon);
// Without it: until each has been tried once, or some seconds have passed.
void disks_wait_opened(Fiber *self, const Daemon *daemon);
// At the end, while nodes can still be opened: what waits for others fails, and is not tried again.
void disks_give_up_opening(Fiber *self, const Daemon *daemon);
