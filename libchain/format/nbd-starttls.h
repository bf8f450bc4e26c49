// SPDX-License-Identifier: LGPL-2.1-or-later
// What an NBD client says and hears before TLS begins (NBD protocol, "fixed newstyle negotiation").
// Pure.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    NBD_STARTTLS_GREETING_BYTES = 18,
    NBD_STARTTLS_FLAGS_BYTES = 4, // of the client, the first of the request
    NBD_STARTTLS_REQUEST_BYTES = 20,
    NBD_STARTTLS_REPLY_BYTES = 20,
};

// The server's handshake flags; false: no server that has options.
bool nbd_starttls_parse_greeting(const uint8_t greeting[static NBD_STARTTLS_GREETING_BYTES],
                                 uint16_t *ret_flags);
// The client's flags, and the option.
void nbd_starttls_make_request(uint16_t server_flags,
                               uint8_t ret_request[static NBD_STARTTLS_REQUEST_BYTES]);
// NULL: TLS begins. Or else why not; `*ret_data_bytes` of text follow. Borrowed.
const char *nbd_starttls_parse_reply(const uint8_t reply[static NBD_STARTTLS_REPLY_BYTES],
                                     uint32_t *ret_data_bytes);
