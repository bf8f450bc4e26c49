// SPDX-License-Identifier: LGPL-2.1-or-later
// The check of arguments: QEMU's words for each fault, with the path of the member; strings of
// dotted keys become what their types say.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "daemon/qmp/type.h"

static const QmpType mode = {
    .name = "Mode", .kind = QMP_ENUM, .values = (const char *const[]){"fast", "safe", NULL}};
static const QmpType kind = {
    .name = "Kind", .kind = QMP_ENUM, .values = (const char *const[]){"disk", "net", "none", NULL}};
static const QmpType modes = {.kind = QMP_ARRAY, .element = &mode};
static const QmpType inner = {
    .name = "Inner",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"path", &qmp_str}, {"flag", &qmp_bool, true}, {"limit", &qmp_uint32, true}, {0}},
};
static const QmpType inners = {.kind = QMP_ARRAY, .element = &inner};
static const QmpType inner_or_name = {
    .name = "InnerRef",
    .kind = QMP_ALTERNATE,
    .members = (const QmpMember[]){{NULL, &qmp_str}, {NULL, &inner}, {0}},
};
static const QmpType refs = {.kind = QMP_ARRAY, .element = &inner_or_name};
static const QmpType net = {
    .name = "Net",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"port", &qmp_uint16}, {0}},
};
static const QmpType outer = {
    .name = "Outer",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"kind", &kind},
                                   {"size", &qmp_size, true},
                                   {"n", &qmp_int, true},
                                   {"granularity", &qmp_uint32, true},
                                   {"ratio", &qmp_number, true},
                                   {"mode", &mode, true},
                                   {"modes", &modes, true},
                                   {"inner", &inner, true},
                                   {"inners", &inners, true},
                                   {"ref", &inner_or_name, true},
                                   {"refs", &refs, true},
                                   {"anything", &qmp_any, true},
                                   {0}},
    .tag = "kind",
    .variants = (const QmpVariant[]){{"disk", &inner}, {"net", &net}, {0}},
};

static void assert_checked(QmpInput input, const char *text, const char *expected)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *value = json_loads(text, 0, NULL);
    assert_non_null(value);
    int r = qmp_type_check(&outer, value, input, &error);
    if (r == 0) {
        assert_null(error);
        char *got = json_dumps(value, JSON_COMPACT);
        assert_string_equal(got, expected);
        free(got);
    } else {
        assert_string_equal(error->message, expected);
    }
}

static void assert_fault(const char *text, const char *expected)
{
    assert_checked(QMP_INPUT_JSON, text, expected);
}

static void what_is_right_stays_as_it_is(void **state)
{
    static const char *const right[] = {
        "{\"kind\":\"none\"}",
        "{\"kind\":\"disk\",\"path\":\"/x\",\"flag\":true}",
        "{\"kind\":\"net\",\"port\":65535,\"size\":5,\"n\":-1,\"ratio\":2,\"mode\":\"safe\"}",
        "{\"kind\":\"none\",\"modes\":[\"fast\"],\"inner\":{\"path\":\"p\"},\"inners\":[]}",
        "{\"kind\":\"none\",\"ref\":\"x\",\"refs\":[\"x\",{\"path\":\"p\"}],\"anything\":[null]}",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(right); i++)
        assert_checked(QMP_INPUT_JSON, right[i], right[i]);
}

static void members_are_told_by_their_paths(void **state)
{
    assert_fault("{}", "Parameter 'kind' is missing");
    assert_fault("{\"kind\":\"disk\"}", "Parameter 'path' is missing");
    assert_fault("{\"kind\":\"none\",\"path\":\"x\"}", "Parameter 'path' is unexpected");
    assert_fault("{\"kind\":\"none\",\"inner\":{}}", "Parameter 'inner.path' is missing");
    assert_fault("{\"kind\":\"none\",\"inner\":{\"path\":\"p\",\"x\":1}}",
                 "Parameter 'inner.x' is unexpected");
    assert_fault("{\"kind\":\"none\",\"inners\":[{\"path\":\"p\"},{\"flag\":true}]}",
                 "Parameter 'inners[1].path' is missing");
    assert_fault("{\"kind\":\"none\",\"inner\":{\"path\":7}}",
                 "Invalid parameter type for 'inner.path', expected: string");
    assert_fault("{\"kind\":\"none\",\"ref\":{\"path\":\"p\",\"flag\":1}}",
                 "Invalid parameter type for 'ref.flag', expected: boolean");
}

