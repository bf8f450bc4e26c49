// SPDX-License-Identifier: LGPL-2.1-or-later
// Who gets along with whom on one node, and the words for what is in the way.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "chain-core/node-perm.h"

// What each of two users may not do because of the other.
static unsigned conflict(NodeUser a, bool a_writes, NodeUser b, bool b_writes)
{
    NodePerms x = node_perms_of(a, a_writes), y = node_perms_of(b, b_writes);
    return node_perms_conflict(x, y) | node_perms_conflict(y, x);
}

static void readers_get_along(void **state)
{
    for (NodeUser a = NODE_USER_OUTSIDE; a <= NODE_USER_SNAPSHOT; a++)
        for (NodeUser b = NODE_USER_OUTSIDE; b <= NODE_USER_SNAPSHOT; b++)
            assert_int_equal(conflict(a, false, b, false), 0);
}

static void nobody_writes_below_an_overlay(void **state)
{
    assert_int_equal(conflict(NODE_USER_OUTSIDE, true, NODE_USER_BACKING, false), NODE_PERM_WRITE);
    assert_int_equal(conflict(NODE_USER_FILTER, true, NODE_USER_BACKING, false), NODE_PERM_WRITE);
    assert_int_equal(conflict(NODE_USER_FORMAT, true, NODE_USER_BACKING, false),
                     NODE_PERM_WRITE | NODE_PERM_RESIZE);
}

static void an_images_file_has_one_writer(void **state)
{
    assert_int_equal(conflict(NODE_USER_FORMAT, true, NODE_USER_FORMAT, true),
                     NODE_PERM_WRITE | NODE_PERM_RESIZE);
    assert_int_equal(conflict(NODE_USER_FORMAT, true, NODE_USER_FORMAT, false),
                     NODE_PERM_WRITE | NODE_PERM_RESIZE);
    assert_int_equal(conflict(NODE_USER_OUTSIDE, true, NODE_USER_FORMAT, true), NODE_PERM_WRITE);
}

static void writers_from_outside_share_a_node(void **state)
{
    assert_int_equal(conflict(NODE_USER_OUTSIDE, true, NODE_USER_OUTSIDE, true), 0);
    assert_int_equal(conflict(NODE_USER_OUTSIDE, true, NODE_USER_SNAPSHOT, false), 0);
}

static void filling_a_layer_is_allowed_where_writing_is_not(void **state)
{
    NodePerms fill = {NODE_PERM_WRITE_UNCHANGED, NODE_PERM_ALL};
    assert_int_equal(node_perms_conflict(fill, node_perms_of(NODE_USER_BACKING, false)), 0);
}

static void permissions_have_words(void **state)
{
    g_autofree char *none = node_perms_text(0);
    g_autofree char *some = node_perms_text(NODE_PERM_CONSISTENT_READ | NODE_PERM_RESIZE);
    assert_string_equal(none, "none");
    assert_string_equal(some, "consistent read, resize");
    assert_string_equal(node_perm_name(NODE_PERM_WRITE_UNCHANGED), "write-unchanged");
    assert_null(node_perm_name(NODE_PERM_ALL + 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_get_along),
        cmocka_unit_test(nobody_writes_below_an_overlay),
        cmocka_unit_test(an_images_file_has_one_writer),
        cmocka_unit_test(writers_from_outside_share_a_node),
        cmocka_unit_test(filling_a_layer_is_allowed_where_writing_is_not),
        cmocka_unit_test(permissions_have_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
