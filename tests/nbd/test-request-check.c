// SPDX-License-Identifier: LGPL-2.1-or-later
// What may be asked of a 1 MiB + 1 byte export, writable and read-only, in each header style.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "contexts.h"
#include "request-check.h"

enum { SIZE = (1 << 20) + 1 };

static GPtrArray *contexts; // of every session

static NbdsSession session(NbdsStyle style)
{
    return (NbdsSession){style, contexts, SIZE, false};
}

static NbdsCheck check(NbdsStyle style, uint16_t type, uint16_t flags, uint64_t offset,
                       uint64_t length)
{
    NbdsSession s = session(style);
    NbdsRequestHead head = {flags, type, 1, offset, length};
    return nbds_request_check(&s, &head);
}

#define assert_executes(c) assert_int_equal((c).action, NBDS_ACTION_EXECUTE)
#define assert_refuses(c, code)                                                                    \
    do {                                                                                           \
        NbdsCheck checked = (c);                                                                   \
        assert_int_equal(checked.action, NBDS_ACTION_REFUSE);                                      \
        assert_int_equal(checked.error, code);                                                     \
        assert_non_null(checked.message);                                                          \
    } while (0)

static void ranges_that_wrap_or_pass_the_end_are_refused(void **state)
{
    static const struct {
        uint16_t type;
        NbdsErrorCode code;
    } rows[] = {
        {NBDS_CMD_READ, NBDS_EINVAL},  {NBDS_CMD_TRIM, NBDS_EINVAL},
        {NBDS_CMD_CACHE, NBDS_EINVAL}, {NBDS_CMD_BLOCK_STATUS, NBDS_EINVAL},
        {NBDS_CMD_WRITE, NBDS_ENOSPC}, {NBDS_CMD_WRITE_ZEROES, NBDS_ENOSPC},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (NbdsStyle style = NBDS_STYLE_SIMPLE; style <= NBDS_STYLE_EXTENDED; style++) {
            uint16_t flags = style == NBDS_STYLE_EXTENDED && rows[i].type == NBDS_CMD_WRITE
                                 ? NBDS_CMD_FLAG_PAYLOAD_LEN
                                 : 0;
            assert_refuses(check(style, rows[i].type, flags, SIZE, 1), rows[i].code);
            assert_refuses(check(style, rows[i].type, flags, SIZE - 1, 2), rows[i].code);
            assert_refuses(check(style, rows[i].type, flags, UINT64_MAX, 1), rows[i].code);
            assert_refuses(check(style, rows[i].type, flags, UINT64_MAX - 1, 4096), rows[i].code);
            assert_executes(check(style, rows[i].type, flags, SIZE - 1, 1));
        }
    }
    assert_refuses(check(NBDS_STYLE_EXTENDED, NBDS_CMD_TRIM, 0, 2, UINT64_MAX), NBDS_EINVAL);
    assert_refuses(check(NBDS_STYLE_EXTENDED, NBDS_CMD_WRITE_ZEROES, 0, 1, UINT64_MAX),
                   NBDS_ENOSPC);
}

static void nothing_at_the_end_is_allowed_but_has_no_status(void **state)
{
    assert_executes(check(NBDS_STYLE_SIMPLE, NBDS_CMD_READ, 0, SIZE, 0));
    assert_executes(check(NBDS_STYLE_SIMPLE, NBDS_CMD_WRITE, 0, 0, 0));
    assert_executes(check(NBDS_STYLE_SIMPLE, NBDS_CMD_TRIM, 0, SIZE, 0));
    assert_refuses(check(NBDS_STYLE_STRUCTURED, NBDS_CMD_BLOCK_STATUS, 0, 0, 0), NBDS_EINVAL);
}

static void every_command_takes_fua(void **state)
{
    for (uint16_t type = 0; type <= NBDS_CMD_BLOCK_STATUS; type++) {
        if (type != NBDS_CMD_DISC)
            assert_executes(check(NBDS_STYLE_STRUCTURED, type, NBDS_CMD_FLAG_FUA, 0,
                                  type == NBDS_CMD_FLUSH ? 0 : 512));
    }
}

