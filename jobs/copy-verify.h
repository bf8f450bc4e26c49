// SPDX-License-Identifier: LGPL-2.1-or-later
// What a copy has written is read back from its target and compared, while what it should be is
// still at hand, and the range of the target held: nobody changes it in between. A target that
// loses what it is told, or reads otherwise, is found before its user needs it. On the nodes' loop,
// in a fiber.
#pragma once

#include <errno.h>

#include "chain-core/node.h"

// What was read is not what was written.
enum { COPY_VERIFY_DIFFERS = -EILSEQ };

// 0, COPY_VERIFY_DIFFERS or another -errno.
int copy_verify_data(Fiber *self, Node *target, GuestOff off, const uint8_t *wanted, uint64_t len);
// Zeros: from metadata, as far as that says so, else as data.
int copy_verify_zeros(Fiber *self, Node *target, GuestOff off, uint64_t len);
