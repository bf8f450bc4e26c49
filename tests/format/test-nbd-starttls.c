// SPDX-License-Identifier: LGPL-2.1-or-later
// What a client hears from a server before TLS: from one that speaks it, one that does not, and one
// that answers anything.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "format/nbd-starttls.h"

static void only_fixed_newstyle_servers_have_options(void **state)
{
    uint8_t greeting[NBD_STARTTLS_GREETING_BYTES] = "NBDMAGICIHAVEOPT\0\3";
    uint16_t flags;
    assert_true(nbd_starttls_parse_greeting(greeting, &flags));
    assert_int_equal(flags, 3);
    greeting[17] = 2;
    assert_false(nbd_starttls_parse_greeting(greeting, &flags));
    greeting[17] = 1;
    greeting[8] = 0; // oldstyle
    assert_false(nbd_starttls_parse_greeting(greeting, &flags));
}

static void the_client_says_what_it_has_in_common_with_the_server(void **state)
{
    static const uint8_t expected[] = {0,   0,   0, 3, 'I', 'H', 'A', 'V', 'E', 'O',
                                       'P', 'T', 0, 0, 0,   5,   0,   0,   0,   0};
    uint8_t request[NBD_STARTTLS_REQUEST_BYTES];
    nbd_starttls_make_request(0xffff, request);
    assert_memory_equal(request, expected, sizeof expected);
    nbd_starttls_make_request(1, request);
    assert_int_equal(request[3], 1);
}

static void only_an_acknowledgement_begins_tls(void **state)
{
    uint8_t reply[NBD_STARTTLS_REPLY_BYTES] = {0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0,
                                               0, 5, 0,    0,    0, 1,    0,    0,    0, 0};
    uint32_t len;
    assert_null(nbd_starttls_parse_reply(reply, &len));
    for (unsigned i = 0; i < sizeof reply; i++) {
        reply[i] ^= 0x40;
        assert_non_null(nbd_starttls_parse_reply(reply, &len));
        reply[i] ^= 0x40;
    }
    reply[12] = 0x80;
    assert_non_null(strstr(nbd_starttls_parse_reply(reply, &len), "does not speak TLS"));
    reply[15] = 2;
    assert_non_null(strstr(nbd_starttls_parse_reply(reply, &len), "not enabled"));
    reply[15] = 9;
    reply[19] = 7;
    assert_non_null(nbd_starttls_parse_reply(reply, &len));
    assert_int_equal(len, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_fixed_newstyle_servers_have_options),
        cmocka_unit_test(the_client_says_what_it_has_in_common_with_the_server),
        cmocka_unit_test(only_an_acknowledgement_begins_tls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
