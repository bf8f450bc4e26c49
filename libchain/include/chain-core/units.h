// SPDX-License-Identifier: LGPL-2.1-or-later
// Offsets that must not be mixed up: a GuestOff counts bytes of what a client sees, a HostOff bytes
// of a file on the host. Values; pure; any thread.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t v;
} GuestOff;

typedef struct {
    uint64_t v;
} HostOff;

static inline GuestOff guest_off(uint64_t v)
{
    return (GuestOff){v};
}

static inline HostOff host_off(uint64_t v)
{
    return (HostOff){v};
}
