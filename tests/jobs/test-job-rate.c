// SPDX-License-Identifier: LGPL-2.1-or-later
// How many bytes a second there were lately. Time is a number here.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "job-rate.h"

#define SECONDS(x) ((uint64_t)((x)*1e9))

static void nothing_counted_is_no_rate(void **state)
{
    JobRate rate = {0};
    assert_int_equal(job_rate_get(&rate, SECONDS(100)), 0);
    job_rate_count(&rate, SECONDS(100), 5);
    assert_int_equal(job_rate_get(&rate, SECONDS(100)), 0);
}

static void a_steady_rate_is_told_from_the_start(void **state)
{
    JobRate rate = {0};
    for (unsigned i = 0; i <= 300; i++) {
        uint64_t now_ns = SECONDS(1000.35) + SECONDS(0.1) * i;
        if (i >= 10)
            assert_in_range(job_rate_get(&rate, now_ns), 900, 1250);
        job_rate_count(&rate, now_ns, 100);
    }
}

static void what_was_before_the_last_seconds_does_not_count(void **state)
{
    JobRate rate = {0};
    for (unsigned i = 0; i < 100; i++)
        job_rate_count(&rate, SECONDS(10) + SECONDS(0.1) * i, 1000000);
    for (unsigned i = 0; i < 50; i++)
        job_rate_count(&rate, SECONDS(20) + SECONDS(0.1) * i, 100);
    assert_in_range(job_rate_get(&rate, SECONDS(25)), 900, 1300);
    assert_int_equal(job_rate_get(&rate, SECONDS(31)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_counted_is_no_rate),
        cmocka_unit_test(a_steady_rate_is_told_from_the_start),
        cmocka_unit_test(what_was_before_the_last_seconds_does_not_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
