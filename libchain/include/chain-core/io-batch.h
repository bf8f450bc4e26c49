// SPDX-License-Identifier: LGPL-2.1-or-later
// A batch of transfers that one fiber starts and then waits for together: ten clusters in one read
// are ten submissions and one wait. A value on the fiber's stack; on its loop only. Transfers that
// complete inline (page cache, tmpfs) never become pending, so a cached read has nothing to wait
// for.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "chain-core/fiber.h"

// Keeps a host range from being reused while transfers still point at it. `drained` is called when
// the last holder lets go, on the loop, and must not suspend.
typedef struct IoPin IoPin;
struct IoPin {
    uint32_t n_holders;
    void (*drained)(IoPin *pin);
};

static inline void io_pin_hold(IoPin *pin)
{
    pin->n_holders++;
}
static inline void io_pin_release(IoPin *pin)
{
    if (--pin->n_holders == 0 && pin->drained)
        pin->drained(pin);
}

enum { IO_BATCH_PINS = 4 };

typedef struct IoBatch {
    Fiber *fiber;     // who waits
    uint32_t pending; // transfers under way
    int error;        // first failure, negative errno; 0 so far
    uint32_t n_pins;
    IoPin *pins[IO_BATCH_PINS];
} IoBatch;

static inline void io_batch_init(IoBatch *batch, Fiber *self)
{
    batch->fiber = self;
    batch->pending = 0;
    batch->error = 0;
    batch->n_pins = 0;
}

// Waits until nothing is pending, lets go of all pins, and returns 0 or the first error; the batch
// is then as after init. Must be called before the batch's storage goes away. Not cancellable:
// buffers stay the kernel's until their completion.
int io_batch_wait(Fiber *self, IoBatch *batch);

// Holds `pin` until io_batch_wait(). The same pin twice is held once. If all places are taken it
// waits for the batch first.
void io_batch_pin(Fiber *self, IoBatch *batch, IoPin *pin);

// For drivers (File): one more transfer is under way / has ended with `result` (0 or -errno).
static inline void io_batch_begin(IoBatch *batch)
{
    batch->pending++;
}
static inline void io_batch_end(IoBatch *batch, int result)
{
    if (result < 0 && !batch->error)
        batch->error = result;
    if (--batch->pending == 0)
        fiber_wake(batch->fiber);
}