static void flags_of_other_commands_are_refused(void **state)
{
    static const struct {
        uint16_t type, own;
    } rows[] = {
        {NBDS_CMD_READ, NBDS_CMD_FLAG_DF},
        {NBDS_CMD_WRITE, 0},
        {NBDS_CMD_FLUSH, 0},
        {NBDS_CMD_TRIM, 0},
        {NBDS_CMD_CACHE, 0},
        {NBDS_CMD_WRITE_ZEROES, NBDS_CMD_FLAG_NO_HOLE | NBDS_CMD_FLAG_FAST_ZERO},
        {NBDS_CMD_BLOCK_STATUS, NBDS_CMD_FLAG_REQ_ONE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t length = rows[i].type == NBDS_CMD_FLUSH ? 0 : 512;
        for (unsigned bit = 1; bit < 16; bit++) {
            NbdsCheck c = check(NBDS_STYLE_STRUCTURED, rows[i].type, 1 << bit, 0, length);
            if (rows[i].own & (1 << bit)) {
                assert_executes(c);
            } else {
                assert_refuses(c, NBDS_EINVAL);
                assert_int_equal(c.payload_bytes, rows[i].type == NBDS_CMD_WRITE ? 512 : 0);
            }
        }
    }
    assert_refuses(check(NBDS_STYLE_SIMPLE, NBDS_CMD_READ, NBDS_CMD_FLAG_DF, 0, 512), NBDS_EINVAL);
}

static void oversized_reads_and_writes_are_answered(void **state)
{
    NbdsSession s = session(NBDS_STYLE_STRUCTURED);
    s.size_bytes = 1ull << 40;
    NbdsRequestHead head = {0, NBDS_CMD_READ, 1, 0, NBDS_MAX_PAYLOAD + 1};
    assert_refuses(nbds_request_check(&s, &head), NBDS_EOVERFLOW);
    head.type = NBDS_CMD_WRITE;
    NbdsCheck c = nbds_request_check(&s, &head);
    assert_refuses(c, NBDS_EINVAL);
    assert_int_equal(c.payload_bytes, NBDS_MAX_PAYLOAD + 1);
    head.length = UINT32_MAX; // 4 GiB to be dropped is abuse
    assert_int_equal(nbds_request_check(&s, &head).action, NBDS_ACTION_BREACH);
    head.length = NBDS_MAX_PAYLOAD;
    assert_executes(nbds_request_check(&s, &head));
    s.style = NBDS_STYLE_SIMPLE;
    head = (NbdsRequestHead){0, NBDS_CMD_READ, 1, 0, NBDS_MAX_PAYLOAD + 1};
    assert_refuses(nbds_request_check(&s, &head), NBDS_EINVAL);
}

static void trim_zeroes_and_status_may_be_larger_than_any_payload(void **state)
{
    NbdsSession s = session(NBDS_STYLE_EXTENDED);
    s.size_bytes = 1ull << 50;
    static const uint16_t types[] = {NBDS_CMD_TRIM, NBDS_CMD_WRITE_ZEROES, NBDS_CMD_BLOCK_STATUS,
                                     NBDS_CMD_CACHE};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        NbdsRequestHead head = {0, types[i], 1, 0, 1ull << 50};
        assert_executes(nbds_request_check(&s, &head));
    }
}

static void a_read_only_export_refuses_changes_and_skips_the_payload(void **state)
{
    NbdsSession s = session(NBDS_STYLE_SIMPLE);
    s.read_only = true;
    static const uint16_t types[] = {NBDS_CMD_WRITE, NBDS_CMD_TRIM, NBDS_CMD_WRITE_ZEROES};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        NbdsRequestHead head = {0, types[i], 1, 0, 512};
        NbdsCheck c = nbds_request_check(&s, &head);
        assert_refuses(c, NBDS_EPERM);
        assert_int_equal(c.payload_bytes, types[i] == NBDS_CMD_WRITE ? 512 : 0);
    }
    NbdsRequestHead flush = {0, NBDS_CMD_FLUSH, 1, 0, 0};
    assert_executes(nbds_request_check(&s, &flush));
}

static void unknown_commands_are_answered(void **state)
{
    for (unsigned type = NBDS_CMD_BLOCK_STATUS + 1; type <= UINT16_MAX; type++)
        assert_refuses(check(NBDS_STYLE_SIMPLE, type, 0, 0, 512), NBDS_EINVAL);
    NbdsCheck c = check(NBDS_STYLE_EXTENDED, 99, NBDS_CMD_FLAG_PAYLOAD_LEN, 0, 512);
    assert_refuses(c, NBDS_EINVAL);
    assert_int_equal(c.payload_bytes, 512);
}

static void flush_takes_no_range(void **state)
{
    assert_refuses(check(NBDS_STYLE_SIMPLE, NBDS_CMD_FLUSH, 0, 512, 0), NBDS_EINVAL);
    assert_refuses(check(NBDS_STYLE_SIMPLE, NBDS_CMD_FLUSH, 0, 0, 512), NBDS_EINVAL);
}

static void with_extended_headers_the_flag_decides_about_payload(void **state)
{
    NbdsCheck c = check(NBDS_STYLE_EXTENDED, NBDS_CMD_READ, NBDS_CMD_FLAG_PAYLOAD_LEN, 0, 512);
    assert_refuses(c, NBDS_EINVAL);
    assert_int_equal(c.payload_bytes, 512);
    c = check(NBDS_STYLE_EXTENDED, NBDS_CMD_READ, NBDS_CMD_FLAG_PAYLOAD_LEN, 0, 1ull << 40);
    assert_int_equal(c.action, NBDS_ACTION_BREACH);
    c = check(NBDS_STYLE_STRUCTURED, NBDS_CMD_READ, NBDS_CMD_FLAG_PAYLOAD_LEN, 0, 512);
    assert_refuses(c, NBDS_EINVAL);
    assert_int_equal(c.payload_bytes, 0);
}

