// SPDX-License-Identifier: LGPL-2.1-or-later
// Arguments of options: dotted keys, arrays, commas, implied keys, JSON; QEMU's words for what
// makes no sense.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/qmp/keyval.h"

static void assert_parsed(const char *text, const char *implied_key, const char *expected)
{
    QmpInput input;
    g_autoptr(GError) error = NULL;
    json_auto_t *value = qmp_keyval_parse(text, implied_key, &input, &error);
    assert_int_equal(value == NULL, error != NULL);
    char *got = value ? json_dumps(value, JSON_COMPACT) : NULL;
    assert_string_equal(value ? got : error->message, expected);
    assert_int_equal(input, *text == '{' ? QMP_INPUT_JSON : QMP_INPUT_KEYVAL);
    free(got);
}

static void dots_make_objects(void **state)
{
    assert_parsed("a=1,b.c=2,b.d.e=3", NULL,
                  "{\"a\":\"1\",\"b\":{\"c\":\"2\",\"d\":{\"e\":\"3\"}}}");
    assert_parsed("", NULL, "{}");
    assert_parsed("a=", NULL, "{\"a\":\"\"}");
    assert_parsed("a=x=y", NULL, "{\"a\":\"x=y\"}");
    assert_parsed("l2-cache-size=1,x_y=2", NULL, "{\"l2-cache-size\":\"1\",\"x_y\":\"2\"}");
}

static void the_first_word_may_be_a_value(void **state)
{
    assert_parsed("qcow2,node-name=a", "driver", "{\"driver\":\"qcow2\",\"node-name\":\"a\"}");
    assert_parsed("qcow2", "driver", "{\"driver\":\"qcow2\"}");
    assert_parsed("qcow2,raw", "driver", "Expected '=' after parameter 'raw'");
    assert_parsed("qcow2", NULL, "Expected '=' after parameter 'qcow2'");
}

static void a_comma_is_written_twice(void **state)
{
    assert_parsed("file=a,,b,c=d", NULL, "{\"file\":\"a,b\",\"c\":\"d\"}");
    assert_parsed("file=a,,", NULL, "{\"file\":\"a,\"}");
}

static void the_last_of_equal_keys_counts(void **state)
{
    assert_parsed("a=1,a=2", NULL, "{\"a\":\"2\"}");
}

static void numbers_from_0_make_arrays(void **state)
{
    assert_parsed("a.1=y,a.0=x,a.2.b=z", NULL, "{\"a\":[\"x\",\"y\",{\"b\":\"z\"}]}");
    assert_parsed("a.0.0=x", NULL, "{\"a\":[[\"x\"]]}");
    assert_parsed("a.0=x,a.10=c,a.1=b", NULL, "Parameter 'a.2' missing");
    assert_parsed("a.b.0=x,a.b.2=y", NULL, "Parameter 'a.b.1' missing");
    assert_parsed("a.0=x,a.b=y", NULL, "Parameters 'a.*' used inconsistently");
}

static void keys_that_make_no_sense_are_refused(void **state)
{
    assert_parsed("=5", NULL, "Invalid parameter ''");
    assert_parsed(".x=b", NULL, "Invalid parameter '.x'");
    assert_parsed("x..y=b", NULL, "Invalid parameter 'x..y'");
    assert_parsed("5=b", NULL, "Invalid parameter '5'");
    assert_parsed("a.1x=b", NULL, "Invalid parameter 'a.1x'");
    assert_parsed("a b=c", NULL, "Invalid parameter 'a b'");
    assert_parsed("a=1,a.b=2", NULL, "Parameters 'a.*' used inconsistently");
    assert_parsed("a.b=2,a=1", NULL, "Parameters 'a.*' used inconsistently");
    assert_parsed("a=\xff", NULL, "Parameter 'a' is not valid UTF-8");
    assert_parsed("a=1,,=2", NULL, "{\"a\":\"1,=2\"}");
    assert_parsed("a=1,b", NULL, "Expected '=' after parameter 'b'");
    g_autofree char *is_long = g_strnfill(128, 'x');
    g_autofree char *text = g_strconcat(is_long, "=1", NULL);
    g_autofree char *sentence = g_strdup_printf("Invalid parameter '%s'", is_long);
    assert_parsed(text, NULL, sentence);
}

static void braces_begin_json(void **state)
{
    assert_parsed("{\"a\":{\"b\":1}}", NULL, "{\"a\":{\"b\":1}}");
    assert_parsed("{'a':true} ", "driver", "{\"a\":true}");
    assert_parsed("{\"a\":1", NULL, "JSON parse error, expecting value");
    assert_parsed("{\"a\":1} {}", NULL, "JSON parse error, expecting value");
}

static void words_without_a_value_are_flags(void **state)
{
    static const char *const cases[][2] = {
        {"socket,id=c,path=a,server,nowait", "socket,id=c,path=a,server=on,wait=off"},
        {"socket,server=on,wait=off", "socket,server=on,wait=off"},
        {"socket,path=a,,b,server", "socket,path=a,,b,server=on"},
        {"stdio", "stdio"},
        {"", ""},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *expanded = qmp_keyval_expand(cases[i][0]);
        assert_string_equal(expanded, cases[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dots_make_objects),
        cmocka_unit_test(the_first_word_may_be_a_value),
        cmocka_unit_test(a_comma_is_written_twice),
        cmocka_unit_test(the_last_of_equal_keys_counts),
        cmocka_unit_test(numbers_from_0_make_arrays),
        cmocka_unit_test(keys_that_make_no_sense_are_refused),
        cmocka_unit_test(braces_begin_json),
        cmocka_unit_test(words_without_a_value_are_flags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
