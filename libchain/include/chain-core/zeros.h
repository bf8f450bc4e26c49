// SPDX-License-Identifier: LGPL-2.1-or-later
// Is a piece of memory all zeros? Pure.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// Also of none.
static inline bool bytes_are_zero(const void *bytes, size_t len)
{
    const uint8_t *b = bytes;
    return len == 0 || (b[0] == 0 && memcmp(b, b + 1, len - 1) == 0);
}
