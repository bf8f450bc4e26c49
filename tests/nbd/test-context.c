// SPDX-License-Identifier: LGPL-2.1-or-later
// Which contexts there are, how queries select them, what they say of extents, and lists of
// extents.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "chain-core/dirty-bitmap.h"
#include "context-node.h"
#include "contexts.h"

// The names that `query` selects, with a space behind each.
static char *match(const char *query, bool wildcards)
{
    g_autoptr(GPtrArray) contexts = nbds_contexts_new(NULL);
    static const NbdsContextKind kind;
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *name = g_strdup_printf("qemu:dirty-bitmap:b%u", i);
        nbds_context_init(g_new0(NbdsContext, 1), &kind, name, contexts);
    }
    g_autofree bool *marks = g_new0(bool, contexts->len);
    nbds_context_match(contexts, (const uint8_t *)query, strlen(query), wildcards, marks);
    g_autoptr(GPtrArray) selected = nbds_context_select(contexts, marks);
    GString *names = g_string_new(NULL);
    for (unsigned i = 0; i < selected->len; i++)
        g_string_append_printf(names, "%s ", ((NbdsContext *)selected->pdata[i])->name);
    return g_string_free(names, false);
}

static void assert_matches(const char *query, bool wildcards, const char *names)
{
    g_autofree char *matched = match(query, wildcards);
    assert_string_equal(matched, names);
}

static void exact_names_select_one_context(void **state)
{
    for (int wildcards = 0; wildcards < 2; wildcards++) {
        assert_matches("base:allocation", wildcards, "base:allocation ");
        assert_matches("qemu:allocation-depth", wildcards, "qemu:allocation-depth ");
        assert_matches("qemu:dirty-bitmap:b1", wildcards, "qemu:dirty-bitmap:b1 ");
    }
}

static void an_empty_leaf_is_a_wildcard_for_list_only(void **state)
{
    assert_matches("base:", true, "base:allocation ");
    assert_matches("qemu:dirty-bitmap:", true,
                   "qemu:dirty-bitmap:b0 qemu:dirty-bitmap:b1 qemu:dirty-bitmap:b2 ");
    assert_matches("qemu:", true,
                   "qemu:allocation-depth "
                   "qemu:dirty-bitmap:b0 qemu:dirty-bitmap:b1 qemu:dirty-bitmap:b2 ");
    assert_matches("base:", false, "");
    assert_matches("qemu:dirty-bitmap:", false, "");
}

static void unknown_queries_select_nothing(void **state)
{
    static const char *const queries[] = {
        "", "base", "base:alloc", "x-other:", "base:allocation ", ":", "qemu:dirty-bitmap:b"};
    for (size_t i = 0; i < sizeof queries / sizeof queries[0]; i++)
        assert_matches(queries[i], true, "");
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
        assert_int_equal(nbds_context_allocation_flags(&extent), rows[i].allocation);
        assert_int_equal(nbds_context_depth_flags(&extent), rows[i].allocation_depth);
    }
}

static void data_that_the_host_does_not_store_is_zero_but_no_hole(void **state)
{
    NodeExtent extent = {.len = 1, .kind = NODE_EXTENT_DATA, .is_host_hole = true};
    assert_int_equal(nbds_context_allocation_flags(&extent), 2);
    assert_int_equal(nbds_context_depth_flags(&extent), 1);
}

static DirtyBitmap *add_bitmap(Node *node, const char *name, uint32_t granularity_bits)
{
    DirtyBitmapSpec spec = {.name = name, .node_name = "n", .granularity_bits = granularity_bits};
    DirtyBitmap *bitmap;
    assert_int_equal(dirty_bitmap_add(node, &spec, &bitmap, NULL), 0);
    return bitmap;
}

static void set_bits(DirtyBitmap *bitmap, uint64_t off, uint64_t len)
{
    bitmap_set((Bitmap *)dirty_bitmap_bits(bitmap), off, len);
}

static bool is_busy(const DirtyBitmap *bitmap)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(bitmap, &info);
    return info.is_busy;
}

