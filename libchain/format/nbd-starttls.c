// SPDX-License-Identifier: LGPL-2.1-or-later
// STARTTLS on the wire. Pure.
#include "format/nbd-starttls.h"

#include <string.h>

enum {
    FIXED_NEWSTYLE = 1, // flags, of both sides
    NO_ZEROES = 2,
    STARTTLS = 5,
    ACK = 1,
};

static const char server_magic[] = "NBDMAGICIHAVEOPT", option_magic[] = "IHAVEOPT";

static uint32_t get_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return GUINT32_FROM_BE(v);
}

static void put_u32(uint8_t *p, uint32_t v)
{
    v = GUINT32_TO_BE(v);
    memcpy(p, &v, sizeof v);
}

bool nbd_starttls_parse_greeting(const uint8_t greeting[static NBD_STARTTLS_GREETING_BYTES],
                                 uint16_t *ret_flags)
{
    *ret_flags = (uint16_t)(greeting[16] << 8 | greeting[17]);
    return memcmp(greeting, server_magic, 16) == 0 && *ret_flags & FIXED_NEWSTYLE;
}

void nbd_starttls_make_request(uint16_t server_flags,
                               uint8_t ret_request[static NBD_STARTTLS_REQUEST_BYTES])
{
    put_u32(ret_request, server_flags & (FIXED_NEWSTYLE | NO_ZEROES));
    memcpy(ret_request + 4, option_magic, 8);
    put_u32(ret_request + 12, STARTTLS);
    put_u32(ret_request + 16, 0);
}

const char *nbd_starttls_parse_reply(const uint8_t reply[static NBD_STARTTLS_REPLY_BYTES],
                                     uint32_t *ret_data_bytes)
{
    static const uint8_t magic[] = {0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9};
    enum { UNSUP = 0x80000001, POLICY = 0x80000002 };
    uint32_t type = get_u32(reply + 12);
    *ret_data_bytes = get_u32(reply + 16);
    if (memcmp(reply, magic, sizeof magic) != 0 || get_u32(reply + 8) != STARTTLS)
        return "it breaks the protocol";
    if (type == ACK)
        return *ret_data_bytes ? "it breaks the protocol" : NULL;
    if (type == UNSUP)
        return "it does not speak TLS";
    return type == POLICY ? "TLS is not enabled there" : "it refuses TLS";
}
