// SPDX-License-Identifier: LGPL-2.1-or-later
// QMP framing: where values begin and end, whatever the pieces in which they come; bounds; how bad
// input is left behind.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "daemon/qmp/framing.h"

// What comes of `input` when it arrives in pieces of `piece` bytes: values as compact JSON and
// "!sentence" for bad ones, each followed by a newline. Owned.
static char *framed(const char *input, size_t input_len, size_t piece)
{
    GString *all = g_string_new(NULL);
    QmpFraming framing;
    qmp_framing_init(&framing);
    for (size_t at = 0; at < input_len; at += piece) {
        const char *bytes = input + at;
        size_t len = MIN(piece, input_len - at);
        QmpFrame frame;
        do {
            g_autoptr(GError) error = NULL;
            json_auto_t *value = NULL;
            frame = qmp_framing_take(&framing, &bytes, &len, &value, &error);
            char *text = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
            if (frame != QMP_FRAME_NONE)
                g_string_append_printf(all, "%s%s\n", text ? "" : "!",
                                       text ? text : error->message);
            free(text);
        } while (frame != QMP_FRAME_NONE);
        assert_int_equal(len, 0);
    }
    qmp_framing_done(&framing);
    return g_string_free(all, false);
}

static void assert_framed(const char *input, const char *expected)
{
    size_t len = strlen(input);
    for (size_t piece = 1; piece <= len; piece++) {
        g_autofree char *got = framed(input, len, piece);
        assert_string_equal(got, expected);
    }
}

static void values_end_where_their_brackets_do(void **state)
{
    assert_framed("{\"a\":1}", "{\"a\":1}\n");
    assert_framed("{\"a\":{\"b\":[1,2]}}{\"c\":2}\r\n[3]",
                  "{\"a\":{\"b\":[1,2]}}\n{\"c\":2}\n[3]\n");
    assert_framed("{\n \"a\" :\r\n1\n}\n\n", "{\"a\":1}\n");
    assert_framed("{\"a\":1", "");
}

static void brackets_and_quotes_in_strings_do_not_count(void **state)
{
    assert_framed("{\"}]\":\"{[\\\"}'\"}", "{\"}]\":\"{[\\\"}'\"}\n");
}

static void single_quotes_are_quotes(void **state)
{
    assert_framed("{'a':'b\"c'}", "{\"a\":\"b\\\"c\"}\n");
    assert_framed("{'it\\'s':\"it\\'s\"}", "{\"it's\":\"it's\"}\n");
    assert_framed("{'\\u00e4\\n':'\\\\'}", "{\"\xc3\xa4\\n\":\"\\\\\"}\n");
}

static void scalars_end_before_the_next_value(void **state)
{
    assert_framed("5 \"a\" {}", "5\n\"a\"\n{}\n");
    assert_framed("true{}", "true\n{}\n");
    assert_framed("'x'5 ", "\"x\"\n5\n");
}

static void integers_beyond_64_bits_become_fractions(void **state)
{
    assert_framed("{'a':9223372036854775807,'b':-9223372036854775808}",
                  "{\"a\":9223372036854775807,\"b\":-9223372036854775808}\n");
    assert_framed("{'99999999999999999999':[1,-99999999999999999999,'\\'99999999999999999999']}",
                  "{\"99999999999999999999\":[1,-1e20,\"'99999999999999999999\"]}\n");
    assert_framed("99999999999999999999 ", "1e20\n");
    assert_framed("{'a':99999999999999999999,}{}",
                  "!JSON parse error, string or '}' expected near '}'\n{}\n");
}

static void after_a_bad_value_the_next_one_is_taken(void **state)
{
    static const char *const bad[] = {"{]",
                                      "}",
                                      "{\"a\":1,}",
                                      "{\"a\" 1}",
                                      "nope ",
                                      "{\"a\":1,\"a\":2}",
                                      "{\"a\":\"\xc3(\"}",
                                      "{\"a\":\"b\n",
                                      "\xff",
                                      "{\"a\":\xff",
                                      "{'a\xff",
                                      "@ "};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *input = g_strconcat(bad[i], "{\"next\":1}", NULL);
        for (size_t piece = 1; piece <= strlen(input); piece++) {
            g_autofree char *got = framed(input, strlen(input), piece);
            g_auto(GStrv) lines = g_strsplit(got, "\n", -1);
            assert_int_equal(g_strv_length(lines), 3);
            assert_true(g_str_has_prefix(lines[0], "!JSON parse error, "));
            assert_string_equal(lines[1], "{\"next\":1}");
        }
    }
}

static void depth_is_bounded(void **state)
{
    for (int deep = 0; deep < 2; deep++) {
        GString *input = g_string_new(NULL);
        for (int i = 0; i < QMP_FRAMING_MAX_DEPTH + deep; i++)
            g_string_append_c(input, '[');
        for (int i = 0; i < QMP_FRAMING_MAX_DEPTH + deep; i++)
            g_string_append_c(input, ']');
        g_string_append(input, "{}");
        g_autofree char *got = framed(input->str, input->len, 7);
        if (deep)
            assert_string_equal(got, "!JSON nesting depth limit exceeded\n{}\n");
        else
            assert_true(g_str_has_prefix(got, "[[[") && g_str_has_suffix(got, "]]\n{}\n"));
        g_string_free(input, true);
    }
}

static void size_is_bounded(void **state)
{
    size_t len = 2 * (size_t)QMP_FRAMING_MAX_BYTES;
    g_autofree char *string = g_strnfill(len, 'x');
    g_autofree char *input = g_strdup_printf("{\"a\":\"%s\"} {}", string);
    g_autofree char *got = framed(input, strlen(input), 4096);
    assert_string_equal(got, "!JSON token size limit exceeded\n{}\n");

    QmpFraming framing;
    qmp_framing_init(&framing);
    const char *bytes = input;
    size_t left = strlen(input) - 10;
    assert_int_equal(qmp_framing_take(&framing, &bytes, &left, NULL, NULL), QMP_FRAME_NONE);
    assert_true(framing.text->len <= QMP_FRAMING_MAX_BYTES);
    qmp_framing_done(&framing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_end_where_their_brackets_do),
        cmocka_unit_test(brackets_and_quotes_in_strings_do_not_count),
        cmocka_unit_test(single_quotes_are_quotes),
        cmocka_unit_test(scalars_end_before_the_next_value),
        cmocka_unit_test(integers_beyond_64_bits_become_fractions),
        cmocka_unit_test(after_a_bad_value_the_next_one_is_taken),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(size_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
