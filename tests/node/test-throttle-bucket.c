// SPDX-License-Identifier: LGPL-2.1-or-later
// Leaky buckets: rates, bursts and their lengths, what a long request counts as, and limits that
// make no sense.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "node/throttle-bucket.h"

#define SECOND UINT64_C(1000000000)

static ThrottleLimits none(void)
{
    ThrottleLimits limits;
    throttle_limits_init(&limits);
    return limits;
}

// How many requests go on until `seconds` have passed, when there is always another one.
static unsigned count(const ThrottleLimits *limits, bool is_write, uint64_t bytes, double seconds)
{
    ThrottleBuckets b;
    uint64_t now_ns = 5 * SECOND, end_ns = now_ns + (uint64_t)(seconds * (double)SECOND);
    unsigned n = 0;
    throttle_buckets_init(&b, limits, now_ns);
    for (;;) {
        uint64_t wait_ns = throttle_buckets_wait_ns(&b, is_write, now_ns);
        if (now_ns + wait_ns >= end_ns)
            return n;
        now_ns += wait_ns;
        throttle_buckets_add(&b, is_write, bytes);
        n++;
        now_ns += wait_ns ? 0 : 100; // for ever, without a limit
    }
}

static void the_average_holds_after_a_tenth_of_a_second(void **state)
{
    ThrottleLimits limits = none();
    limits.rates[THROTTLE_IOPS_TOTAL].average = 100;
    assert_in_range(count(&limits, false, 512, 10), 1005, 1015);
    limits = none();
    limits.rates[THROTTLE_BPS_WRITE].average = 1 << 20;
    assert_in_range(count(&limits, true, 4096, 4), 4 * 256 + 20, 4 * 256 + 30);
    assert_in_range(count(&limits, false, 4096, 0.01), 90000, 110000); // reads have no limit
}

static void a_burst_comes_first(void **state)
{
    ThrottleLimits limits = none();
    limits.rates[THROTTLE_IOPS_READ] = (ThrottleRate){100, 1000, 1};
    // A bucket of a second's burst at once, then the average.
    assert_in_range(count(&limits, false, 512, 0.5), 1000, 1060);
    assert_in_range(count(&limits, false, 512, 10), 1990, 2010);
    // For three seconds at the burst rate.
    limits.rates[THROTTLE_IOPS_READ].burst_s = 3;
    assert_in_range(count(&limits, false, 512, 1), 1090, 1110);
    assert_in_range(count(&limits, false, 512, 20), 4950, 5050);
}

static void a_long_request_counts_as_several(void **state)
{
    ThrottleLimits limits = none();
    limits.rates[THROTTLE_IOPS_TOTAL].average = 100;
    limits.request_bytes = 4096;
    assert_in_range(count(&limits, false, 4096, 10), 1005, 1015);
    assert_in_range(count(&limits, false, 65536, 10), 60, 66);
}

static void assert_refused(const ThrottleLimits *limits, const char *sentence)
{
    g_autoptr(GError) error = NULL;
    assert_true(throttle_limits_check(limits, &error) < 0);
    assert_string_equal(error->message, sentence);
}

static void limits_that_make_no_sense_are_refused(void **state)
{
    ThrottleLimits l = none();
    assert_int_equal(throttle_limits_check(&l, NULL), 0);
    l.rates[THROTTLE_BPS_TOTAL].average = l.rates[THROTTLE_BPS_READ].average = 1;
    assert_refused(&l, "bps/iops/max total values and read/write values cannot be used at the same "
                       "time");
    l = none();
    l.request_bytes = 1;
    assert_refused(&l, "iops size requires an iops value to be set");
    l = none();
    l.rates[THROTTLE_IOPS_READ].burst = 5;
    assert_refused(&l, "bps_max/iops_max require corresponding bps/iops values");
    l.rates[THROTTLE_IOPS_READ].average = 6;
    assert_refused(&l, "bps_max/iops_max cannot be lower than bps/iops");
    l.rates[THROTTLE_IOPS_READ] = (ThrottleRate){6, 0, 2};
    assert_refused(&l, "burst length set without burst rate");
    l.rates[THROTTLE_IOPS_READ] = (ThrottleRate){6, 6, 0};
    assert_refused(&l, "the burst length cannot be 0");
    l.rates[THROTTLE_IOPS_READ] = (ThrottleRate){6, 6, UINT64_C(1) << 50};
    assert_refused(&l, "burst length too high for this burst rate");
    l.rates[THROTTLE_IOPS_READ] = (ThrottleRate){UINT64_C(1000000000000001), 0, 1};
    assert_refused(&l, "bps/iops/max values must be within [0, 1000000000000000]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_average_holds_after_a_tenth_of_a_second),
        cmocka_unit_test(a_burst_comes_first),
        cmocka_unit_test(a_long_request_counts_as_several),
        cmocka_unit_test(limits_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