static void a_write_has_its_payload_also_when_qemu_forgets_the_flag(void **state)
{
    NbdsCheck c = check(NBDS_STYLE_EXTENDED, NBDS_CMD_WRITE, 0, 0, 512);
    assert_executes(c);
    assert_int_equal(c.payload_bytes, 512);
    c = check(NBDS_STYLE_EXTENDED, NBDS_CMD_WRITE, NBDS_CMD_FLAG_PAYLOAD_LEN, 0, 512);
    assert_executes(c);
    assert_int_equal(c.payload_bytes, 512);
}

static void status_needs_a_negotiated_context(void **state)
{
    NbdsSession s = session(NBDS_STYLE_STRUCTURED);
    s.contexts = NULL;
    NbdsRequestHead head = {0, NBDS_CMD_BLOCK_STATUS, 1, 0, 512};
    assert_refuses(nbds_request_check(&s, &head), NBDS_EINVAL);
}

static NbdsCheck filter(uint64_t length, unsigned n, uint32_t a, uint32_t b, GPtrArray **selected)
{
    NbdsSession s = session(NBDS_STYLE_EXTENDED);
    uint8_t payload[16];
    nbds_wire_put_u64(payload, length);
    nbds_wire_put_u32(payload + 8, a);
    nbds_wire_put_u32(payload + 12, b);
    NbdsRequestHead head = {NBDS_CMD_FLAG_PAYLOAD_LEN, NBDS_CMD_BLOCK_STATUS, 1, 0, 8 + 4 * n};
    NbdsCheck c = nbds_request_check(&s, &head);
    if (c.action == NBDS_ACTION_EXECUTE) {
        assert_int_equal(c.payload_bytes, 8 + 4 * n);
        c = nbds_request_check_filter(&s, payload, c.payload_bytes, &head, selected);
        if (c.action == NBDS_ACTION_EXECUTE)
            assert_true(head.length == length);
    }
    return c;
}

static void a_status_payload_selects_contexts(void **state)
{
    uint32_t first = ((NbdsContext *)contexts->pdata[0])->id;
    uint32_t second = ((NbdsContext *)contexts->pdata[1])->id;
    {
        g_autoptr(GPtrArray) one = NULL;
        assert_executes(filter(512, 1, second, 0, &one));
        assert_int_equal(one->len, 1);
        assert_ptr_equal(one->pdata[0], contexts->pdata[1]);
    }
    g_autoptr(GPtrArray) both = NULL;
    assert_executes(filter(512, 2, second, first, &both));
    assert_int_equal(both->len, 2);
    assert_ptr_equal(both->pdata[0], contexts->pdata[0]); // in the session's order
    assert_ptr_equal(both->pdata[1], contexts->pdata[1]);
}

static void a_status_payload_that_selects_nothing_or_too_much_is_refused(void **state)
{
    GPtrArray *none = NULL;
    uint32_t id = ((NbdsContext *)contexts->pdata[0])->id;
    assert_refuses(filter(512, 0, 0, 0, &none), NBDS_EINVAL);
    assert_refuses(filter(512, 2, id, id, &none), NBDS_EINVAL);
    assert_refuses(filter(512, 1, 77, 0, &none), NBDS_EINVAL);
    assert_refuses(filter(512, 100, id, 0, &none), NBDS_EINVAL);
    assert_refuses(filter(SIZE + 1, 1, id, 0, &none), NBDS_EINVAL);
    assert_refuses(filter(UINT64_MAX, 1, id, 0, &none), NBDS_EINVAL);
    assert_refuses(filter(0, 1, id, 0, &none), NBDS_EINVAL);
    assert_null(none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_that_wrap_or_pass_the_end_are_refused),
        cmocka_unit_test(nothing_at_the_end_is_allowed_but_has_no_status),
        cmocka_unit_test(every_command_takes_fua),
        cmocka_unit_test(flags_of_other_commands_are_refused),
        cmocka_unit_test(oversized_reads_and_writes_are_answered),
        cmocka_unit_test(trim_zeroes_and_status_may_be_larger_than_any_payload),
        cmocka_unit_test(a_read_only_export_refuses_changes_and_skips_the_payload),
        cmocka_unit_test(unknown_commands_are_answered),
        cmocka_unit_test(flush_takes_no_range),
        cmocka_unit_test(with_extended_headers_the_flag_decides_about_payload),
        cmocka_unit_test(a_write_has_its_payload_also_when_qemu_forgets_the_flag),
        cmocka_unit_test(status_needs_a_negotiated_context),
        cmocka_unit_test(a_status_payload_selects_contexts),
        cmocka_unit_test(a_status_payload_that_selects_nothing_or_too_much_is_refused),
    };
    contexts = nbds_contexts_new(NULL);
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    g_ptr_array_unref(contexts);
    return result;
}
