// SPDX-License-Identifier: LGPL-2.1-or-later
// When a receive waits for the peer to read, and the send buffers this asks for.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/backlog.h"

// The peer has `unread` bytes to read whenever somebody looks. What the kernel is asked for, it
// gives up to `most_buffer`.
static Backlog after_looks(uint32_t unread, uint32_t most_buffer)
{
    Backlog b = {.buffer_bytes = BACKLOG_MAX_BUFFER, .asked_bytes = BACKLOG_MAX_BUFFER};
    b.buffer_bytes = MIN(b.buffer_bytes, most_buffer);
    for (unsigned i = 0; i < 3 * BACKLOG_WINDOW * (BACKLOG_SAMPLE + 1); i++) {
        backlog_sent(&b, BACKLOG_WORTH_A_LOOK);
        if (!backlog_shall_look(&b))
            continue;
        backlog_learn(&b, unread, 0);
        uint32_t better = backlog_better_buffer(&b);
        if (better)
            b.buffer_bytes = MIN(better, most_buffer);
    }
    b.n_backed_off = 0;
    return b;
}

static void a_peer_with_much_to_read_is_left_to_read_half_of_it(void **state)
{
    for (uint32_t unread = BACKLOG_MIN_BUFFER / 2; unread <= BACKLOG_MAX_BUFFER / 2;
         unread += 4099) {
        Backlog b = after_looks(unread, BACKLOG_MAX_BUFFER);
        assert_in_range(b.buffer_bytes, BACKLOG_MIN_BUFFER, BACKLOG_MAX_BUFFER);
        assert_in_range(backlog_low_water(&b), unread / 9 * 4, unread / 7 * 4 + 4);
        assert_true(backlog_learn(&b, unread, 0));
        assert_true(backlog_learn(&b, backlog_low_water(&b) + 1, 0));
        assert_false(backlog_learn(&b, backlog_low_water(&b), 0));
    }
}

static void a_peer_with_little_to_read_is_not_and_the_buffer_stays_large(void **state)
{
    Backlog b = after_looks(BACKLOG_MIN_BUFFER / 2 - 2, BACKLOG_MAX_BUFFER);
    assert_false(backlog_learn(&b, BACKLOG_MIN_BUFFER / 2 - 2, 0));
    assert_int_equal(b.buffer_bytes, BACKLOG_MAX_BUFFER);
}

static void much_more_than_buffers_hold_is_still_coalesced(void **state)
{
    Backlog b = after_looks(8 * BACKLOG_MAX_BUFFER, BACKLOG_MAX_BUFFER);
    assert_int_equal(b.buffer_bytes, BACKLOG_MAX_BUFFER);
    assert_true(backlog_learn(&b, BACKLOG_MAX_BUFFER, 0));
}

static void a_kernel_that_gives_less_than_was_asked_is_not_asked_again(void **state)
{
    Backlog b = after_looks(BACKLOG_MAX_BUFFER / 2, 200000);
    assert_int_equal(b.buffer_bytes, 200000);
    for (unsigned i = 0; i < 2 * BACKLOG_WINDOW; i++) {
        assert_true(backlog_learn(&b, BACKLOG_MAX_BUFFER / 2, 0));
        assert_int_equal(backlog_better_buffer(&b), 0);
    }
}

static void what_is_about_to_be_sent_counts_as_the_peers_to_read(void **state)
{
    Backlog b = {.buffer_bytes = BACKLOG_MAX_BUFFER, .asked_bytes = BACKLOG_MAX_BUFFER};
    for (unsigned i = 0; i < BACKLOG_WINDOW; i++)
        backlog_learn(&b, 60000, 40000);
    assert_int_equal(backlog_better_buffer(&b), 200000);
}

static void looks_are_rare_where_waiting_is_unlikely(void **state)
{
    Backlog b = {.buffer_bytes = BACKLOG_MAX_BUFFER, .asked_bytes = BACKLOG_MAX_BUFFER};
    unsigned n = 0;
    for (unsigned i = 0; i < 10000; i++) { // small answers, read at once
        backlog_sent(&b, 16);
        if (backlog_shall_look(&b)) {
            n++;
            backlog_learn(&b, 0, 16);
        }
    }
    assert_in_range(n, 1, 10000 / (BACKLOG_WORTH_A_LOOK / BACKLOG_LEAST_SENT));
    Backlog silent = {0};
    backlog_sent(&silent, BACKLOG_MAX_BUFFER);
    assert_false(backlog_shall_look(&silent));
}

static void a_wait_in_vain_is_not_repeated_soon(void **state)
{
    Backlog b = after_looks(BACKLOG_MAX_BUFFER / 2, BACKLOG_MAX_BUFFER);
    backlog_timed_out(&b);
    for (unsigned i = 0; i < BACKLOG_BACK_OFF; i++) {
        backlog_sent(&b, BACKLOG_MAX_BUFFER);
        assert_false(backlog_shall_look(&b));
    }
    assert_true(backlog_shall_look(&b));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_peer_with_much_to_read_is_left_to_read_half_of_it),
        cmocka_unit_test(a_peer_with_little_to_read_is_not_and_the_buffer_stays_large),
        cmocka_unit_test(much_more_than_buffers_hold_is_still_coalesced),
        cmocka_unit_test(a_kernel_that_gives_less_than_was_asked_is_not_asked_again),
        cmocka_unit_test(what_is_about_to_be_sent_counts_as_the_peers_to_read),
        cmocka_unit_test(looks_are_rare_where_waiting_is_unlikely),
        cmocka_unit_test(a_wait_in_vain_is_not_repeated_soon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
