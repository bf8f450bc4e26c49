// SPDX-License-Identifier: LGPL-2.1-or-later
// Values of drivers' options: what is taken, and what is refused.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/driver-option.h"

static const char *const colours[] = {"red", "green", NULL};
static const DriverOption members[] = {
    {.name = "deep", .type = DRIVER_OPTION_BOOL},
    {.name = "count", .type = DRIVER_OPTION_INT},
    {0},
};
static const DriverOption rule_members[] = {
    {.name = "event", .type = DRIVER_OPTION_ENUM, .values = colours, .is_required = true},
    {0},
};
static const DriverOption table[] = {
    {.name = "text", .type = DRIVER_OPTION_STR},
    {.name = "flag", .type = DRIVER_OPTION_BOOL},
    {.name = "number", .type = DRIVER_OPTION_INT},
    {.name = "colour", .type = DRIVER_OPTION_ENUM, .values = colours},
    {.name = "group", .type = DRIVER_OPTION_OBJECT, .members = members},
    {.name = "either", .type = DRIVER_OPTION_ENUM_OR_OBJECT, .values = colours, .members = members},
    {.name = "list", .type = DRIVER_OPTION_ARRAY, .members = members},
    {.name = "rules", .type = DRIVER_OPTION_ARRAY, .members = rule_members},
    {.name = "free", .type = DRIVER_OPTION_ANY},
    {0},
};

static const DriverOption *option(const char *name)
{
    return driver_option_find(table, name, strlen(name));
}

static void assert_takes(const char *name, const char *value, const char *expected)
{
    g_autoptr(GError) error = NULL;
    json_t *given = json_loads(value, JSON_DECODE_ANY, NULL);
    json_t *taken = driver_option_take(option(name), given, &error);
    if (!taken)
        fail_msg("%s: %s", value, error->message);
    char *text = json_dumps(taken, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(text, expected);
    free(text);
    json_decref(taken);
    json_decref(given);
}

static void assert_refuses(const char *name, const char *value, const char *word)
{
    g_autoptr(GError) error = NULL;
    json_t *given = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_null(driver_option_take(option(name), given, &error));
    if (!strstr(error->message, word))
        fail_msg("'%s' does not speak of '%s'", error->message, word);
    json_decref(given);
}

static void numbers_and_flags_may_come_as_text(void **state)
{
    assert_takes("number", "7", "7");
    assert_takes("number", "\"64k\"", "65536");
    assert_takes("number", "\"9223372036854775807\"", "9223372036854775807");
    assert_takes("flag", "\"on\"", "true");
    assert_takes("flag", "\"off\"", "false");
    assert_takes("flag", "true", "true");
    assert_takes("text", "\"on\"", "\"on\"");
}

static void what_an_option_cannot_be_is_refused(void **state)
{
    assert_takes("rules", "[{\"event\": \"red\"}]", "[{\"event\":\"red\"}]");
    assert_refuses("rules", "[{}]", "\"rules\" has no \"event\"");
    assert_refuses("number", "-1", "Value '-1' is out of range for parameter 'number'");
    assert_refuses("number", "\"1Q\"", "\"number\"");
    assert_refuses("number", "\"8388608T\"", "\"number\"");
    assert_refuses("number", "\"\"", "\"number\"");
    assert_refuses("number", "\"-1\"", "\"number\"");
    assert_refuses("flag", "1", "\"flag\"");
    assert_refuses("flag", "\"yes\"", "\"flag\"");
    assert_refuses("text", "1", "\"text\" is not a string");
    assert_refuses("colour", "\"blue\"", "\"colour\"");
    assert_refuses("colour", "{}", "\"colour\"");
    assert_refuses("group", "\"red\"", "\"group\" is not an object");
    assert_refuses("group", "{\"other\":1}", "'group.other'");
    assert_refuses("group", "{\"count\":true}", "\"count\"");
    assert_refuses("list", "[1]", "\"list\"");
    assert_refuses("list", "[{\"count\":1},{\"other\":1}]", "'list.other'");
}

static void members_are_taken_like_options(void **state)
{
    assert_takes("colour", "\"green\"", "\"green\"");
    assert_takes("group", "{\"deep\":\"on\",\"count\":\"1k\"}", "{\"count\":1024,\"deep\":true}");
    assert_takes("either", "\"red\"", "\"red\"");
    assert_takes("either", "{\"deep\":false}", "{\"deep\":false}");
    assert_takes("list", "[{\"count\":\"2\"},{}]", "[{\"count\":2},{}]");
    assert_takes("free", "{\"any\":[null]}", "{\"any\":[null]}");
}

static void values_are_read_by_their_path(void **state)
{
    json_t *values = json_loads("{\"group\":{\"deep\":true},\"number\":5,\"text\":\"t\"}", 0, NULL);
    assert_true(driver_value_bool(values, "group.deep", false));
    assert_false(driver_value_bool(values, "group.other", false));
    assert_true(driver_value_bool(values, "none.deep", true));
    assert_int_equal(driver_value_int(values, "number", 1), 5);
    assert_int_equal(driver_value_int(values, "none", 1), 1);
    assert_string_equal(driver_value_str(values, "text", NULL), "t");
    assert_null(driver_value_str(values, "none", NULL));
    assert_int_equal(driver_value_int(NULL, "number", 3), 3);
    json_decref(values);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_and_flags_may_come_as_text),
        cmocka_unit_test(what_an_option_cannot_be_is_refused),
        cmocka_unit_test(members_are_taken_like_options),
        cmocka_unit_test(values_are_read_by_their_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
