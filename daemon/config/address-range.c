// SPDX-License-Identifier: LGPL-2.1-or-later
// An address with bits set beyond its prefix is refused: one of the two was meant otherwise.
#include "address-range.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

enum { IPV4_BITS = 32, IPV6_BITS = 128 };
static const uint8_t ipv4_prefix[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}; // ::ffff:0:0/96

static bool has_bits_from(const uint8_t *bytes, unsigned first)
{
    for (unsigned i = first; i < IPV6_BITS; i++)
        if (bytes[i / 8] & (0x80 >> i % 8))
            return true;
    return false;
}

bool address_range_parse(const char *text, AddressRange *ret_range)
{
    const char *slash = strchr(text, '/');
    g_autofree char *address = slash ? g_strndup(text, (gsize)(slash - text)) : g_strdup(text);
    AddressRange range = {0};
    guint64 n_bits;
    bool is_ipv4 = inet_pton(AF_INET, address, range.bytes + sizeof ipv4_prefix) == 1;
    if (is_ipv4)
        memcpy(range.bytes, ipv4_prefix, sizeof ipv4_prefix);
    else if (inet_pton(AF_INET6, address, range.bytes) != 1)
        return false;
    n_bits = is_ipv4 ? IPV4_BITS : IPV6_BITS;
    if (slash && !g_ascii_string_to_unsigned(slash + 1, 10, 0, n_bits, &n_bits, NULL))
        return false;
    range.n_bits = (unsigned)n_bits + (is_ipv4 ? IPV6_BITS - IPV4_BITS : 0);
    if (has_bits_from(range.bytes, range.n_bits))
        return false;
    *ret_range = range;
    return true;
}

bool address_range_has(const AddressRange *range, const struct sockaddr *address)
{
    uint8_t bytes[16];
    if (address->sa_family == AF_INET) {
        memcpy(bytes, ipv4_prefix, sizeof ipv4_prefix);
        memcpy(bytes + sizeof ipv4_prefix, &((const struct sockaddr_in *)address)->sin_addr, 4);
    } else if (address->sa_family == AF_INET6) {
        memcpy(bytes, &((const struct sockaddr_in6 *)address)->sin6_addr, 16);
    } else {
        return false;
    }
    for (unsigned i = 0; i < range->n_bits; i++)
        if ((bytes[i / 8] ^ range->bytes[i / 8]) & (0x80 >> i % 8))
            return false;
    return true;
}