static void dirty_bitmaps_tell_their_granules(void **state)
{
    static const NodeOps ops = {.driver = "none"};
    Node *node = g_new0(Node, 1);
    node_init(node, &ops, NULL, "n", 1 << 20);
    DirtyBitmap *fine = add_bitmap(node, "fine", 12), *coarse = add_bitmap(node, "coarse", 16);
    set_bits(fine, 8192, 1);
    set_bits(coarse, 65536, 65536 + 1);
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new();
    g_ptr_array_add(bitmaps, fine);
    g_ptr_array_add(bitmaps, coarse);
    NbdsExportConfig config = {.name = "", .node = node, .bitmaps = bitmaps};
    g_autoptr(GPtrArray) contexts = nbds_contexts_new(&config);
    NbdsContext **two = (NbdsContext **)contexts->pdata + contexts->len - 2;
    assert_string_equal(two[1]->name, "qemu:dirty-bitmap:coarse");
    assert_true(is_busy(fine) && is_busy(coarse));

    NbdsExtentList lists[2];
    nbds_extent_list_init(&lists[0], 10);
    nbds_extent_list_init(&lists[1], 2);
    NbdsWalk walk = {4096, (1 << 20) + 512, two, lists, 2}; // into the padding
    assert_int_equal(two[0]->kind->walk(NULL, node, &walk), 0);
    assert_int_equal(lists[0].n_extents, 3);
    assert_int_equal(lists[0].extents[0].length, 4096);
    assert_int_equal(lists[0].extents[1].length, 4096);
    assert_int_equal(lists[0].extents[1].flags, 1);
    assert_int_equal(lists[0].extents[2].length, (1 << 20) + 512 - 8192 - 4096);
    assert_int_equal(lists[1].n_extents, 2);
    assert_int_equal(lists[1].extents[1].length, 2 * 65536);
    assert_int_equal(lists[1].extents[1].flags, 1);
    nbds_extent_list_done(&lists[0]);
    nbds_extent_list_done(&lists[1]);
    nbds_contexts_release(NULL, contexts);
    assert_false(is_busy(fine) || is_busy(coarse));
    node_unref_close(NULL, node);
}

static void the_depth_is_told_only_where_it_is_wanted(void **state)
{
    for (int is_wanted = 0; is_wanted < 2; is_wanted++) {
        NbdsExportConfig config = {.name = "", .allocation_depth = is_wanted};
        g_autoptr(GPtrArray) contexts = nbds_contexts_new(&config);
        assert_int_equal(contexts->len, 1 + is_wanted);
        NbdsContext **all = (NbdsContext **)contexts->pdata;
        assert_string_equal(all[0]->name, "base:allocation");
        assert_string_equal(all[is_wanted]->name,
                            is_wanted ? "qemu:allocation-depth" : "base:allocation");
    }
}

static void ids_are_different_and_not_zero(void **state)
{
    g_autoptr(GPtrArray) contexts = nbds_contexts_new(NULL);
    for (unsigned i = 0; i < contexts->len; i++) {
        const NbdsContext *a = contexts->pdata[i];
        assert_int_not_equal(a->id, 0);
        for (unsigned j = 0; j < i; j++)
            assert_int_not_equal(a->id, ((const NbdsContext *)contexts->pdata[j])->id);
    }
}

static void equal_neighbours_become_one(void **state)
{
    NbdsExtentList list;
    nbds_extent_list_init(&list, 2);
    assert_true(nbds_extent_list_add(&list, 10, 3));
    assert_true(nbds_extent_list_add(&list, 20, 3));
    assert_true(nbds_extent_list_add(&list, 5, 0));
    assert_false(nbds_extent_list_add(&list, 5, 3));
    assert_false(nbds_extent_list_add(&list, 5, 0)); // there would be a gap before it
    assert_int_equal(list.n_extents, 2);
    assert_int_equal(list.extents[0].length, 30);
    assert_int_equal(list.extents[1].length, 5);
    nbds_extent_list_done(&list);
}

static void lists_grow_up_to_their_bound(void **state)
{
    enum { MAX = 5000 };
    NbdsExtentList list;
    nbds_extent_list_init(&list, MAX);
    for (unsigned i = 0; i < MAX; i++)
        assert_true(nbds_extent_list_add(&list, i + 1, i % 2));
    assert_false(nbds_extent_list_add(&list, 1, MAX % 2));
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
        cmocka_unit_test(dirty_bitmaps_tell_their_granules),
        cmocka_unit_test(the_depth_is_told_only_where_it_is_wanted),
        cmocka_unit_test(ids_are_different_and_not_zero),
        cmocka_unit_test(equal_neighbours_become_one),
        cmocka_unit_test(lists_grow_up_to_their_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
