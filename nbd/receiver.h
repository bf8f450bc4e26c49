// SPDX-License-Identifier: LGPL-2.1-or-later
// The receiving side of a connection in transmission: receives, and starts each request that is
// complete. On the connection's loop, in its receiver fiber.
#pragma once

#include <glib.h>

#include "buffer.h"

typedef struct NbdsRequest NbdsRequest;

// Zero-initialised, apart from `connection`.
typedef struct NbdsReceiver {
    NbdsConnection *connection;
    NbdsBuffer *input; // unparsed bytes: [pos, end)
    uint8_t *pos, *end;
    uint64_t skip_bytes;     // payload of a refused request still to be dropped
    uint32_t input_capacity; // of the next small-request buffer
    uint32_t n_small_receives;
    GByteArray *parked;    // while it does not run: the unparsed bytes; or NULL
    NbdsRequest *incoming; // the request at `pos`, admitted, its payload incomplete; or NULL
} NbdsReceiver;

// Reads and starts requests; returns when no more will be read, or its fiber was cancelled. Then
// it can be run again, by another fiber, on another loop.
void nbds_receiver_run(Fiber *self, NbdsReceiver *receiver);
void nbds_receiver_done(NbdsReceiver *receiver);
