// SPDX-License-Identifier: LGPL-2.1-or-later
// Ranges of addresses, IPv4 and IPv6: 10.0.0.0/8, 2001:db8::/32, or one address. Pure.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

typedef struct AddressRange {
    uint8_t bytes[16]; // of IPv4, as an IPv6 address that stands for one
    unsigned n_bits;   // of `bytes`, that count
} AddressRange;

bool address_range_parse(const char *text, AddressRange *ret_range);
// False for what is no IPv4 or IPv6 address.
bool address_range_has(const AddressRange *range, const struct sockaddr *address);
