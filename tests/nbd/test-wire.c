// SPDX-License-Identifier: LGPL-2.1-or-later
// The protocol's bytes, against layouts written out by hand from its text.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "wire.h"

static void the_greeting_announces_fixed_newstyle_without_zeroes(void **state)
{
    static const uint8_t expected[] = {'N', 'B', 'D', 'M', 'A', 'G', 'I', 'C', 'I',
                                       'H', 'A', 'V', 'E', 'O', 'P', 'T', 0,   3};
    uint8_t p[NBDS_GREETING_BYTES];
    nbds_wire_put_greeting(p);
    assert_memory_equal(p, expected, sizeof expected);
}

static void option_heads_need_their_magic(void **state)
{
    uint8_t p[] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 7, 0, 1, 0, 2};
    uint32_t option, length;
    assert_true(nbds_wire_get_option_head(p, &option, &length));
    assert_int_equal(option, NBDS_OPT_GO);
    assert_int_equal(length, 0x10002);
    p[7] = 'U';
    assert_false(nbds_wire_get_option_head(p, &option, &length));
}

static void compact_requests_have_32_bit_lengths(void **state)
{
    uint8_t p[] = {0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3,    4,    5,    6,
                   7,    8,    0,    0,    0, 1, 0, 0, 2, 0, 0xff, 0xff, 0xff, 0xfe};
    NbdsRequestHead head;
    assert_true(nbds_wire_get_request_head(p, NBDS_STYLE_STRUCTURED, &head));
    assert_int_equal(head.flags, NBDS_CMD_FLAG_FUA);
    assert_int_equal(head.type, NBDS_CMD_WRITE);
    assert_true(head.cookie == 0x0102030405060708);
    assert_true(head.offset == 0x100000200);
    assert_true(head.length == 0xfffffffe);
    assert_false(nbds_wire_get_request_head(p, NBDS_STYLE_EXTENDED, &head));
}

static void extended_requests_have_64_bit_lengths(void **state)
{
    uint8_t p[] = {0x21, 0xe4, 0x1c, 0x71, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9,
                   0,    0,    0,    0,    0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1};
    NbdsRequestHead head;
    assert_true(nbds_wire_get_request_head(p, NBDS_STYLE_EXTENDED, &head));
    assert_int_equal(head.type, NBDS_CMD_TRIM);
    assert_true(head.length == 0x0100000000000001);
    assert_false(nbds_wire_get_request_head(p, NBDS_STYLE_SIMPLE, &head));
}

static void replies_are_laid_out_as_specified(void **state)
{
    uint8_t p[32];
    nbds_wire_put_simple_reply(p, NBDS_ENOSPC, 0x1122334455667788);
    static const uint8_t simple[] = {0x67, 0x44, 0x66, 0x98, 0,    0,    0,    28,
                                     0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88};
    assert_memory_equal(p, simple, sizeof simple);

    NbdsChunkHead head = {1, NBDS_CHUNK_OFFSET_DATA, 2, 0x300, 4096 + 8};
    nbds_wire_put_chunk_head(p, NBDS_STYLE_STRUCTURED, &head);
    static const uint8_t structured[] = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0,    0,
                                         0,    0,    0,    0,    0, 2, 0, 0, 0x10, 8};
    assert_memory_equal(p, structured, sizeof structured);

    nbds_wire_put_chunk_head(p, NBDS_STYLE_EXTENDED, &head);
    static const uint8_t extended[] = {0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1, 0,    0, 0,
                                       0,    0,    0,    0,    2, 0, 0, 0, 0,    0, 0,
                                       3,    0,    0,    0,    0, 0, 0, 0, 0x10, 8};
    assert_memory_equal(p, extended, sizeof extended);
}

static void errors_become_the_protocols_few_codes(void **state)
{
    static const struct {
        int result;
        NbdsErrorCode code;
    } rows[] = {
        {0, NBDS_OK},
        {-EROFS, NBDS_EPERM},
        {-EPERM, NBDS_EPERM},
        {-EIO, NBDS_EIO},
        {-EBADF, NBDS_EIO},
        {-ENOMEM, NBDS_ENOMEM},
        {-EINVAL, NBDS_EINVAL},
        {-ENOSPC, NBDS_ENOSPC},
        {-EDQUOT, NBDS_ENOSPC},
        {-EFBIG, NBDS_ENOSPC},
        {-EOVERFLOW, NBDS_EOVERFLOW},
        {-ENOTSUP, NBDS_ENOTSUP},
        {-ESHUTDOWN, NBDS_ESHUTDOWN},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(nbds_error_from_errno(rows[i].result), rows[i].code);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_greeting_announces_fixed_newstyle_without_zeroes),
        cmocka_unit_test(option_heads_need_their_magic),
        cmocka_unit_test(compact_requests_have_32_bit_lengths),
        cmocka_unit_test(extended_requests_have_64_bit_lengths),
        cmocka_unit_test(replies_are_laid_out_as_specified),
        cmocka_unit_test(errors_become_the_protocols_few_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
