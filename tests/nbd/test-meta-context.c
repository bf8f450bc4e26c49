// SPDX-License-Identifier: LGPL-2.1-or-later
// Queries for metadata contexts, what contexts say of extents, and lists of extents.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "meta-context.h"

static NbdsContextSet match(const char *query, bool wildcards)
{
    return nbds_context_match((const uint8_t *)query, strlen(query), wildcards);
}

static void exact_names_select_one_context(void **state)
{
    for (int wildcards = 0; wildcards < 2; wildcards++) {
        assert_int_equal(match("base:allocation", wildcards), 1 << NBDS_CONTEXT_ALLOCATION);
        assert_int_equal(match("qemu:allocation-depth", wildcards), 1 << NBDS_CONTEXT_DEPTH);
    }
}

static void an_empty_leaf_is_a_wildcard_for_list_only(void **state)
{
    assert_int_equal(match("base:", true), 1 << NBDS_CONTEXT_ALLOCATION);
    assert_int_equal(match("qemu:", true), 1 << NBDS_CONTEXT_DEPTH);
    assert_int_equal(match("base:", false), 0);
    assert_int_equal(match("qemu:", false), 0);
}

static void unknown_queries_select_nothing(void **state)
{
    static const char *const queries[] = {
        "", "base", "base:alloc", "x-other:", "base:allocation ", ":", "qemu:dirty-bitmap:b0"};
    for (size_t i = 0; i < sizeof queries / sizeof queries[0]; i++)
        assert_int_equal(match(queries[i], true), 0);
}

static void flags_tell_holes_zeros_and_depth(void **state)
{
    static const struct {
        NodeExtentKind kind;
        uint32_t depth;
        uint64_t allocation, allocation_depth;
    } rows[] = {
        {NODE_EXTENT_BELOW, 0, 3, 0}, {NODE_EXTENT_ZERO, 0, 3, 1},
        {NODE_EXTENT_ZERO, 4, 3, 5},  {NODE_EXTENT_ZERO_ALLOCATED, 1, 3, 2},
        {NODE_EXTENT_DATA, 0, 0, 1},  {NODE_EXTENT_OPAQUE, 2, 0, 3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        NodeExtent extent = {.len = 1, .kind = rows[i].kind, .depth = rows[i].depth};
        assert_int_equal(nbds_context_flags(NBDS_CONTEXT_ALLOCATION, &extent), rows[i].allocation);
        assert_int_equal(nbds_context_flags(NBDS_CONTEXT_DEPTH, &extent), rows[i].allocation_depth);
    }
}

static void data_that_the_host_does_not_store_is_zero_but_no_hole(void **state)
{
    NodeExtent extent = {.len = 1, .kind = NODE_EXTENT_DATA, .is_host_hole = true};
    assert_int_equal(nbds_context_flags(NBDS_CONTEXT_ALLOCATION, &extent), 2);
    assert_int_equal(nbds_context_flags(NBDS_CONTEXT_DEPTH, &extent), 1);
}

static void ids_round_trip(void **state)
{
    for (unsigned i = 0; i < NBDS_N_CONTEXTS; i++)
        assert_int_equal(nbds_context_from_id(nbds_context_id(i)), 1 << i);
    assert_int_equal(nbds_context_from_id(0), 0);
    assert_int_equal(nbds_context_from_id(NBDS_N_CONTEXTS + 1), 0);
    assert_int_equal(nbds_context_from_id(UINT32_MAX), 0);
}

static void equal_neighbours_become_one(void **state)
{
    NbdsExtentList list = {0};
    assert_true(nbds_extent_list_add(&list, 10, 3, 2));
    assert_true(nbds_extent_list_add(&list, 20, 3, 2));
    assert_true(nbds_extent_list_add(&list, 5, 0, 2));
    assert_false(nbds_extent_list_add(&list, 5, 3, 2));
    assert_int_equal(list.n_extents, 2);
    assert_int_equal(list.extents[0].length, 30);
    assert_int_equal(list.extents[1].length, 5);
    nbds_extent_list_done(&list);
}

static void lists_grow_up_to_their_bound(void **state)
{
    enum { MAX = 5000 };
    NbdsExtentList list = {0};
    for (unsigned i = 0; i < MAX; i++)
        assert_true(nbds_extent_list_add(&list, i + 1, i % 2, MAX));
    assert_false(nbds_extent_list_add(&list, 1, MAX % 2, MAX));
    assert_int_equal(list.n_extents, MAX);
    for (unsigned i = 0; i < MAX; i++) {
        assert_int_equal(list.extents[i].length, i + 1);
        assert_int_equal(list.extents[i].flags, i % 2);
    }
    nbds_extent_list_done(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_names_select_one_context),
        cmocka_unit_test(an_empty_leaf_is_a_wildcard_for_list_only),
        cmocka_unit_test(unknown_queries_select_nothing),
        cmocka_unit_test(flags_tell_holes_zeros_and_depth),
        cmocka_unit_test(data_that_the_host_does_not_store_is_zero_but_no_hole),
        cmocka_unit_test(ids_round_trip),
        cmocka_unit_test(equal_neighbours_become_one),
        cmocka_unit_test(lists_grow_up_to_their_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
