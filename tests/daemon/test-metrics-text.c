// SPDX-License-Identifier: LGPL-2.1-or-later
// Prometheus' text format, byte by byte.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "metrics-text.h"

static void a_family_is_its_head_and_its_samples(void **state)
{
    g_autoptr(GString) text = g_string_new(NULL);
    metrics_text_family(text, "a_total", "counter", "What a \\ is,\nin \"two\" lines.");
    metrics_text_sample(text, "a_total", 3, NULL);
    metrics_text_sample(text, "a_total", 0.25, "x", "1", "left_out", NULL, "y", "", NULL);
    assert_string_equal(text->str, "# HELP a_total What a \\\\ is,\\nin \"two\" lines.\n"
                                   "# TYPE a_total counter\n"
                                   "a_total 3\n"
                                   "a_total{x=\"1\",y=\"\"} 0.25\n");
}

static void values_of_labels_are_escaped(void **state)
{
    g_autoptr(GString) text = g_string_new(NULL);
    metrics_text_sample(text, "a", 1, "n", "\"quoted\"\\\nü {}=,", NULL);
    assert_string_equal(text->str, "a{n=\"\\\"quoted\\\"\\\\\\nü {}=,\"} 1\n");
}

static void whole_numbers_have_no_exponent(void **state)
{
    g_autoptr(GString) text = g_string_new(NULL);
    metrics_text_sample(text, "a", 123456789012345, NULL);
    metrics_text_sample(text, "a", 1796083950.25, NULL);
    metrics_text_sample(text, "a", 1.5e-6, NULL);
    assert_string_equal(text->str, "a 123456789012345\na 1796083950.25\na 1.5e-06\n");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_family_is_its_head_and_its_samples),
        cmocka_unit_test(values_of_labels_are_escaped),
        cmocka_unit_test(whole_numbers_have_no_exponent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
