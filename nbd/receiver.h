// SPDX-License-Identifier: LGPL-2.1-or-later
// The receiving side of a connection in transmission: receives, and starts each request that is
// complete. On the connection's loop, in its receiver fiber.
#pragma once

#include "connection.h"

NbdsReceiver *nbds_receiver_new(NbdsConnection *c);
void nbds_receiver_free(NbdsReceiver *receiver); // it does not run

// Reads and starts requests; returns when no more will be read, or its fiber was cancelled. Then
// it can be run again, by another fiber, on another loop.
void nbds_receiver_run(Fiber *self, NbdsReceiver *receiver);
