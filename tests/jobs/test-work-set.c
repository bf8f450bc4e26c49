// SPDX-License-Identifier: LGPL-2.1-or-later
// Work sets against a plain array.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>
#include <glib.h>

#include "work-set.h"

enum { GRANULE = 512, N_GRANULES = 300, SIZE = N_GRANULES * GRANULE - 100 };

static void assert_same(const WorkSet *set, const uint8_t *plain)
{
    uint64_t data = 0;
    bool any = false;
    for (unsigned i = 0; i < N_GRANULES; i++) {
        any |= plain[i] != 0;
        assert_int_equal(work_set_has(set, (uint64_t)i * GRANULE), plain[i] != 0);
        if (plain[i] == 1 + WORK_DATA)
            data += MIN(GRANULE, SIZE - (uint64_t)i * GRANULE);
    }
    assert_int_equal(work_set_is_empty(set), !any);
    assert_int_equal(work_set_data_bytes(set), data);
}

static void change(WorkSet *set, uint8_t *plain, GRand *rand)
{
    uint64_t off = (uint64_t)g_rand_int_range(rand, 0, SIZE);
    uint64_t len = (uint64_t)g_rand_int_range(rand, 1, g_rand_boolean(rand) ? 2000 : SIZE);
    unsigned what = (unsigned)g_rand_int_range(rand, 0, 3);
    if (what < 2)
        work_set_add(set, (WorkKind)what, off, len);
    else
        work_set_remove(set, off, len);
    for (unsigned i = 0; i < N_GRANULES; i++) {
        uint64_t start = (uint64_t)i * GRANULE, end = MIN(start + GRANULE, SIZE);
        if (what < 2 && start < off + len && off < end)
            plain[i] = plain[i] == 1 + WORK_DATA ? plain[i] : (uint8_t)(1 + what);
        if (what == 2 && off <= start && end <= off + len)
            plain[i] = 0;
    }
}

static void random_changes_are_those_of_a_plain_array(void **state)
{
    GRand *rand = g_rand_new_with_seed(1);
    for (unsigned round = 0; round < 20; round++) {
        WorkSet *set = work_set_new(SIZE, 9);
        uint8_t plain[N_GRANULES] = {0};
        for (unsigned i = 0; i < 30; i++) {
            change(set, plain, rand);
            assert_same(set, plain);
        }
        work_set_free(set);
    }
    g_rand_free(rand);
}

static void work_is_found_in_order_round_and_round(void **state)
{
    WorkSet *set = work_set_new(SIZE, 9);
    WorkKind kind;
    BitmapRun run;
    assert_false(work_set_next(set, &kind, &run));
    work_set_add(set, WORK_DATA, 10 * GRANULE, 1);
    work_set_add(set, WORK_METADATA, 0, SIZE);
    assert_true(work_set_next(set, &kind, &run));
    assert_int_equal(kind, WORK_METADATA);
    assert_int_equal(run.off, 0);
    assert_int_equal(run.len, 10 * GRANULE);
    work_set_go_on(set, run.len);
    assert_true(work_set_next(set, &kind, &run));
    assert_int_equal(kind, WORK_DATA);
    assert_int_equal(run.off, 10 * GRANULE);
    assert_int_equal(run.len, GRANULE);
    work_set_go_on(set, SIZE);
    assert_true(work_set_next(set, &kind, &run));
    assert_int_equal(run.off, 0);
    work_set_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_changes_are_those_of_a_plain_array),
        cmocka_unit_test(work_is_found_in_order_round_and_round),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
