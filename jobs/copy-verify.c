// SPDX-License-Identifier: LGPL-2.1-or-later
// In pieces that are still in the processor's cache when they are compared.
#include "copy-verify.h"

#include <string.h>

#include "chain-core/fiber.h"
#include "chain-core/io-buffers.h"
#include "chain-core/zeros.h"

// `wanted` NULL: zeros.
static int compare(Fiber *self, Node *target, GuestOff off, const uint8_t *wanted, uint64_t len)
{
    Loop *loop = fiber_loop(self);
    uint8_t *buf = io_buffer_take(loop, IO_TURN_BYTES);
    int r = buf ? 0 : -ENOMEM;
    for (uint64_t at = 0, n; r == 0 && at < len; at += n) {
        n = MIN(IO_TURN_BYTES, len - at);
        r = node_read(self, target, guest_off(off.v + at), buf, n);
        bool is_same =
            r == 0 && (wanted ? memcmp(buf, wanted + at, n) == 0 : bytes_are_zero(buf, n));
        if (r == 0 && !is_same)
            r = COPY_VERIFY_DIFFERS;
        if (r == 0 && at + n < len)
            fiber_sleep(self, 0);
    }
    io_buffer_put(loop, buf, IO_TURN_BYTES);
    return r;
}

int copy_verify_data(Fiber *self, Node *target, GuestOff off, const uint8_t *wanted, uint64_t len)
{
    return compare(self, target, off, wanted, len);
}

int copy_verify_zeros(Fiber *self, Node *target, GuestOff off, uint64_t len)
{
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < len;) {
        NodeExtent extent;
        GuestOff here = guest_off(off.v + at);
        r = node_status_of_host(self, target, here, len - at, &extent);
        if (r < 0)
            return r;
        uint64_t n = MIN(extent.len, len - at);
        bool is_read = extent.kind == NODE_EXTENT_OPAQUE ||
                       (extent.kind == NODE_EXTENT_DATA && !extent.is_host_hole);
        if (is_read)
            r = compare(self, target, here, NULL, n);
        at += n;
    }
    return r;
}
