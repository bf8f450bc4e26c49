// SPDX-License-Identifier: LGPL-2.1-or-later
// Warm maps: what was added is covered, nothing else is, and size is bounded.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/warm-map.h"

static const uint64_t MIB = 1 << 20;

static void what_was_added_is_covered_and_its_neighbours_are_not(void **state)
{
    WarmMap m;
    warm_map_init(&m, 100 * MIB);
    assert_false(warm_map_covers(&m, 0, 1));
    warm_map_add(&m, 63 * MIB + 5, 2 * MIB); // parts 63, 64 and 65
    assert_true(warm_map_covers(&m, 63 * MIB, 3 * MIB));
    assert_true(warm_map_covers(&m, 65 * MIB + MIB - 1, 1));
    assert_false(warm_map_covers(&m, 62 * MIB, 1));
    assert_false(warm_map_covers(&m, 66 * MIB, 1));
    assert_false(warm_map_covers(&m, 62 * MIB, 2 * MIB));
    warm_map_done(&m);
}

static void forgetting_leaves_nothing(void **state)
{
    WarmMap m;
    warm_map_init(&m, 100 * MIB);
    warm_map_forget(&m);
    warm_map_add(&m, 0, 100 * MIB);
    warm_map_forget(&m);
    for (uint64_t i = 0; i < 100; i++)
        assert_false(warm_map_covers(&m, i * MIB, 1));
    warm_map_add(&m, 7 * MIB, 1);
    assert_true(warm_map_covers(&m, 7 * MIB, 1));
    warm_map_done(&m);
}

static void a_file_may_grow(void **state)
{
    WarmMap m;
    warm_map_init(&m, 0);
    warm_map_add(&m, 0, 1);
    for (uint64_t i = 1; i < 3000; i *= 3) {
        assert_false(warm_map_covers(&m, i * MIB, 1));
        warm_map_add(&m, i * MIB, 1);
        assert_true(warm_map_covers(&m, i * MIB, 1));
        assert_true(warm_map_covers(&m, 0, 1));
    }
    warm_map_done(&m);
}

static void a_huge_file_costs_a_bounded_map(void **state)
{
    WarmMap m;
    uint64_t size = INT64_MAX;
    warm_map_init(&m, size);
    warm_map_add(&m, size - 1, 1);
    assert_true(warm_map_covers(&m, size - 1, 1));
    assert_in_range(m.n_parts, 1, 2 << 20);
    warm_map_done(&m);
    warm_map_init(&m, 0); // and one that became huge
    warm_map_add(&m, size - 1, 1);
    assert_false(warm_map_covers(&m, size - 1, 1));
    assert_int_equal(m.n_parts, 0);
    warm_map_done(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_added_is_covered_and_its_neighbours_are_not),
        cmocka_unit_test(forgetting_leaves_nothing),
        cmocka_unit_test(a_file_may_grow),
        cmocka_unit_test(a_huge_file_costs_a_bounded_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
