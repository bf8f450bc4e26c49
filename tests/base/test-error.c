// SPDX-License-Identifier: LGPL-2.1-or-later
// Messages stay one line of valid UTF-8, whatever a name in them contains.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/error.h"

static void assert_message(const char *name, const char *expected)
{
    g_autoptr(GError) error = NULL;
    assert_int_equal(error_set(&error, -EINVAL, "no '%s'", name), -EINVAL);
    assert_string_equal(error->message, expected);
    assert_true(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_INVAL));
}

static void names_are_shown_as_they_are_where_that_is_safe(void **state)
{
    assert_message("disk \303\244.qcow2", "no 'disk \303\244.qcow2'");
    assert_message("100%s", "no '100%s'");
}

static void control_characters_are_escaped(void **state)
{
    assert_message("a\nb\033[2J", "no 'a\\012b\\033[2J'");
}

static void broken_utf8_is_replaced(void **state)
{
    assert_message("a\377b", "no 'a\357\277\275b'");
    assert_message("a\303", "no 'a\357\277\275'");
}

static void without_a_place_for_the_message_the_number_is_enough(void **state)
{
    assert_int_equal(error_set(NULL, -ENOMEM, "%d", 1), -ENOMEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_shown_as_they_are_where_that_is_safe),
        cmocka_unit_test(control_characters_are_escaped),
        cmocka_unit_test(broken_utf8_is_replaced),
        cmocka_unit_test(without_a_place_for_the_message_the_number_is_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