static void types_are_told_by_their_json_names(void **state)
{
    assert_fault("{\"kind\":1}", "Invalid parameter type for 'kind', expected: string");
    assert_fault("{\"kind\":\"none\",\"n\":\"1\"}",
                 "Invalid parameter type for 'n', expected: integer");
    assert_fault("{\"kind\":\"none\",\"n\":1.5}",
                 "Invalid parameter type for 'n', expected: integer");
    assert_fault("{\"kind\":\"none\",\"size\":\"1\"}", "Parameter 'size' expects uint64");
    assert_fault("{\"kind\":\"none\",\"granularity\":1.5}",
                 "Parameter 'granularity' expects uint64");
    assert_fault("{\"kind\":\"none\",\"inner\":{\"path\":\"p\",\"limit\":null}}",
                 "Parameter 'inner.limit' expects uint64");
    assert_fault("{\"kind\":\"none\",\"ratio\":\"1\"}",
                 "Invalid parameter type for 'ratio', expected: number");
    assert_fault("{\"kind\":\"none\",\"modes\":\"fast\"}",
                 "Invalid parameter type for 'modes', expected: array");
    assert_fault("{\"kind\":\"none\",\"inner\":[]}",
                 "Invalid parameter type for 'inner', expected: object");
    assert_fault("{\"kind\":\"none\",\"ref\":5}",
                 "Invalid parameter type for 'ref', expected: InnerRef");
    assert_fault("{\"kind\":\"none\",\"refs\":[5]}",
                 "Invalid parameter type for 'null', expected: InnerRef");
}

static void values_out_of_bounds_are_refused(void **state)
{
    assert_fault("{\"kind\":\"none\",\"granularity\":-1}",
                 "Parameter 'granularity' expects uint32_t");
    assert_fault("{\"kind\":\"none\",\"granularity\":4294967296}",
                 "Parameter 'granularity' expects uint32_t");
    assert_fault("{\"kind\":\"none\",\"granularity\":9223372036854775808.0}",
                 "Parameter 'granularity' expects uint32_t");
    assert_fault("{\"kind\":\"none\",\"granularity\":18446744073709551616.0}",
                 "Parameter 'granularity' expects uint64");
    assert_fault("{\"kind\":\"net\",\"port\":65536}", "Parameter 'port' expects uint16_t");
    assert_fault("{\"kind\":\"none\",\"inner\":{\"path\":\"p\",\"limit\":-1}}",
                 "Parameter 'limit' expects uint32_t");
    assert_fault("{\"kind\":\"none\",\"size\":-1}", "Parameter 'size' expects uint64");
    assert_fault("{\"kind\":\"x\"}", "Parameter 'kind' does not accept value 'x'");
    assert_fault("{\"kind\":\"none\",\"mode\":\"x\"}",
                 "Parameter 'mode' does not accept value 'x'");
    assert_fault("{\"kind\":\"none\",\"modes\":[\"x\"]}",
                 "Parameter 'null' does not accept value 'x'");
}

static void strings_of_dotted_keys_become_typed(void **state)
{
    assert_checked(
        QMP_INPUT_KEYVAL,
        "{\"kind\":\"disk\",\"path\":\"1\",\"flag\":\"on\",\"size\":\"1.5M\",\"n\":\"-0x10\","
        "\"ratio\":\"1.5\",\"inners\":[{\"path\":\"p\",\"flag\":\"no\"}],"
        "\"ref\":{\"path\":\"p\",\"flag\":\"yes\"},\"anything\":\"1\"}",
        "{\"kind\":\"disk\",\"path\":\"1\",\"flag\":true,\"size\":1572864,\"n\":-16,"
        "\"ratio\":1.5,\"inners\":[{\"path\":\"p\",\"flag\":false}],"
        "\"ref\":{\"path\":\"p\",\"flag\":true},\"anything\":\"1\"}");
    static const char *const bad[][2] = {
        {"{\"kind\":\"none\",\"n\":\"5k\"}", "Parameter 'n' expects integer"},
        {"{\"kind\":\"none\",\"n\":\"\"}", "Parameter 'n' expects integer"},
        {"{\"kind\":\"none\",\"size\":\"x\"}", "Parameter 'size' expects size"},
        {"{\"kind\":\"none\",\"size\":\"-1\"}", "Parameter 'size' expects size"},
        {"{\"kind\":\"none\",\"size\":\"9E\"}", "Parameter 'size' expects size"},
        {"{\"kind\":\"none\",\"granularity\":\"-1\"}", "Parameter 'granularity' expects uint32_t"},
        {"{\"kind\":\"disk\",\"path\":\"p\",\"flag\":\"maybe\"}",
         "Parameter 'flag' expects 'on' or 'off'"},
        {"{\"kind\":\"none\",\"inners\":[{\"path\":\"p\",\"flag\":\"1\"}]}",
         "Parameter 'inners.0.flag' expects 'on' or 'off'"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
        assert_checked(QMP_INPUT_KEYVAL, bad[i][0], bad[i][1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_right_stays_as_it_is),
        cmocka_unit_test(members_are_told_by_their_paths),
        cmocka_unit_test(types_are_told_by_their_json_names),
        cmocka_unit_test(values_out_of_bounds_are_refused),
        cmocka_unit_test(strings_of_dotted_keys_become_typed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
