// SPDX-License-Identifier: LGPL-2.1-or-later
// Waiting for a batch of transfers, and its pins. In a fiber.
#include "chain-core/io-batch.h"

#include <assert.h>

int io_batch_wait(Fiber *self, IoBatch *batch)
{
    assert(batch->fiber == self);
    while (batch->pending)
        fiber_suspend(self, "I/O");
    for (uint32_t i = 0; i < batch->n_pins; i++)
        io_pin_release(batch->pins[i]);
    int error = batch->error;
    io_batch_init(batch, self);
    return error;
}

void io_batch_pin(Fiber *self, IoBatch *batch, IoPin *pin)
{
    for (uint32_t i = 0; i < batch->n_pins; i++)
        if (batch->pins[i] == pin)
            return;
    if (batch->n_pins == IO_BATCH_PINS) {
        int error = io_batch_wait(self, batch);
        batch->error = error;
    }
    io_pin_hold(pin);
    batch->pins[batch->n_pins++] = pin;
}
