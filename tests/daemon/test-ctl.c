// SPDX-License-Identifier: LGPL-2.1-or-later
// What chainctl computes by itself: sizes, percentiles, the meaning of errors, command lines.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ctl/arguments.h"
#include "ctl/latency.h"
#include "ctl/output.h"
#include "ctl/paths.h"
#include "ctl/units.h"

// Not used by what is tested.
json_t *ctl_run(Ctl *ctl, const char *command, json_t *args, GError **error)
{
    return NULL;
}

static void sizes_are_read_as_people_write_them(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},          {"512", 512},        {"20G", UINT64_C(20) << 30},
                {"1.5k", 1536},    {"64MiB", 64 << 20}, {"2t", UINT64_C(2) << 40},
                {"0.25M", 1 << 18}};
    static const char *const bad[] = {"",      "G",    "-1",  "1.5",
                                      "20 G",  "20GB", "20X", "1ee",
                                      "9999P", "0x10", "+5",  "99999999999999999999"};
    uint64_t bytes;
    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
        assert_true(units_parse_size(good[i].text, &bytes));
        assert_int_equal(bytes, good[i].bytes);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
        if (units_parse_size(bad[i], &bytes))
            fail_msg("'%s' was read as %" G_GUINT64_FORMAT, bad[i], bytes);
}

static void check_text(char *text, const char *expected)
{
    assert_string_equal(text, expected);
    g_free(text);
}

static void numbers_are_short(void **state)
{
    check_text(units_size(0), "0 B");
    check_text(units_size(999), "999 B");
    check_text(units_size(1000), "1.0 KiB");
    check_text(units_size(UINT64_C(20) << 30), "20 GiB");
    check_text(units_size(UINT64_C(1181116006)), "1.1 GiB");
    check_text(units_size(UINT64_MAX), "16.0 EiB");
    check_text(units_size_of(751619277, 1181116006), "0.7/1.1 GiB");
    check_text(units_size_of(0, 0), "0/0 B");
    check_text(units_rate(412 << 20), "412 MiB/s");
    check_text(units_clock(61), "1:01");
    check_text(units_clock(7500), "2:05:00");
    check_text(units_latency(200), "200 us");
    check_text(units_latency(1500), "1.5 ms");
    check_text(units_count(12345), "12.3k");
}

static void percentiles_lie_in_their_class(void **state)
{
    Latency none = {0}, latency = {.n = {[4] = 90, [10] = 10}};
    assert_true(latency_percentile(&none, 0.5) < 0);
    double median = latency_percentile(&latency, 0.5), high = latency_percentile(&latency, 0.99);
    assert_true(median > 8 && median < 16); // class 4 is 8 to 16 us
    assert_true(high > 512 && high <= 1024);
    assert_true(latency_percentile(&latency, 1) == 1024);
    Latency since = latency_since(&latency, &(Latency){.n = {[4] = 90}});
    assert_int_equal(latency_count(&since), 10);
}

static void latencies_are_those_of_reads_and_writes(void **state)
{
    json_t *export = json_pack("{s:[{s:s, s:[i,i]}, {s:s, s:[i,i]}, {s:s, s:[i]}]}", "operations",
                               "operation", "read", "latencies", 1, 2, "operation", "write",
                               "latencies", 0, 3, "operation", "flush", "latencies", 50);
    Latency all = {0}, flushes = {0};
    latency_add(&all, export, NULL);
    latency_add(&flushes, export, "flush");
    assert_int_equal(all.n[0], 1);
    assert_int_equal(all.n[1], 5);
    assert_int_equal(flushes.n[0], 50);
    json_decref(export);
}

static void errors_have_their_status(void **state)
{
    static const struct {
        const char *class, *reason;
        CtlStatus status;
    } all[] = {
        {"GenericError", NULL, CTL_FAILED},           {"GenericError", "busy", CTL_BUSY},
        {"GenericError", "no-space", CTL_NO_SPACE},   {"GenericError", "denied", CTL_DENIED},
        {"GenericError", "not-found", CTL_NOT_FOUND}, {"GenericError", "new", CTL_FAILED},
        {"DeviceNotFound", NULL, CTL_NOT_FOUND},      {"DeviceNotActive", NULL, CTL_NOT_FOUND},
        {"CommandNotFound", NULL, CTL_FAILED}};
    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++) {
        json_t *error = json_pack("{s:s, s:s*}", "class", all[i].class, "reason", all[i].reason);
        assert_int_equal(ctl_status_of_qmp(error), all[i].status);
        json_decref(error);
    }
}

static const VerbWord words[] = {
    {"DISK", WORD_DISK}, {"SIZE", WORD_SIZE, .is_optional = true, .is_repeated = true}, {0}};
static const VerbOption options[] = {
    {"speed", 'x', WORD_SIZE, "BYTES", ""}, {"async", 0, WORD_NONE, NULL, ""}, {0}};
static const Verb verb = {.name = "v", .words = words, .options = options};

static void command_lines_are_checked(void **state)
{
    char *good[] = {"web", "1G", "-x", "2M", "2G", "--async", NULL};
    char *bad[][4] = {{NULL},
                      {"web@mon", NULL},
                      {"web", "big", NULL},
                      {"web", "--speed=x", NULL},
                      {"web", "--bogus", NULL}};
    g_autofree char *usage = arguments_usage(&verb);
    assert_string_equal(usage, "DISK [SIZE]...");
    Arguments *arguments = arguments_parse(&verb, good, NULL);
    assert_non_null(arguments);
    assert_int_equal(g_strv_length(arguments_words(arguments)), 3);
    assert_int_equal(arguments_size(arguments, "speed", 0), 2 << 20);
    assert_true(arguments_flag(arguments, "async") && !arguments_flag(arguments, "help"));
    arguments_free(arguments);
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        assert_null(arguments_parse(&verb, bad[i], &error));
        assert_true(g_error_matches(error, CTL_ERROR, CTL_USAGE));
    }
}

static void names_of_files_become_absolute(void **state)
{
    g_autofree char *here = g_get_current_dir(), *file = g_build_filename(here, "a.qcow2", NULL);
    check_text(paths_absolute("a.qcow2"), file);
    check_text(paths_absolute("/x/../y"), "/y");
    check_text(paths_absolute("nbd+unix:///web?socket=s"), "nbd+unix:///web?socket=s");
    check_text(paths_absolute("json:{}"), "json:{}");
}

static void cells_are_clean(void **state)
{
    Output output = {OUTPUT_TABLE};
    json_t *value = json_string("a\033[2Jb\n");
    check_text(output_cell(&output, value, CELL_TEXT), "a\\x1b[2Jb\\x0a");
    check_text(output_cell(&output, NULL, CELL_SIZE), "-");
    assert_int_equal(output_width("█ü漢"), 4);
    json_decref(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_read_as_people_write_them),
        cmocka_unit_test(numbers_are_short),
        cmocka_unit_test(percentiles_lie_in_their_class),
        cmocka_unit_test(latencies_are_those_of_reads_and_writes),
        cmocka_unit_test(errors_have_their_status),
        cmocka_unit_test(command_lines_are_checked),
        cmocka_unit_test(names_of_files_become_absolute),
        cmocka_unit_test(cells_are_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
