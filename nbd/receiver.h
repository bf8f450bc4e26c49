// SPDX-License-Identifier: LGPL-2.1-or-later
// The receiving side of a connection in transmission: receives, and starts each request that is
// complete. On the connection's loop, in its receiver fiber.
#pragma once

#include "buffer.h"

typedef struct NbdsRequest NbdsRequest;

typedef struct NbdsReceiver {
    NbdsConnection *connection;
    NbdsBuffer *input; // unparsed bytes: [pos, end)
    uint8_t *pos, *end;
    uint64_t skip_bytes;     // payload of a refused request still to be dropped
    uint32_t input_capacity; // of the next small-request buffer
    uint32_t n_small_receives;
    NbdsRequest *incoming; // the request at `pos`, admitted, its payload incomplete; or NULL
} NbdsReceiver;

void nbds_receiver_init(NbdsReceiver *receiver, NbdsConnection *c);
// Reads and starts requests; returns when no more will be read.
void nbds_receiver_run(Fiber *self, NbdsReceiver *receiver);
