// SPDX-License-Identifier: LGPL-2.1-or-later
// Waiting for a descriptor that somebody else reads and writes (a library with a protocol of its
// own). On io_uring loops only.
#pragma once

#include <stdint.h>

#include "chain-core/fiber.h"

// Until one of `events` (POLLIN, POLLOUT) or an error is there: 0. -ECANCELED when the fiber is
// cancelled, -ETIMEDOUT after `timeout_ns` (0: no limit). `fd` must stay open meanwhile.
int fd_wait(Fiber *self, int fd, short events, uint64_t timeout_ns);
